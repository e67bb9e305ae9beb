"""Which entries go: exact counts, the same entries as torch's own, whatever the numbers are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from compressor.compression import thresholds
from compressor.compression.thresholds import (
    prune_blocks,
    prune_rows,
    prune_smallest,
    row_counts,
    split_count,
)
from compressor.models.masks import apply_mask

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def by_sorting(values: dict[str, Tensor], masks: dict[str, Tensor], count: int) -> Tensor:
    """The masks, one after the other, as a stable sort of everything gives them."""
    flat = torch.cat(
        [torch.where(masks[n], v.abs().float(), -1).flatten() for n, v in values.items()]
    )
    gone = int((flat < 0).sum()) + count
    expected = torch.ones_like(flat, dtype=torch.bool)
    expected[flat.sort(stable=True).indices[:gone]] = False
    return expected


def _one_large(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    values = torch.full(shape, 1e-3)
    values.view(-1)[3] = 1e4
    return values + 1e-9 * torch.rand(shape, generator=generator)


DRAWS: dict[str, Callable[[tuple[int, ...], torch.Generator], Tensor]] = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "few values": lambda shape, g: torch.randint(-3, 4, shape, generator=g).float(),
    "many scales": lambda shape, g: (
        torch.randn(shape, generator=g) * 10.0 ** torch.randint(-30, 30, shape, generator=g)
    ),
    "one large": _one_large,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("draw", DRAWS)
def test_the_same_entries_as_a_stable_sort(monkeypatch, dtype, draw) -> None:
    """Several rounds over several tensors, with chunks and intervals so small that all happens."""
    monkeypatch.setattr(thresholds, "CHUNK", 256)
    monkeypatch.setattr(thresholds, "SAMPLE", 32)
    monkeypatch.setattr(thresholds, "INSIDE", 40)
    monkeypatch.setattr(thresholds, "BINS", 4)
    generator, shapes = torch.Generator().manual_seed(3), [(40, 31), (7,), (9, 64)]
    values = {str(i): DRAWS[draw](s, generator).to(dtype) for i, s in enumerate(shapes)}
    masks = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    for count in (0, 1, 200, 700, 3):
        expected = by_sorting(values, masks, count)
        prune_smallest(values, masks, count)
        assert torch.equal(torch.cat([masks[n].flatten() for n in values]), expected)
        for name, value in values.items():
            apply_mask(value, masks[name])


def test_the_same_entries_as_torch_over_several_rounds() -> None:
    """`torch.nn.utils.prune.global_unstructured`, pruned three times over, gives equal masks."""
    generator = torch.Generator().manual_seed(0)
    layers = nn.ModuleList(nn.Linear(size, 40, bias=False) for size in (30, 50, 7))
    weights = {}
    for index, layer in enumerate(layers):
        values = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data.copy_(values)
        weights[str(index)] = values
    masks: dict[str, Tensor] = {}
    for amount in (0.1, 0.3, 0.55):
        prune_smallest(weights, masks, round(amount * thresholds.count_left(masks, weights)))
        prune.global_unstructured(
            [(layer, "weight") for layer in layers], prune.L1Unstructured, amount=amount
        )
        for index, layer in enumerate(layers):
            apply_mask(weights[str(index)], masks[str(index)])
            assert torch.equal(masks[str(index)], layer.weight_mask.bool())
            assert torch.equal(weights[str(index)], layer.weight.detach())


def test_shares_add_up_and_follow_sizes() -> None:
    """Largest remainders first; a part never gets more than it has."""
    assert split_count([3, 3, 3], 4) == [2, 1, 1]
    assert split_count([10, 1, 0], 11) == [10, 1, 0]
    assert split_count([0, 0], 0) == [0, 0]
    assert split_count([1, 2], 1) == [0, 1]


def test_rows_lose_in_proportion_and_the_sum_is_exact() -> None:
    """Wanda's scope: scores are compared inside a row only."""
    score = torch.tensor([[1.0, 2.0, 3.0, 4.0], [40.0, 30.0, 20.0, 10.0]])
    mask = torch.ones_like(score, dtype=torch.bool)
    mask = prune_rows(score, mask, *row_counts([mask], 4))
    assert mask.tolist() == [[False, False, True, True], [True, True, False, False]]
    mask = prune_rows(score * mask, mask, *row_counts([mask], 3))
    assert mask.tolist() == [[False, False, False, False], [True, False, False, False]]


def test_an_entry_without_a_score_is_not_taken_for_one_that_is_gone() -> None:
    """A row whose live entry scores 0, as of an input that is always 0, keeps what is masked."""
    mask = torch.tensor([[True, False, True, True]])
    score = torch.tensor([[0.0, 0.0, 1.0, 2.0]])
    assert torch.equal(prune_rows(score, mask, torch.tensor([0])), mask)
    assert prune_rows(score, mask, torch.tensor([1])).tolist() == [[False, False, True, True]]


def test_two_of_four_keeps_the_two_best_of_each_four() -> None:
    """Along a row, by magnitude; what was masked before stays so and counts as gone."""
    scores = {"a": torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])}
    masks: dict[str, Tensor] = {}
    prune_blocks(scores, masks, 2, 4)
    assert masks["a"].tolist() == [[False, True, True, False, False, False, True, True]]
    masks = {"a": torch.tensor([[True, False, False, False, True, True, True, True]])}
    prune_blocks(scores, masks, 2, 4)
    assert masks["a"][0, :4].tolist() == [True, False, False, False]
    assert int(masks["a"].sum()) == 3
