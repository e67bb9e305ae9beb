"""SparseGPT: prune a layer, and let what stays make up for what went (arXiv 2301.00774)."""

from __future__ import annotations

import torch
from torch import Tensor

from compressor.compression.thresholds import prune_blocks, prune_smallest, split_count

BLOCK = 128
"""Columns that are updated together; without N:M their mask is chosen together too."""
DAMPING = 0.01
"""Share of the mean of the Hessian's diagonal that is added to it."""


def block_counts(masks: list[Tensor], count: int) -> list[list[int]]:
    """Choose how many entries go in each block of columns of each matrix, `count` together.

    masks: [rows, columns] each, True where an entry is left. In proportion to what is left.
    """
    left = [
        [int(part.count_nonzero()) for part in torch.split(mask, BLOCK, dim=1)] for mask in masks
    ]
    goes = iter(split_count([size for sizes in left for size in sizes], count))
    return [[next(goes) for _ in sizes] for sizes in left]


@torch.no_grad()
def prune_with_sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    mask: Tensor,
    counts: list[int] | None = None,
    n_m: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune one layer: its new weight, zero where masked, the rest updated; and its new mask.

    weight: [outputs, inputs], float. hessian: [inputs, inputs], `Σ x xᵀ` over the calibration
    tokens. mask: bool, True where an entry may stay. counts: how many more entries go in each
    block of `BLOCK` columns; or n_m: how many of how many neighbours in a row stay.

    Column by column, from the left: the error that pruning makes in a column is spread over the
    columns to its right so that `‖W x − W' x‖²` grows least. With N:M a group's mask is chosen
    when its first column is reached. Weights of inputs that are always 0 cost nothing: they go
    first, and those that stay do not change.
    """
    new, kept = weight.detach().float().clone(), mask.clone()
    inverse = _inverse_factor(hessian.float())
    active = hessian.diagonal() != 0
    columns = new.shape[1]
    block = BLOCK if n_m is None else max(n_m[1], BLOCK // n_m[1] * n_m[1])
    for index, first in enumerate(range(0, columns, block)):
        last = min(first + block, columns)
        part, stays = new[:, first:last], kept[:, first:last]
        factor = inverse[first:last, first:last]
        spread, counted = factor.diagonal(), active[first:last]
        if n_m is None:
            assert counts is not None
            # Zero where masked: what earlier columns pushed into a masked entry is an error too.
            chosen = {"": stays.contiguous()}
            score = torch.where(stays & counted, part / spread, 0)
            prune_smallest({"": score}, chosen, counts[index])
            stays.copy_(chosen[""])
        errors = torch.zeros_like(part)
        for column in range(last - first):
            if n_m is not None and column % n_m[1] == 0:
                group = slice(column, column + n_m[1])
                chosen = {"": stays[:, group]}
                score = torch.where(counted[group], part[:, group] / spread[group], 0)
                prune_blocks({"": score}, chosen, *n_m)
                stays[:, group] = chosen[""]
            error = torch.where(stays[:, column], 0, part[:, column]) / factor[column, column]
            part[:, column:] -= error[:, None] * factor[column, column:]
            part[:, column].mul_(stays[:, column])
            errors[:, column] = error
        new[:, last:] -= errors @ inverse[first:last, last:]
    return new.mul_(kept).to(weight.dtype), kept


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Compute the upper Cholesky factor of the damped Hessian's inverse.

    Of the Hessian divided by its mean diagonal, which changes neither masks nor weights; inputs
    that are always 0 are no part of that mean.
    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    damped = hessian / (1 if dead.all() else diagonal[~dead].double().mean())
    damped.diagonal()[dead] = 1
    damped.diagonal().add_(DAMPING)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
