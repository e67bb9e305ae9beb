"""Global magnitude pruning: exact counts, and the same entries as torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compressor.sparsity.magnitude import global_l1


def test_a_hand_computed_case() -> None:
    """Of 6 entries over two tensors, half go: the smallest magnitudes, wherever they are."""
    weights = {"a": torch.tensor([[1.0, -5.0], [0.5, 3.0]]), "b": torch.tensor([[-0.1, 4.0]])}
    masks = global_l1(weights, {}, 0.5)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [[False, True]]


def test_what_is_left_is_pruned_further_and_what_is_gone_stays_gone() -> None:
    """The amount is of what is left; `round(0.5 × 3)` = 2 of the three that stay."""
    weights = {"a": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    masks = {"a": torch.tensor([True, True, True, False])}
    assert global_l1(weights, masks, 0.5)["a"].tolist() == [False, False, True, False]


@pytest.mark.parametrize("amount", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_exactly_the_asked_number_goes_where_all_are_equal(amount: float) -> None:
    """Ties at the threshold: the count is exact, and the earlier entries go first."""
    weights = {"a": torch.full((5, 5), 2.0), "b": torch.full((15,), -2.0)}
    masks = global_l1(weights, {}, amount)
    flat = torch.cat([masks["a"].flatten(), masks["b"]])
    gone = round(amount * 40)
    assert flat.tolist() == [False] * gone + [True] * (40 - gone)


def test_the_same_entries_as_torch_over_several_rounds() -> None:
    """`torch.nn.utils.prune.global_unstructured`, pruned three times over, gives equal masks."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleList(nn.Linear(size, 40, bias=False) for size in (30, 50, 7))
    weights = {}
    for index, layer in enumerate(layers):
        values = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data.copy_(values)
        weights[str(index)] = values
    masks: dict[str, torch.Tensor] = {}
    for amount in (0.1, 0.3, 0.55):
        masks = global_l1(weights, masks, amount)
        prune.global_unstructured(
            [(layer, "weight") for layer in layers], prune.L1Unstructured, amount=amount
        )
        for index, layer in enumerate(layers):
            assert torch.equal(masks[str(index)], layer.weight_mask.bool())
