"""Apply pruning masks to weights, and count what they leave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHUNK = 2**18
"""Entries looked at together: what is computed from them stays in a processor's cache."""

_BITS = {
    torch.float32: (torch.int32, 0x7FFFFFFF),
    torch.bfloat16: (torch.int16, 0x7FFF),
    torch.float16: (torch.int16, 0x7FFF),
}


def count_left(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> int:
    """Count the entries of `weights` that no mask has taken."""
    return sum(
        _count_true(masks[name]) if name in masks else weight.numel()
        for name, weight in weights.items()
    )


def _view_as_numpy(tensor: Tensor) -> Any:
    """Give the same memory to NumPy where it is a CPU's, else the tensor itself."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def _count_true(mask: Tensor) -> int:
    functions = np if mask.device.type == "cpu" else torch
    return int(functions.count_nonzero(_view_as_numpy(mask)))


def apply_mask(weight: Tensor, mask: Tensor) -> None:
    """Set to +0, in place, what `mask` (bool, of the weight's shape) has False, whatever it was.

    Chunk by chunk, on the bits: `weight.mul_(mask)` first makes a float copy of the whole mask,
    which takes 8 to 30 times as long, and leaves -0 and NaN.
    """
    if not weight.is_contiguous() or weight.dtype not in _BITS:
        weight.masked_fill_(~mask, 0)
        return
    integer = _BITS[weight.dtype][0]
    bits = torch.split(weight.detach().view(-1).view(integer), CHUNK)
    for part, kept in zip(bits, torch.split(mask.reshape(-1), CHUNK), strict=True):
        part.bitwise_and_(kept.to(integer).neg_())
