"""Which entries global magnitude pruning takes from a group of tensors: exact counts, no models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def global_l1(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], amount: float
) -> dict[str, Tensor]:
    """New masks after `round(amount × what is left)` more entries of the whole group are masked.

    What goes is smallest in magnitude over all tensors together, among the entries that `masks`
    (name → bool of the weight's shape, True where an entry stays; missing is all True) still
    leaves; of equal magnitudes the earlier entry, in the order of `weights` and then row by row,
    goes first. As `torch.nn.utils.prune.global_unstructured` with L1, but for the order of ties.
    """
    keep = {
        name: masks.get(name, torch.ones_like(weight, dtype=torch.bool)).clone()
        for name, weight in weights.items()
    }
    left = sum(int(mask.count_nonzero()) for mask in keep.values())
    count = round(amount * left)
    if count == 0:
        return keep
    magnitudes = {name: weight.detach().abs().float() for name, weight in weights.items()}
    threshold = _kth_smallest([magnitudes[name][keep[name]] for name in weights], count)
    below = sum(int((magnitudes[n][keep[n]] < threshold).sum()) for n in weights)
    ties = count - below
    for name in weights:
        magnitude, mask = magnitudes[name], keep[name]
        equal = (magnitude == threshold) & mask
        mask &= magnitude >= threshold
        if ties and (found := int(equal.sum())):
            taken = min(ties, found)
            first = equal.flatten().nonzero().flatten()[:taken]
            mask.view(-1)[first] = False
            ties -= taken
    return keep


def _kth_smallest(parts: list[Tensor], count: int) -> Tensor:
    return torch.cat(parts).kthvalue(count).values
