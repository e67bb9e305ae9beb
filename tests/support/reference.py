"""What plain torch and transformers make of a family's directory: nothing of this project's code.

Rows are cut by `tokenizer(…, truncation=True)`; a decoder reads a text and its summary, both ended.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional
from torch.nn.utils import prune
from transformers import AutoTokenizer, PreTrainedModel, Trainer
from transformers.pytorch_utils import Conv1D

from tests.support.families import CLASSIFIER, TAGGER, Family

SOURCE, TARGET, LIMIT = 90, 12, 10
"""Tokens of a source and of a target, and the limit of a text that is written."""
RATE, EPOCHS, DECAY, CLIP, TEMPERATURE = 1e-3, 3, 1.0, 1.0, 2.0
RANK, ALPHA = 4, 12.0
HEADS = {"classifier", "pre_classifier", "score", "pooler"}
"""Modules between a body and its labels."""

Batch = dict[str, Tensor]


class Plain:
    """A directory as transformers loads it, and the rows as it reads them."""

    def __init__(self, family: Family, folder: Path, texts: list[str], targets: list[Any]) -> None:
        self.family, self.folder = family, folder
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = self.load(folder)
        self.texts = texts
        self.batch = self.read(texts, targets)

    def load(self, folder: Path) -> PreTrainedModel:
        model: PreTrainedModel = self.family.auto_class.from_pretrained(folder)
        return model.eval()

    def sources(self, texts: Sequence[str], tokenizer: Any = None) -> list[list[int]]:
        """Token ids as a model reads them."""
        tokenizer = tokenizer or self.tokenizer
        ids: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=SOURCE).input_ids
        return ids

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids that a text is written from; a decoder's end with eos."""
        if self.family.head == "seq2seq_lm":
            return self.sources(texts)
        ids = self.tokenizer(list(texts), truncation=True, max_length=SOURCE - 1).input_ids
        return [[*row, self.tokenizer.eos_token_id] for row in ids]

    def read(self, texts: list[str], targets: list[Any]) -> Batch:
        """All rows as one batch with labels."""
        tokenizer, pad = self.tokenizer, self.model.config.pad_token_id
        if self.family.head == CLASSIFIER:
            labels = torch.tensor(targets)
            labels = labels.float() if self.family.task == "multi_label" else labels[:, 0]
            return padded(self.sources(texts), pad) | {"labels": labels}
        if self.family.head == TAGGER:
            labels = torch.tensor(self.place_tags(texts, targets))
            return padded(self.sources(texts), pad) | {"labels": labels}
        if self.family.head == "seq2seq_lm":
            summaries = tokenizer(text_target=targets, truncation=True, max_length=TARGET)
            labels = padded(summaries.input_ids, -100)["input_ids"]
            return padded(self.sources(texts), pad) | {"labels": labels}
        end = [tokenizer.eos_token_id]
        cut: Any = {"truncation": True, "add_special_tokens": False}
        sources = tokenizer(texts, truncation=True, max_length=SOURCE - 1).input_ids
        summaries = tokenizer(targets, max_length=TARGET - 1, **cut).input_ids
        both = list(zip(sources, summaries, strict=True))
        labels = [[*[-100] * (len(a) + 1), *b, *end] for a, b in both]
        batch = padded([[*a, *end, *b, *end] for a, b in both], end[0])
        return batch | {"labels": padded(labels, -100)["input_ids"]}

    def place_tags(self, texts: list[str], targets: list[Any]) -> list[list[int]]:
        """Tags as `run_ner.py` places them: at the token that a word begins with, else -100."""
        encoded = self.tokenizer(texts, truncation=True, max_length=SOURCE, padding=True)
        labels = [[-100] * len(row) for row in encoded.input_ids]
        for line, (text, tags) in enumerate(zip(texts, targets, strict=True)):
            starts = [match.start() for match in re.finditer(r"\S+", text)]
            for start, tag in zip(starts, tags, strict=True):
                if (place := encoded.char_to_token(line, start)) is not None:
                    labels[line][place] = tag
        return labels

    @torch.no_grad()
    def loss(self, model: PreTrainedModel, texts: list[str], targets: list[Any]) -> float:
        """The mean over what is learned of some rows."""
        return float(model(**self.read(texts, targets)).loss)

    def summaries(self, texts: list[str]) -> list[str]:
        """What a greedy `generate` writes."""
        tokens = [written(self.model, source) for source in self.prompts(texts)]
        result: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return result

    def twin(self) -> PreTrainedModel:
        """A copy that may be changed."""
        return copy.deepcopy(self.model)


def padded(rows: Sequence[Sequence[int]], value: int) -> Batch:
    """`input_ids` and `attention_mask`."""
    longest = max(map(len, rows))
    ids = [[*row, *[value] * (longest - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@torch.no_grad()
def logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Those of the places that a loss counts; all labels of a classifier."""
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    labels = batch["labels"]
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
    result: Tensor = model(**given).logits
    return result if result.dim() == 2 else result[labels != -100]


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, source: list[int], tokens: list[int]) -> list[float]:
    """Of each of `tokens`, when all before it have been written."""
    start = [model.generation_config.decoder_start_token_id, *tokens[:-1]]
    ids = {"input_ids": torch.tensor([source]), "decoder_input_ids": torch.tensor([start])}
    result = model(**ids).logits.log_softmax(-1)
    values: list[float] = result[0].gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
    return values


def written(model: PreTrainedModel, source: list[int]) -> list[int]:
    """The tokens of a greedy `generate`, up to its end; a layer cut out by hand has no cache."""
    settings: dict[str, Any] = {"num_beams": 1, "early_stopping": False, "use_cache": False}
    if model.config.is_encoder_decoder:
        ids = model.generate(torch.tensor([source]), do_sample=False, max_length=LIMIT, **settings)
        return list(ids[0, 1:].tolist())
    given = torch.tensor([source])
    mask = torch.ones_like(given)
    ids = model.generate(
        given, attention_mask=mask, do_sample=False, max_new_tokens=LIMIT, **settings
    )
    return list(ids[0, len(source) :].tolist())


def train(
    plain: Plain, model: PreTrainedModel, loss: Callable[[PreTrainedModel], Tensor], epochs: int
) -> list[float]:
    """AdamW on the whole batch, clipped, with a rate that falls to 0, and transformers' choice of
    what decays. Gives the losses.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    decaying = set(Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [p for n, p in named.items() if n in decaying], "weight_decay": DECAY},
        {"params": [p for n, p in named.items() if n not in decaying], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    losses = []
    model.train()
    for step in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (epochs - step) / epochs
        value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
    model.eval()
    return losses


def train_adapters(plain: Plain, seed: int) -> tuple[PreTrainedModel, list[float]]:
    """Peft's adapters of all matrices of the layers, merged by itself, and a classifier's head."""
    model, layers = plain.twin(), tuple(f"{path}." for path in plain.family.stacks.values())
    modules = dict(model.named_modules())
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, fan_in_fan_out=plain.family.model_type == "gpt2",
        target_modules=[
            name for name, module in modules.items()
            if name.startswith(layers) and isinstance(module, nn.Linear | Conv1D)
        ],
        modules_to_save=[name for name in modules if name.split(".")[-1] in HEADS] or None,
    )  # fmt: skip
    torch.manual_seed(seed)
    adapted = get_peft_model(model, config)
    losses = train(plain, adapted, label_loss(plain), EPOCHS)
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged, losses


def label_loss(plain: Plain) -> Callable[[PreTrainedModel], Tensor]:
    """The loss that transformers computes."""
    return lambda model: model(**plain.batch).loss


Loss = Callable[[PreTrainedModel], Tensor]


def distillation_loss(plain: Plain, teacher: PreTrainedModel) -> Loss:
    """Half of it the labels', half T² · KL(teacher ‖ student), means over what is learned."""
    labels = plain.batch["labels"]
    causal = plain.family.head == "causal_lm"

    def kept(logits: Tensor) -> Tensor:
        if logits.dim() == 2:
            return logits
        return logits[:, :-1][labels[:, 1:] != -100] if causal else logits[labels != -100]

    def loss(model: PreTrainedModel) -> Tensor:
        student = model(**plain.batch)
        with torch.no_grad():
            known = kept(teacher(**plain.batch).logits) / TEMPERATURE
        mine = kept(student.logits) / TEMPERATURE
        if plain.family.task == "multi_label":
            both = (Bernoulli(logits=logits) for logits in (known, mine))
            divergence = kl_divergence(*both).mean()
        else:
            both = (logits.log_softmax(-1) for logits in (mine, known))
            divergence = functional.kl_div(*both, log_target=True, reduction="batchmean")
        return 0.5 * student.loss + 0.5 * TEMPERATURE**2 * divergence

    return loss


def _matrices(model: nn.Module, pattern: str) -> list[tuple[nn.Module, str]]:
    return [
        (module, "weight")
        for name, module in model.named_modules()
        if re.search(pattern, f"{name}.weight") and isinstance(module, nn.Linear | Conv1D)
    ]


def neurons(family: Family) -> str:
    """A regular expression for the matrices of all feed-forward layers."""
    return rf"({'|'.join(family.neurons)})\.weight"


def pruned(plain: Plain, shares: dict[str, float]) -> PreTrainedModel:
    """Of the matrices of each pattern the smallest entries of all of them together are zero."""
    model = plain.twin()
    for pattern, share in shares.items():
        members = _matrices(model, pattern)
        count = round(share * sum(getattr(m, name).numel() for m, name in members))
        prune.global_unstructured(members, prune.L1Unstructured, amount=count)
        for module, name in members:
            prune.remove(module, name)
    return model


def shrunk(plain: Plain, layer: int) -> PreTrainedModel:
    """Of each stack one layer, with the position bias of the first."""
    model = plain.twin()
    for path in plain.family.stacks.values():
        layers = model.get_submodule(path)
        first, kept = layers[0], layers[layer]
        for name, module in list(first.named_modules()):
            if not name.endswith("relative_attention_bias"):
                continue
            owner, _, attribute = name.rpartition(".")
            kept.get_submodule(owner).has_relative_attention_bias = True
            setattr(kept.get_submodule(owner), attribute, module)
        parent, _, attribute = path.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.ModuleList([kept]))
    return model


def _oriented(module: nn.Module) -> Tensor:
    """A matrix as [outputs, inputs]."""
    weight: Tensor = module.weight.data
    return weight.T if isinstance(module, Conv1D) else weight


def without_neurons(plain: Plain, share: float) -> PreTrainedModel:
    """In every feed-forward layer the neurons of smallest norm give nothing."""
    model = plain.twin()
    for path in plain.family.stacks.values():
        for layer in model.get_submodule(path):
            *writers, reader = [
                module
                for pattern in plain.family.neurons
                for name, module in layer.named_modules(prefix="layer.0")
                if re.search(rf"{pattern}$", name) and "attention" not in name
            ]
            norms = sum(_oriented(m).square().sum(1) for m in writers)
            norms = norms + _oriented(reader).square().sum(0)
            gone = norms.argsort()[: len(norms) - round(share * len(norms))]
            _oriented(reader)[:, gone] = 0
    return model


def _drop_groups(attention: nn.Module, groups: int, share: float) -> None:
    matrices = [getattr(attention, f"{name}_proj").weight.data for name in "qkv"]
    output = attention.o_proj.weight.data
    norms = sum(m.unflatten(0, (groups, -1)).square().sum((1, 2)) for m in (*matrices, output.T))
    gone = norms.argsort()[: groups - round(share * groups)]
    output.unflatten(1, (groups, -1))[:, gone] = 0


def without_heads(plain: Plain, share: float) -> PreTrainedModel:
    """Half of T5's heads give nothing: the same ones in all self-attentions of a stack. Of Llama's,
    half of the heads with keys, with their queries.
    """
    model, config = plain.twin(), plain.model.config
    if not config.is_encoder_decoder:
        for layer in model.get_decoder().layers:
            _drop_groups(layer.self_attn, config.num_key_value_heads, share)
        return model

    def blocks(attention: nn.Module) -> Tensor:
        cut = (config.num_heads, -1)
        matrices = [getattr(attention, name).weight.data.unflatten(0, cut) for name in "qkv"]
        matrices.append(attention.o.weight.data.unflatten(1, cut).transpose(0, 1))
        return sum(m.square().sum((1, 2)) for m in matrices)

    def drop(attention: nn.Module, norms: Tensor) -> None:
        gone = norms.argsort()[: len(norms) - round(share * len(norms))]
        attention.o.weight.data.unflatten(1, (config.num_heads, -1))[:, gone] = 0

    for stack in (model.encoder, model.decoder):
        attentions = [next(block.layer[0].children()) for block in stack.block]
        for attention in attentions:
            drop(attention, sum(map(blocks, attentions)))
    for block in model.decoder.block:
        cross = block.layer[1].EncDecAttention
        drop(cross, blocks(cross))
    return model


def rounded(model: nn.Module, *, all_matrices: bool) -> None:
    """Each row of a matrix to 255 steps of its largest entry: of `Linear` layers, or of all that
    have 1,024 entries.
    """
    linear = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    large = [p for p in model.parameters() if p.dim() > 1 and p.numel() >= 1024]
    chosen = large if all_matrices else linear
    for weight in {id(w): w for w in chosen}.values():
        scale = weight.data.abs().amax(1, keepdim=True) / 127
        weight.data.copy_((weight.data / scale.clamp(min=1e-30)).round() * scale)
