"""SparseGPT: prune a layer, and let what stays make up for what went (arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Curvature:
    """What SparseGPT knows of a layer's inputs; layers that read the same share it."""

    factor: Tensor
    """The upper Cholesky factor of the damped Hessian's inverse, [inputs, inputs]."""
    active: Tensor
    """True for each input that is not always 0."""


@torch.no_grad()
def factorize_hessian(hessian: Tensor) -> Curvature:
    """Factorize `Σ x xᵀ` over the calibration tokens, [inputs, inputs], float32; it is overwritten.

    Divided by its mean diagonal, which changes neither masks nor weights; inputs that are always 0
    are no part of that mean.
    """
    diagonal = hessian.diagonal()
    active = diagonal != 0
    damped = hessian.div_(diagonal[active].double().mean()) if active.any() else hessian
    damped.diagonal()[~active] = 1
    damped.diagonal().add_(DAMPING)
    torch.linalg.cholesky(damped, out=damped)
    torch.cholesky_inverse(damped, out=damped)
    torch.linalg.cholesky(damped, upper=True, out=damped)
    return Curvature(damped, active)


@torch.no_grad()
def prune_with_sparsegpt(
    weight: Tensor,
    curvature: Curvature,
    mask: Tensor,
    counts: list[int] | None = None,
    n_m: tuple[int, int] | None = None,
    gradients: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Prune one layer: its new weight, zero where masked, the rest updated; and its new mask.

    weight: [outputs, inputs], float. mask: bool, True where an entry may stay. counts: how many
    more entries go in each block of `BLOCK` columns; or n_m: how many of how many neighbours in a
    row stay. gradients: [outputs], above 0, by which the squared error of each output counts where
    rows are compared; as one where there are none.

    Column by column, from the left: the error that pruning makes in a column is spread over the
    columns to its right so that `‖W x − W' x‖²` grows least. With N:M a group's mask is chosen
    when its first column is reached. Weights of inputs that are always 0 cost nothing: they go
    first, and those that stay do not change.
    """
    new = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if gradients is not None:
        rows = (gradients / gradients.mean()).sqrt()[:, None]
        new *= rows
    kept, inverse = mask.clone(memory_format=torch.contiguous_format), curvature.factor
    columns = new.shape[1]
    block = BLOCK if n_m is None else max(n_m[1], BLOCK // n_m[1] * n_m[1])
    for index, first in enumerate(range(0, columns, block)):
        last = min(first + block, columns)
        inside = slice(first, last)
        factor, active = inverse[inside, inside], curvature.active[inside]
        if n_m is None:
            assert counts is not None
            # Zero where masked: what earlier columns pushed into a masked entry is an error too.
            chosen = {"": kept[:, inside].contiguous()}
            score = torch.where(chosen[""] & active, new[:, inside] / factor.diagonal(), 0)
            prune_smallest({"": score}, chosen, counts[index])
            kept[:, inside] = chosen[""]
        part, stays = new[:, inside].T.contiguous(), kept[:, inside].T.contiguous()
        errors = _prune_columns(part, factor, active, stays, n_m)
        new[:, inside], kept[:, inside] = part.T, stays.T
        new[:, last:] -= errors.T.contiguous() @ inverse[inside, last:]
    if gradients is not None:
        new /= rows
    return new.mul_(kept).to(weight.dtype), kept


def _prune_columns(
    part: Tensor, factor: Tensor, active: Tensor, stays: Tensor, n_m: tuple[int, int] | None
) -> Tensor:
    """Prune a block of columns, in place; give the errors that are spread beyond it.

    part, stays and the errors are [columns, rows]: a column lies in one piece, which makes this two
    to four times as fast as if it were spread over as many pages of memory as there are rows.
    """
    errors = torch.empty_like(part)
    for column in range(len(part)):
        if n_m is not None and column % n_m[1] == 0:
            group = slice(column, column + n_m[1])
            chosen = {"": stays[group].T.contiguous()}
            spread = factor.diagonal()[group]
            score = torch.where(active[group], part[group].T / spread, 0)
            prune_blocks({"": score}, chosen, *n_m)
            stays[group] = chosen[""].T
        error = torch.where(stays[column], 0, part[column]) / factor[column, column]
        part[column:] -= error * factor[column, column:, None]
        part[column].mul_(stays[column])
        errors[column] = error
    return errors
