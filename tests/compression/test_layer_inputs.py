"""What comes into layers, one layer after the other, against forwards of the whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor.compression.importance import linear_modules
from compressor.compression.layer_inputs import add_products, sum_by_layer
from compressor.compression.pruning import Grouping, Pruner
from compressor.models.checkpoint import Checkpoint
from compressor.training.losses import LabelLoss
from tests.compression.test_sparsegpt import prune_as_published
from tests.harness.models import WINDOW, build_case, examples

FAMILIES = [
    ("llama", {}, "causal_lm"),
    ("llama", {}, "sequence_classification"),  # run with a cache, which has keys of a first run
    ("qwen2", WINDOW, "causal_lm"),
    ("gpt2", {}, "sequence_classification"),
    ("bert", {}, "sequence_classification"),
    ("distilbert", {}, "sequence_classification"),
    ("bart", {}, "seq2seq_lm"),
]


class OnlyPad:
    pad_token_id, eos_token_id = 0, 1


def build(
    model_type: str, changes: dict[str, Any], head: str
) -> tuple[Checkpoint, list[list[str]]]:
    """Give a model, and the weights of each layer, in the order in which it runs them."""
    checkpoint = build_case(model_type, changes, head)
    checkpoint.tokenizer = OnlyPad()  # type: ignore[assignment]  # nothing else is read of it
    facts = checkpoint.derive_facts()
    names = dict.fromkeys(name for group in facts.list_groups().values() for name in group)
    paths = [path for stack in facts.list_stacks().values() for path in stack.paths]
    return checkpoint, [[n for n in names if n.startswith(f"{path}.")] for path in paths]


def sum_products(checkpoint: Checkpoint, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """`Σ x xᵀ` of what comes into these weights' modules in plain forwards, in float64."""
    sums: dict[str, Tensor] = {}

    def add(name: str, inputs: Tensor) -> None:
        tokens = inputs.flatten(0, -2).double()
        sums[name] = sums.get(name, 0) + tokens.T @ tokens

    hooks = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _, given, name=name: add(name, given[0])
        )
        for name in names
    ]
    rows = examples(checkpoint.head, 5)
    with torch.no_grad():
        for index in range(len(rows)):
            model(**rows.batch([index], 0))
    for hook in hooks:
        hook.remove()
    return sums


@pytest.mark.parametrize("origin", ["dense", "pruned"])
@pytest.mark.parametrize(("model_type", "changes", "head"), FAMILIES)
def test_each_layer_is_pruned_as_published_by_what_the_whole_model_sends_into_it(
    model_type: str, changes: dict[str, Any], head: str, origin: Any
) -> None:
    """Of the dense model; or of one whose layers before are pruned, and not yet this one."""
    checkpoint, layers = build(model_type, changes, head)
    reference = copy.deepcopy(checkpoint.model)
    grouping = Grouping(importance="sparsegpt")
    pruner = Pruner(checkpoint, grouping, examples=examples(head, 5), origin=origin)
    pruner.prune_group([name for names in layers for name in names], 0, (2, 4))
    for names in layers:
        products = sum_products(checkpoint, reference, names)
        for name in names:
            module = reference.get_submodule(name.removesuffix(".weight"))
            transposed = type(module).__name__ == "Conv1D"
            old, new = module.weight.detach(), checkpoint.get_parameter(name).detach()
            old, new = (old.T, new.T) if transposed else (old, new)
            expected = prune_as_published(old, products[name], n_m=(2, 4))
            assert torch.equal(new != 0, expected != 0), name
            assert torch.allclose(new.double(), expected, atol=1e-3), name
        if origin == "pruned":
            for name in names:
                reference.get_parameter(name).data.copy_(checkpoint.get_parameter(name))


@pytest.mark.parametrize("origin", ["dense", "pruned"])
def test_sums_of_one_layer_are_held_at_a_time(origin: Any) -> None:
    """And queries, keys and values share one, as gates and what they multiply do."""
    checkpoint, layers = build("llama", {}, "causal_lm")
    names = [*(name for names in layers for name in names), "lm_head.weight"]
    weights = {name: checkpoint.get_parameter(name) for name in names}
    modules = linear_modules(checkpoint.model, weights)
    stacks, rows = [list(checkpoint.model.model.layers)], examples("causal_lm", 3)
    batches = [rows.batch([index], 0) for index in range(len(rows))]
    loss = LabelLoss(checkpoint.model)
    for expected, sums in zip(
        [*layers, ["lm_head.weight"]],
        sum_by_layer(modules, stacks, loss, batches, add_products, origin),
        strict=True,
    ):
        assert sums.keys() == set(expected)
        assert len({total.data_ptr() for total in sums.values()}) == (4 if len(sums) > 1 else 1)
        sums.clear()
    assert not any("forward" in vars(layer) for layer in stacks[0])
