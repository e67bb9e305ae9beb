"""A model with its tokenizer and masks, on disk and in memory. What stages hand to each other.

Weights are safetensors, never pickle. `masks.safetensors` holds, for each pruned parameter, True
where an entry stays. A quantized model has integer weights and their scales in the same file, or
all of its tensors in a type of two bytes; `checkpoint.json` says which.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # raised by weights_only loading; nothing is unpickled
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

from compressor.architectures import Facts, Stack, Units, architecture
from compressor.architectures import facts as facts_of
from compressor.architectures.block import FILE as WITH_BLOCKS
from compressor.architectures.t5 import scales_outputs
from compressor.block import Block, has_blocks, put_block, put_blocks
from compressor.data.examples import Examples, tokenize, tokenize_labelled
from compressor.errors import StageError
from compressor.finite import require_finite
from compressor.losses import T5_TYPES
from compressor.places import Count, by_place
from compressor.quantization import Quantization
from compressor.sparsity.int8 import Int8Embedding
from compressor.sparsity.quantized import LAYERS, counts, dequantize, put_quantized, set_activations
from compressor.sparsity.select import apply_mask
from compressor.sparsity.slicing import take_units

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

    from compressor.data.rows import Rows
    from compressor.data.sources import DataBase

Head = Literal["seq2seq_lm", "causal_lm", "sequence_classification", "none"]
WEIGHTS, MASKS, ABOUT = "model.safetensors", "masks.safetensors", "checkpoint.json"

AUTO_CLASSES = {
    "seq2seq_lm": AutoModelForSeq2SeqLM,
    "causal_lm": AutoModelForCausalLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "none": AutoModel,
}

CLASS_NAMES: dict[Head, Mapping[str, str]] = {
    "seq2seq_lm": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "sequence_classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "none": modeling_auto.MODEL_MAPPING_NAMES,
}
"""Head → model type → the class that `AUTO_CLASSES` takes."""

FRESH = ("classifier", "pre_classifier", "score", "bert.pooler")
"""How the names begin of what a classifier has and a pretrained body may lack."""

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # what it warns of (ties, unused keys) is checked here


@dataclass
class Checkpoint:
    """A model, what it needs to read text, and which of its weights are pruned."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    head: Head
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Parameter name → bool, True where the entry stays. Tied parameters have one mask."""
    quantization: Quantization | None = None
    """What a `quantize` stage has made of the model; None for a float32 one."""

    def save(self, folder: Path) -> None:
        """Write everything into `folder`. A tensor that is tied is written once."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.quantization is None:
            save_pretrained(self.model, folder)
        else:
            save_state(self.model, folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.masks:
            save_file({k: m.contiguous().cpu() for k, m in self.masks.items()}, folder / MASKS)
        quantization = self.quantization and self.quantization.model_dump()
        about = {"head": self.head, "quantization": quantization}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        """Read what `save` wrote, in the types it was in. On the CPU, in evaluation mode."""
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        head: Head = about["head"]
        quantization = _quantization(about)
        if quantization is None:
            model = load_pretrained(folder, head)
        else:
            model = _load_quantized(folder, head, quantization)
        masks = load_file(folder / MASKS) if (folder / MASKS).is_file() else {}
        tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
        return cls(model.eval(), tokenizer, head, masks, quantization)

    def facts(self) -> Facts:
        """What planning would know of this model, without its masks."""
        untied = has_untied_head(self.model)
        return facts_of(self.model.config.to_dict(), head=self.head, untied_head=untied)

    def examples(self, rows: Rows, data: DataBase) -> Examples:
        """Rows as token ids, in the layout of this model's head. Raises StageError."""
        if self.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        if self.head == "sequence_classification":
            return tokenize_labelled(rows, self.tokenizer, data)
        return tokenize(rows, self.tokenizer, data, joined=self.head == "causal_lm")

    @property
    def pad_id(self) -> int:
        """What fills a batch. Decoders often come without a pad; what is masked may be anything.

        Raises StageError where there is neither a pad nor an eos.
        """
        assert self.tokenizer is not None, "`examples` says so first"
        own: int | None = self.tokenizer.pad_token_id
        eos: int | None = self.tokenizer.eos_token_id
        pad = eos if own is None or self.head == "causal_lm" else own
        if pad is None:
            raise StageError(
                "the tokenizer has no pad and no eos token, one of which fills batches"
            )
        return pad

    def parameter(self, name: str) -> nn.Parameter:
        """The parameter called `name`, whichever of its tied names that is."""
        parameter: nn.Parameter = self.model.get_parameter(name)
        return parameter

    def apply_masks(self) -> None:
        """Set every masked entry to zero."""
        with torch.no_grad():
            for name, mask in self.masks.items():
                apply_mask(self.parameter(name), mask.to(self.model.device))

    def require_finite(self, cure: str = "a setting of this stage is too extreme") -> None:
        """Raise StageError that names a weight which is NaN or infinite; `cure`: what to do then.

        A buffer that stands for no weight may be: Marian's bias has -inf for what is never written.
        """
        buffers = _plain_buffers(self.model)
        weights = distinct(self.model.state_dict())
        require_finite({n: w for n, w in weights.items() if n not in buffers}, "", cure)

    def measure(self, folder: Path) -> dict[str, Any]:
        """What tables show of a saved model: counts from its tensors, bytes from its files.

        `groups` has them by group and layer, as `places.by_place` gives them.
        """
        found: list[Count] = []
        state = self.model.state_dict()
        buffers = _plain_buffers(self.model)
        tensor_bytes = 0
        for name, tensor in distinct(state).items():
            if name in buffers:
                continue
            tensor_bytes += tensor.nbytes
            if name.endswith("_scale"):
                continue
            scale = state.get(f"{name}_scale")
            whole = tensor.numel(), int(torch.count_nonzero(tensor))
            found.append(Count(name, *(whole if scale is None else counts(tensor, scale))))
        parameters = sum(count.weights for count in found)
        nonzero = sum(count.nonzero for count in found)
        return {
            "parameters": parameters,
            "nonzero": nonzero,
            "nonzero_ratio": nonzero / parameters,
            "masked": sum(int((~mask).count_nonzero()) for mask in self.masks.values()),
            "bytes": weights_file(folder).stat().st_size,
            "tensor_bytes": tensor_bytes,
            "groups": by_place(self.facts(), found),
        }


def _plain_buffers(model: nn.Module) -> set[str]:
    """Names of buffers that stand for no parameter, as BART's `final_logits_bias` does not."""
    return {
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if not isinstance(module, LAYERS)
        for name, _ in module.named_buffers(recurse=False)
    }


def distinct(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each tied tensor once, under the first of its names."""
    seen: set[tuple[int, int]] = set()
    kept = {}
    for name, tensor in state.items():
        identity = (tensor.data_ptr(), tensor.numel())
        if identity not in seen or not tensor.numel():
            seen.add(identity)
            kept[name] = tensor
    return kept


def build(config: PretrainedConfig, head: Head, *, untied_head: bool = False) -> PreTrainedModel:
    """A float32 model with fresh weights, blocks where the config says so, and its head a tensor of
    its own where one is wanted.

    transformers 5 ties T5's head whatever the config says; other models' it unties by itself.
    """
    model: PreTrainedModel = AUTO_CLASSES[head].from_config(config, dtype=torch.float32)
    for stack in stacks_of(config, head).values():
        put_blocks(model, config.hidden_size, stack)
    if untied_head and has_untied_head(model) is False:
        untie_head(model)
    return model


def stacks_of(config: PretrainedConfig, head: Head) -> dict[str, Stack]:
    """The stacks of a real model's config."""
    found: dict[str, Stack] = architecture(config.model_type).stacks(
        {**config.to_dict(), "head": head}
    )
    return found


def untie_head(model: PreTrainedModel) -> None:
    """Give `lm_head` a fresh weight of its own."""
    fresh = torch.empty_like(model.lm_head.weight)
    nn.init.normal_(fresh, std=model.config.hidden_size**-0.5)
    model.lm_head.weight = nn.Parameter(fresh)


def has_untied_head(model: PreTrainedModel) -> bool | None:
    """Whether a language model's head is a tensor of its own; None for any other model."""
    head = model.get_output_embeddings()
    if head is None:
        return None
    # All tables, since Marian's decoder may have one that is not the model's input embedding.
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding | Int8Embedding))
    return all(head.weight is not table.weight for table in tables)


def save_pretrained(model: PreTrainedModel, folder: Path) -> None:
    """`save_pretrained` into one safetensors file, which `from_pretrained` gives back as it was.

    A model with blocks is written so that only `load_pretrained` reads it.
    """
    if has_blocks(model):
        save_state(model, folder)
        return
    model.save_pretrained(folder, max_shard_size="1000GB")
    _complete_config(model, folder)


def save_state(model: PreTrainedModel, folder: Path) -> None:
    """Write the configs, and every distinct tensor under the first of its names."""
    save_config(model, folder)
    state = {name: tensor.contiguous() for name, tensor in distinct(model.state_dict()).items()}
    name = WITH_BLOCKS if has_blocks(model) else WEIGHTS
    save_file(state, folder / name, metadata={"format": "pt"})


def weights_file(folder: Path) -> Path:
    """The file of a model directory that has its weights."""
    with_blocks = folder / WITH_BLOCKS
    return with_blocks if with_blocks.is_file() else folder / WEIGHTS


def save_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config, and the generation config where there is one."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _complete_config(model, folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def entries_as_read(config: PretrainedConfig) -> dict[str, Any]:
    """The entries that a `config.json` needs for transformers 4 and 5 to read the same model in it.

    By `tie_word_embeddings` both understand of a T5 whether decoder outputs are scaled, whatever
    transformers 5 has in memory; whether the head is tied, 5 finds from the tensors in the file.
    5 never scales an mT5's. 4 knows nothing of `rope_parameters`, and would take its own defaults.
    """
    entries: dict[str, Any] = {}
    if config.model_type in T5_TYPES:
        entries["tie_word_embeddings"] = scales_outputs(config.model_type, vars(config))
    rope = getattr(config, "rope_parameters", None) or {}
    if "rope_theta" in rope:
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        entries["rope_theta"] = rope["rope_theta"]
        entries["rope_scaling"] = scaling if rope.get("rope_type", "default") != "default" else None
    return entries


def _complete_config(model: PreTrainedModel, folder: Path) -> None:
    """Add `entries_as_read` to the config that is written there."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | entries_as_read(model.config)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def fit_transformers_4(model: PreTrainedModel) -> bool:
    """Change a model, and nothing that it computes, so that transformers 4 reads it as 5 does.

    There a T5's head is tied if, and only if, outputs are scaled; and Pegasus and Marian look up
    the words of encoder and decoder in one table. False: that cannot be, since two differ.
    """
    config = model.config
    if config.model_type in T5_TYPES:
        scaled = scales_outputs(config.model_type, vars(config))
        untied = has_untied_head(model)
        if untied and scaled:
            model.lm_head.weight.data *= config.d_model**-0.5
            config.scale_decoder_outputs = False
        elif not untied and not scaled:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    if config.model_type == "marian" and not config.share_encoder_decoder_embeddings:
        return bool(config.decoder_vocab_size == config.vocab_size)
    if config.model_type in ("pegasus", "marian") and has_untied_head(model):
        tables = [stack.embed_tokens.weight for stack in (model.model.encoder, model.model.decoder)]
        if not torch.equal(*tables):
            return False
        model.model.shared.weight.data.copy_(tables[0])
    return True


def load_pretrained(
    folder: Path,
    head: Head,
    *,
    trust_remote_code: bool = False,
    config: Mapping[str, Any] | None = None,
    generation: GenerationConfig | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> PreTrainedModel:
    """`from_pretrained`, refusing a file whose tensors do not fit the config.

    In float32, or in `dtype`; "auto" is that of the file. Only tensors are read: safetensors where
    there are any, else a `.bin` with `weights_only`.
    `config` has values that come instead of the folder's; for another number of labels in it, a
    classifier's head is drawn anew. `generation` comes instead of the folder's.
    """
    if (folder / WITH_BLOCKS).is_file():
        model = _load_with_blocks(folder, head, config or {}, dtype)
        if generation is not None:
            model.generation_config = generation
        return model
    try:
        own = dict(config or {}) if trust_remote_code else {"config": load_config(folder, config)}
        if generation is not None:
            own["generation_config"] = generation
        model, info = AUTO_CLASSES[head].from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True,
            trust_remote_code=trust_remote_code,
            ignore_mismatched_sizes=bool(config),
            **own,
        )
    except (SafetensorError, UnpicklingError, OSError, ValueError, RuntimeError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    fresh = FRESH if config else ()  # such a head on a pretrained body is what one wants
    for kind in ("missing", "mismatched"):
        found = info.get(f"{kind}_keys") or ()
        names = [name if isinstance(name, str) else name[0] for name in found]
        names = sorted(name for name in names if not name.startswith(fresh))
        if names:
            raise StageError(f"{folder}: {len(names)} {kind} tensors, such as {names[0]}")
    loaded: PreTrainedModel = model
    return loaded


def load_config(folder: Path, values: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """The config of a model directory, with `values` instead of its own. Runs no code of it.

    What computes attention is not for the file to say: it could name a repository of the hub, whose
    code transformers would fetch and run (as in CVE-2026-4372).
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        folder, trust_remote_code=False, **(values or {})
    )
    config._attn_implementation = None  # transformers then chooses; also for configs in this one
    if getattr(config, "chunk_size_feed_forward", 0):
        config.chunk_size_feed_forward = 0  # saves memory, and fails on lengths it does not divide
    return config


def head_of(folder: Path) -> Head:
    """The head that a model directory's config names. Raises StageError."""
    if not (folder / "config.json").is_file():
        raise StageError(f"no model in {folder}: expected a config.json")
    try:
        config = load_config(folder)
    except (OSError, ValueError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    for head, classes in CLASS_NAMES.items():
        if classes.get(config.model_type) in (config.architectures or ()):
            return head
    message = f"its config's `architectures` is {config.architectures}"
    raise StageError(f"cannot tell what kind of model is in {folder}: {message}")


def _load_with_blocks(
    folder: Path, head: Head, config: Mapping[str, Any], dtype: torch.dtype | Literal["auto"]
) -> PreTrainedModel:
    """What `load_pretrained` gives of a model with blocks, also from under another head."""
    try:
        model = build(load_config(folder, config), head)
        state = load_file(folder / WITH_BLOCKS)
        load_generation_config(model, folder)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StageError(f"cannot load the model in {folder}: {_first_line(error)}") from error
    own, base = distinct(model.state_dict()), f"{model.base_model_prefix}."
    below = [any(name.startswith(base) for name in names) for names in (own, state)]
    if below == [True, False]:  # a body without a head has no prefix
        state = {base + name: tensor for name, tensor in state.items()}
    elif below == [False, True]:
        state = {name.removeprefix(base): tensor for name, tensor in state.items()}
    fits = {n for n in own.keys() & state.keys() if own[n].shape == state[n].shape}
    fresh = FRESH if config else ()
    wrong = {
        "missing": (own.keys() - state.keys(), fresh),
        "mismatched": (own.keys() & state.keys() - fits, fresh),
        "unexpected": (state.keys() - own.keys(), (*FRESH, "pooler", f"{base}pooler")),
    }
    for kind, (found, fine) in wrong.items():
        names = sorted(name for name in found if not name.startswith(fine))
        if names:
            raise StageError(f"{folder}: {len(names)} {kind} tensors, such as {names[0]}")
    _load_exactly(model, own | {name: state[name] for name in fits})
    of_file = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    return model.to(of_file if dtype == "auto" else dtype).eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load_exactly(model: PreTrainedModel, state: dict[str, Tensor]) -> None:
    """Copy a state dict with each tied tensor once; every distinct tensor must be in it."""
    own = model.state_dict()
    for name, tensor in distinct(own).items():
        if name not in state:
            raise StageError(f"the weights lack {name}")
        tensor.copy_(state[name])


def load_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Give a model the generation config of its folder, where there is one."""
    from transformers import GenerationConfig

    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a model directory has a tokenizer's files."""
    names = ("tokenizer.json", "vocab.txt", "vocab.json")
    return any((folder / name).is_file() for name in names) or any(folder.glob("*.model"))


def load_tokenizer(source: str | Path, **where: Any) -> PreTrainedTokenizerBase:
    """A fast tokenizer from a folder or, with `revision`, from the hub."""
    try:
        # Without a word on it, transformers asks on the standard input whether code may run.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, **where
        )
    except ValueError as error:
        raise StageError(f"cannot load the tokenizer of {source}: {_first_line(error)}") from error
    # Whether HF_HUB_OFFLINE was set would be saved with it: the same artifact in other bytes.
    tokenizer.init_kwargs.pop("local_files_only", None)
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`save_pretrained`, with the names that transformers 4 knows and 5 takes for its own."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def keep_layers(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> Checkpoint:
    """A new checkpoint with, of each named stack, only the listed layers, renumbered.

    The model is built anew from the smaller config, so that `layer_idx`, caches and the position
    bias of T5's first block are right by construction.
    """
    model, head = checkpoint.model, checkpoint.head
    stacks = stacks_of(model.config, head)
    config = copy.deepcopy(model.config)
    for stack, layers in kept.items():
        for key, value in stacks[stack].config_after(model.config.to_dict(), layers).items():
            setattr(config, key, value)

    def renamed(items: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        new = {}
        for name, tensor in items:
            target: str | None = name
            for stack, layers in kept.items():
                if target is not None and target == name:
                    target = stacks[stack].kept(name, layers)
            if target is not None:
                new[target] = tensor
        return new

    smaller = build(config, head, untied_head=bool(has_untied_head(model)))
    _load_exactly(smaller, renamed(model.state_dict().items()))
    _keep_attention_scale(smaller, kept)
    if model.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)
    masks = renamed(checkpoint.masks.items())
    return Checkpoint(smaller.eval(), checkpoint.tokenizer, head, masks)


def _keep_attention_scale(model: PreTrainedModel, kept: Mapping[str, list[int]]) -> None:
    """Have the layers of a GPT-2 that divides attention scores by a layer's number + 1 give, under
    their new numbers, the scores that they gave: the factor goes into their queries.
    """
    if not getattr(model.config, "scale_attn_by_inverse_layer_idx", False):
        return
    for new, old in enumerate(kept.get("decoder", ())):
        projection = model.base_model.h[new].attn.c_attn
        for tensor in (projection.weight.data, projection.bias.data):
            tensor[..., : model.config.n_embd] *= (new + 1) / (old + 1)


def replace_layers(checkpoint: Checkpoint, layers: Sequence[int], block: Block) -> Checkpoint:
    """A new checkpoint with `block` itself in the place of consecutive layers of the encoder."""
    count = stacks_of(checkpoint.model.config, checkpoint.head)["encoder"].layers
    shorter = keep_layers(checkpoint, {"encoder": [i for i in range(count) if i not in layers[1:]]})
    stack = stacks_of(shorter.model.config, shorter.head)["encoder"]
    put_block(shorter.model, stack, layers[0], block.eval())
    for key, value in stack.with_block(layers[0], block.sizes).items():
        setattr(shorter.model.config, key, value)
    place = f"{stack.prefix}.{layers[0]}."
    shorter.masks = {n: mask for n, mask in shorter.masks.items() if not n.startswith(place)}
    return shorter


def keep_units(
    checkpoint: Checkpoint,
    kept: Iterable[tuple[Units, Sequence[int]]],
    settings: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """A new checkpoint with, of each of the given units, only the listed ones, in that order.

    Every width that the config has one number for must be given for all units it counts. Masks
    are cut as their tensors are. `settings` are other values of the config that change with it.
    """
    model, head = checkpoint.model, checkpoint.head
    config, masks = copy.deepcopy(model.config), dict(checkpoint.masks)
    state = dict(distinct(model.state_dict()))
    for units, indices in kept:
        setattr(config, units.config_key, len(indices))
        if units.config_key == "vocab_size" and hasattr(config, "decoder_vocab_size"):
            config.decoder_vocab_size = len(indices)  # of the one vocabulary
        for name, axis in units.tensors.items():
            for tensors in (state, masks):
                if name in tensors:
                    tensors[name] = take_units(tensors[name], axis, units.count, indices)
    for key, value in (settings or {}).items():
        setattr(config, key, value)
    smaller = build(config, head, untied_head=bool(has_untied_head(model)))
    _load_exactly(smaller, state)
    if model.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)
    return Checkpoint(smaller.eval(), checkpoint.tokenizer, head, masks)


def dequantized(checkpoint: Checkpoint) -> Checkpoint:
    """A float32 checkpoint with the values that a quantized one's weights stand for."""
    source = checkpoint.model
    state = dict(distinct(source.state_dict()))
    for name in [name for name in state if name.endswith("_scale")]:
        weight = name.removesuffix("_scale")
        state[weight] = dequantize(state[weight], state.pop(name))
    model = build(source.config, checkpoint.head, untied_head="lm_head.weight" in state)
    _load_exactly(model, state)
    if source.can_generate():
        model.generation_config = copy.deepcopy(source.generation_config)
    return Checkpoint(model.eval(), checkpoint.tokenizer, checkpoint.head)


def cast(model: PreTrainedModel, weights: str) -> int:
    """Turn all that a model saves into the named floating-point type; gives how many tensors.

    What it does not save stays as it is: a rotary embedding's angles need float32. Raises
    StageError where an entry is too large for the type.
    """
    tensors = distinct(model.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        tensor.data = tensor.data.to(getattr(torch, weights))
        if not bool(torch.isfinite(tensor).all()):
            instead = "bfloat16" if weights == "float16" else "float32 or int8"
            raise StageError(f"{name} has an entry that {weights} cannot hold; take {instead}")
    return len(tensors)


def _quantization(about: Mapping[str, Any]) -> Quantization | None:
    """What `checkpoint.json` says of it; before there was more than int8, it said so otherwise."""
    if activations := about.get("int8_activations"):
        return Quantization(weights="int8", activations=activations)
    found = about.get("quantization")
    return found and Quantization.model_validate(found)


def _load_quantized(folder: Path, head: Head, quantization: Quantization) -> PreTrainedModel:
    state = load_file(weights_file(folder))
    # Only a head that is a tensor of its own is in the file under its own name.
    config = load_config(folder)
    model = build(config, head, untied_head="lm_head.weight" in state)
    if quantization.half:
        cast(model, quantization.weights)
    scales = {name.removesuffix("_scale"): name for name in state if name.endswith("_scale")}
    put_quantized(model, {name: (state[name], state[scale]) for name, scale in scales.items()})
    set_activations(model, quantization)
    _load_exactly(model, state)
    load_generation_config(model, folder)
    return model
