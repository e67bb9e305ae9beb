"""GPTQ: round a layer's weights, and let those still to come make up for it (arXiv 2210.17323).

Which weights become what is decided in `models.quantization`; how they are stored and computed
with is `models.quantized_layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, factorize
from compressor.compression.importance import linear_modules
from compressor.compression.layer_inputs import add_products
from compressor.compression.sparsegpt import BLOCK, Curvature
from compressor.models.quantization import Kind
from compressor.models.quantized_layers import (
    Quantized,
    dequantize_weight,
    pack_entries,
    quantize_rows,
    to_int4_scales,
)

SHARES = tuple(1 - step / 50 for step in range(21))
"""Scales that are tried for a group, as shares of the one that clips nothing: down to 0.6."""
TOO_LARGE = (
    "activations on the calibration rows are too large; take method: round, or a model whose "
    "training has not diverged"
)


def quantize_with_gptq(
    calibration: Calibration,
    kinds: Mapping[str, Kind],
    group_size: int,
    advance: Callable[[int], object],
) -> dict[str, Quantized]:
    """Round the named weights of `Linear` layers, in place, and give them as they are stored.

    A weight that no row reaches is left out. `advance` is told how many more are done.
    """
    checkpoint, rounded = calibration.checkpoint, dict[str, Quantized]()
    weights = {name: checkpoint.get_parameter(name) for name in kinds}
    modules = linear_modules(checkpoint.model, weights)
    for shared, hessian in calibration.sum_by_layer(modules, add_products, "dense"):
        curvature = factorize(next(iter(shared)), hessian, TOO_LARGE)
        for name in shared:
            rounded[name] = round_columns(weights[name], curvature, kinds[name], group_size)
            weights[name].data.copy_(dequantize_weight(*rounded[name]))
        advance(len(shared))
    return rounded


@torch.no_grad()
def round_columns(weight: Tensor, curvature: Curvature, kind: Kind, group_size: int) -> Quantized:
    """Round one layer's weight, [outputs, inputs], column by column from the left.

    The error that rounding makes in a column is spread over the columns to its right, so that
    `‖W x − W' x‖²` grows least. The scale of an int4 group is chosen when its first column is
    reached; int8 has that of each row as it was. Zeros stay zeros, and what would be pushed into
    one is an error too.
    """
    new = weight.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    stays, columns, inverse = (new != 0).T, new.shape[1], curvature.factor
    entries = torch.empty(columns, len(new), device=new.device)
    row_scale = quantize_rows(new)[1]
    scales = [row_scale.flatten()] if kind == "int8" else []
    block = BLOCK if kind == "int8" else max(group_size, BLOCK // group_size * group_size)
    for first in range(0, columns, block):
        last = min(first + block, columns)
        inside = slice(first, last)
        part = new[:, inside].T.contiguous()
        errors = _round_block(
            part,
            inverse[inside, inside],
            stays[inside].contiguous(),
            scales,
            0 if kind == "int8" else group_size,
        )
        entries[inside] = part
        new[:, last:] -= errors.T.contiguous() @ inverse[inside, last:]
    rounded = entries.T.contiguous().to(torch.int8)
    if kind == "int8":
        return rounded, row_scale
    return pack_entries(rounded), torch.stack(scales, dim=1).bfloat16()


def _round_block(
    part: Tensor, factor: Tensor, stays: Tensor, scales: list[Tensor], group_size: int
) -> Tensor:
    """Turn a block of columns into integers, in place; give the errors that are spread beyond it.

    part, stays and the errors are [columns, rows], as in `sparsegpt`. scales: one of the rows,
    which is taken, or with a `group_size` a list to which those of each group are added.
    """
    low, high = (-8, 7) if group_size else (-127, 127)
    errors = torch.empty_like(part)
    for column in range(len(part)):
        if group_size and column % group_size == 0:
            group = slice(column, column + group_size)
            scales.append(choose_scales(part[group] * stays[group], factor.diagonal()[group]))
        entry = torch.round(part[column] / scales[-1]).clamp_(low, high).mul_(stays[column])
        errors[column] = (part[column] - entry * scales[-1]) / factor[column, column]
        part[column] = entry
        part[column + 1 :].addr_(factor[column, column + 1 :], errors[column], alpha=-1)
    return errors


def choose_scales(group: Tensor, spread: Tensor) -> Tensor:
    """Choose int4 scales, [rows], of a group [columns, rows]: those of least weighted error.

    `spread`, [columns], is the diagonal of the Cholesky factor: an error e in column j costs
    `(e / spread_j)²`. The largest entry by magnitude may lie on either side of the 16 values, and
    may be clipped. What they are is rounded to bfloat16, as they are stored.
    """
    extreme = group.gather(0, group.abs().argmax(dim=0, keepdim=True))[0]
    best = to_int4_scales(extreme / -8)
    least = torch.full_like(extreme, torch.inf)
    for full in (extreme / -8, extreme / 7):
        for share in SHARES:
            scale = to_int4_scales(full * share)
            rounded = torch.round(group / scale).clamp_(-8, 7).mul_(scale)
            cost = (rounded.sub_(group) / spread[:, None]).square_().sum(0)
            best = torch.where(cost < least, scale, best)
            least = torch.minimum(cost, least)
    return best
