"""A model's weights pruned by what comes into them: each layer against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from compressor.compression.calibration import list_layers
from compressor.compression.importance import taylor_scores
from compressor.compression.pruning import Grouping, Pruner
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import Head, build_model
from compressor.training.losses import LabelLoss
from tests.compression.test_sparsegpt import prune_as_published
from tests.harness.models import PICO

ROWS = Examples(
    [[5, 9, 30, 1], [7, 1], [11, 12, 13, 14, 15, 16, 1], [40, 2, 1], [33, 21, 20, 1]],
    [[6, 8, 1], [44, 3, 17, 29, 1], [9, 1], [22, 1], [48, 47, 1]],
    "joined",
)
NAMES = {
    "gpt2": ["transformer.h.1.mlp.c_fc.weight", "transformer.h.2.attn.c_attn.weight"],
    "llama": ["model.layers.1.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"],
}


def pico(kind: str) -> Checkpoint:
    torch.manual_seed(4)
    config = AutoConfig.for_model(kind, **PICO[kind], initializer_range=0.5)
    backend = Tokenizer(WordLevel({"<pad>": 0, "</s>": 1}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    return Checkpoint(build_model(config, "causal_lm").eval(), tokenizer, "causal_lm")


def pruner(checkpoint: Checkpoint, importance: Any, seed: int = 0) -> Pruner:
    return Pruner(checkpoint, Grouping(importance=importance), seed=seed, examples=ROWS)


def inputs_of(checkpoint: Checkpoint, name: str) -> Tensor:
    """What comes into a layer at every real token of every row: [tokens, inputs]."""
    seen: list[Tensor] = []
    module = checkpoint.model.get_submodule(name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.no_grad():
        for index in range(len(ROWS)):
            source, target = ROWS.sources[index], ROWS.targets[index]
            checkpoint.model(input_ids=torch.tensor([source + target]))
    hook.remove()
    return torch.cat(seen)


def as_rows(kind: str, tensor: Tensor) -> Tensor:
    """[outputs, inputs]; GPT-2's are the other way round."""
    return tensor.T if kind == "gpt2" else tensor


@pytest.mark.parametrize("kind", NAMES)
def test_n_m_pruning_with_updates_is_the_papers_for_each_layer(kind: str) -> None:
    """From all rows, each without padding, and as the model was before the group was pruned."""
    checkpoint, names = pico(kind), NAMES[kind]
    expected = {}
    for name in names:
        inputs, weight = inputs_of(checkpoint, name), checkpoint.get_parameter(name).detach()
        expected[name] = prune_as_published(as_rows(kind, weight), inputs.T @ inputs, n_m=(2, 4))
    pruner(checkpoint, "sparsegpt").prune_group(names, 0, (2, 4))
    for name in names:
        weight = as_rows(kind, checkpoint.get_parameter(name).detach())
        assert torch.equal(as_rows(kind, checkpoint.masks[name]), expected[name] != 0)
        assert torch.allclose(weight.double(), expected[name], atol=1e-3)


@pytest.mark.parametrize("kind", NAMES)
def test_each_row_of_a_layer_loses_what_weighs_least_on_its_inputs(kind: str) -> None:
    """Half of each row by |w| · ‖x‖; a second time half of what was left."""
    checkpoint, names = pico(kind), NAMES[kind]
    scores = {}
    for name in names:
        weight = as_rows(kind, checkpoint.get_parameter(name).detach())
        scores[name] = weight.abs() * inputs_of(checkpoint, name).norm(dim=0)
    entries = sum(score.numel() for score in scores.values())
    for left in (2, 4):
        count = entries // left
        assert pruner(checkpoint, "wanda").prune_group(names, count) == count
        if left == 2:
            for name, score in scores.items():
                kept = torch.zeros_like(score, dtype=torch.bool)
                best = score.argsort(dim=1, descending=True)[:, : score.shape[1] // 2]
                kept.scatter_(1, best, value=True)
                assert torch.equal(as_rows(kind, checkpoint.masks[name]), kept)
        assert not any(
            bool(checkpoint.get_parameter(name)[~checkpoint.masks[name]].any()) for name in names
        )


HEADS: dict[str, Head] = {
    **dict.fromkeys(("gpt2", "llama", "qwen3"), "causal_lm"),
    **dict.fromkeys(("t5", "longt5", "bart"), "seq2seq_lm"),
    **dict.fromkeys(("bert", "distilbert"), "sequence_classification"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_computing_layers_twice_changes_no_bit_of_a_score(kind: str) -> None:
    """In two batches, with T5's position biases that a layer hands on; layers are as before."""
    torch.manual_seed(4)
    values = PICO[kind] | ({"decoder_start_token_id": 0} if "t5" in kind else {})
    config = AutoConfig.for_model(kind, **values, initializer_range=0.5)
    checkpoint = Checkpoint(build_model(config, HEADS[kind]).eval(), None, HEADS[kind])
    loss, batches = LabelLoss(checkpoint.model), []
    for length in (8, 5):
        ids = torch.arange(4, 4 + 2 * length).view(2, length)
        labels = torch.tensor([1, 0]) if loss.classifies else ids
        batches.append({"input_ids": ids, "attention_mask": ids > 4, "labels": labels})
    weights = {n: p for n, p in checkpoint.model.named_parameters() if p.dim() > 1}
    layers = [layer for stack in list_layers(checkpoint) for layer in stack]
    plain = taylor_scores(weights, loss, batches)
    scores = taylor_scores(weights, loss, batches, layers)
    assert all(torch.equal(scores[name], plain[name]) for name in weights)
    assert not any("forward" in vars(layer) for layer in layers)


@pytest.mark.parametrize("kind", NAMES)
def test_the_least_change_of_the_loss_goes_first_and_what_is_gone_stays_so(kind: str) -> None:
    """By the gradient over all rows; pruned twice, as many entries more are gone."""
    checkpoint, names = pico(kind), NAMES[kind]
    weights = [checkpoint.get_parameter(name) for name in names]
    loss = torch.tensor(0.0)
    for index in range(len(ROWS)):
        source, target = ROWS.sources[index], ROWS.targets[index]
        logits = checkpoint.model(input_ids=torch.tensor([source + target])).logits[0]
        log_probabilities = logits.log_softmax(-1)[len(source) - 1 : -1]
        loss = loss - log_probabilities.gather(1, torch.tensor(target)[:, None]).sum()
    gradients = torch.autograd.grad(loss, weights)
    scores = [(w * g).abs().detach() for w, g in zip(weights, gradients, strict=True)]
    threshold = torch.cat([score.flatten() for score in scores]).sort().values[300]
    assert pruner(checkpoint, "taylor").prune_group(names, 300) == 300
    for name, score in zip(names, scores, strict=True):
        assert torch.equal(checkpoint.masks[name], score >= threshold)
    before = {name: checkpoint.masks[name].clone() for name in names}
    assert pruner(checkpoint, "taylor").prune_group(names, 200) == 200
    assert not any(bool((checkpoint.masks[name] & ~before[name]).any()) for name in names)
    assert sum(int((~checkpoint.masks[name]).sum()) for name in names) == 500
