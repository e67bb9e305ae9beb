"""One tensor as a bit mask and the values that the mask keeps. No names, models or files.

The bitmask form of a sparse tensor, as in compressed-tensors' "sparse-bitmask": one bit for each
entry says whether it is there, and the entries that are follow each other, row by row. At 0.3 kept
this takes less than half of the 4-byte index that a coordinate form spends on each kept entry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from compressor.sparsity.int8 import dequantize_rows, quantize_rows

Values = Literal["int8", "bfloat16", "float32"]

SMALL = 1024
"""Matrices with fewer entries stay float32: T5's position biases, say. Rounding saves nothing."""


@dataclass(frozen=True)
class Packed:
    """A tensor of `shape`, packed. Zeros that are not stored come back as +0."""

    shape: tuple[int, ...]
    values: Tensor
    """With a mask: the kept entries in row-major order, of shape (kept,). Without: all, `shape`."""
    scale: Tensor | None = None
    """For int8 values of a matrix: float32 of shape (rows, 1)."""
    mask: Tensor | None = None
    """uint8, ceil(entries / 8): 1 where an entry is kept, the first entry in the highest bit."""

    @property
    def mask_bytes(self) -> int:
        return _bytes(self.mask)

    @property
    def value_bytes(self) -> int:
        """Of the values and their scales."""
        return _bytes(self.values) + _bytes(self.scale)

    def unpack(self) -> Tensor:
        """The dense tensor in memory of its own: float32, or of the values' type for integers.

        Raises ValueError where mask, values, scale and shape do not fit each other.
        """
        entries = math.prod(self.shape)
        if self.mask is None:
            _expect("shape of the values", tuple(self.values.shape), self.shape)
            dense = self.values
        else:
            _expect("type of the mask", self.mask.dtype, torch.uint8)
            _expect("shape of the mask", tuple(self.mask.shape), (math.ceil(entries / 8),))
            bits = self.mask.numpy()
            kept = np.unpackbits(bits, count=entries)
            _expect("values", tuple(self.values.shape), (int(np.count_nonzero(kept)),))
            dense = torch.zeros(self.shape, dtype=self.values.dtype)
            dense.masked_scatter_(
                torch.from_numpy(kept).view(torch.bool).view(self.shape), self.values
            )
        if self.scale is not None:
            _expect("type of the values", dense.dtype, torch.int8)
            _expect("type of the scales", self.scale.dtype, torch.float32)
            _expect("shape of the scales", tuple(self.scale.shape), (*self.shape[:1], 1))
            return dequantize_rows(dense, self.scale)
        dense = dense.float() if dense.is_floating_point() else dense
        return dense.clone() if dense is self.values else dense


def pack(tensor: Tensor, values: Values) -> Packed:
    """Pack a tensor, with or without a mask, whichever is smaller.

    Matrices of at least `SMALL` entries are rounded to `values` (int8: one scale a row, an error of
    at most scale / 2); other floating tensors stay float32, and integers what they are. The mask
    is found from the entries that are not zero after rounding. Raises ValueError where an
    entry is not finite, or rounds to what is not.
    """
    tensor = tensor.detach().cpu()
    if not tensor.is_floating_point():
        return _smaller(tensor, None)
    tensor = tensor.float()
    if tensor.ndim != 2 or tensor.numel() < SMALL or values == "float32":
        return _smaller(tensor, None)
    rounded = tensor.bfloat16() if values == "bfloat16" else tensor
    if not torch.isfinite(rounded).all():
        raise ValueError(f"an entry is not finite, or too large for {values}")
    if values == "bfloat16":
        return _smaller(rounded, None)
    return pack_int8(*quantize_rows(tensor))


def pack_int8(weight: Tensor, scale: Tensor) -> Packed:
    """Pack a matrix that is int8 already: its values and its scales, (rows, 1), as they are."""
    return _smaller(weight.detach().cpu(), scale.detach().cpu())


def _smaller(dense: Tensor, scale: Tensor | None) -> Packed:
    dense = dense.contiguous()
    kept = dense != 0
    count = int(kept.count_nonzero())
    saved = (dense.numel() - count) * dense.element_size()
    shape = tuple(dense.shape)
    if saved <= math.ceil(dense.numel() / 8):
        return Packed(shape, dense, scale)
    mask = torch.from_numpy(np.packbits(kept.numpy()))
    return Packed(shape, dense[kept], scale, mask)


def _bytes(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.numel() * tensor.element_size()


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{what}: expected {expected}, found {found}")
