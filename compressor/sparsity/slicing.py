"""Cutting equal units out of tensors, and judging them. No models, no names here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def take_units(tensor: Tensor, axis: int, count: int, kept: Sequence[int]) -> Tensor:
    """`tensor` with only the `kept` of the `count` equal blocks along `axis`, in that order.

    A (512, 64) query weight of 8 heads, kept [2, 5], gives (128, 64). Raises ValueError where
    `count` does not divide the axis.
    """
    length = tensor.shape[axis]
    if length % count:
        raise ValueError(f"axis {axis} of length {length} does not have {count} equal blocks")
    starts = torch.tensor(list(kept), device=tensor.device)[:, None] * (length // count)
    places = starts + torch.arange(length // count, device=tensor.device)
    return tensor.index_select(axis, places.flatten())


def unit_sums(entries: Iterable[tuple[Tensor, int]], count: int) -> Tensor:
    """Sum over all entries that each unit owns: (tensor, axis) pairs → float64 of shape (count,).

    With squared weights as entries, this is the square of a unit's L2 norm; with any other
    non-negative score of single entries, the unit's share of it.
    """
    total = torch.zeros(count, dtype=torch.float64)
    for tensor, axis in entries:
        blocks = tensor.detach().cpu().double().movedim(axis, 0).reshape(count, -1)
        total += blocks.sum(1)
    return total


def strongest(scores: Tensor, width: int) -> list[int]:
    """The `width` indices of the highest scores, rising; of equal ones the first stay."""
    order = torch.sort(scores, descending=True, stable=True).indices
    return sorted(order[:width].tolist())
