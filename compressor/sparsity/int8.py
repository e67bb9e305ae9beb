"""int8 weights with one float32 scale a row: the maths, and the layers that compute with them."""

from __future__ import annotations

import platform
import warnings
from functools import cache

import torch
from torch import Tensor, nn

SMALLEST_PEAK = 1e-30
"""What a row of zeros is divided by: far below what any other row has, far above underflow."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 for each row: (int8 of the same shape, float32 scale of shape (rows, 1)).

    `scale = max|row| / 127`, `q = round(row / scale)` in [-127, 127]; the error of an entry is at
    most `scale / 2`, and a zero stays a zero. A row of zeros has scale 1, and so has one
    whose entries are too small for a scale to be a float32 above 0: it becomes zeros.
    """
    peak = weight.detach().float().abs().amax(dim=1, keepdim=True)
    scale = peak / 127
    scale = torch.where(scale == 0, torch.ones_like(peak), scale)
    return torch.round(weight.detach().float() / scale).clamp_(-127, 127).to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that int8 rows stand for."""
    return weight.float() * scale


@cache
def activation_bits() -> int:
    """How many bits an integer product on this CPU leaves for what comes in: 8, or 7.

    An x86 without VNNI adds two products of 8 bits in a register of 16, which overflows.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return 7 if x86 and not torch.cpu._is_vnni_supported() else 8


class Int8Linear(nn.Module):
    """`y = x Wᵀ + b` with W int8, one scale a row.

    With `integer` on a CPU, x is quantized as it comes, one scale for each of its rows (tokens),
    and the product is an integer one: several times faster, and slightly less exact. Otherwise the
    weight is turned to float for each product: exact, less memory, slower.
    """

    def __init__(self, rows: int, columns: int, *, bias: bool) -> None:
        super().__init__()
        self.integer = False
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows, 1))
        self.register_buffer("bias", torch.zeros(rows) if bias else None)
        self._packed: torch.ScriptObject | None = None

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if self.integer and x.device.type == "cpu" and x.numel():
            return self._product(x)
        weight = dequantize_rows(self.weight, self.weight_scale).to(x.dtype)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _product(self, x: Tensor) -> Tensor:
        """What torch multiplies has one scale for all of x. It is given rows whose largest entry is
        1, so that this scale suits each of them, and what comes out is scaled back.
        """
        peak = x.float().abs().amax(-1, keepdim=True).clamp_(min=SMALLEST_PEAK)
        reduced = activation_bits() == 7
        y: Tensor = torch.ops.quantized.linear_dynamic(x.float() / peak, self._pack(), reduced)
        y.mul_(peak)
        if self.bias is not None:
            y.add_(self.bias)
        return y.to(x.dtype)

    def _pack(self) -> torch.ScriptObject:
        """The weight in the layout that the processor's integer product wants; made once."""
        if self._packed is None:
            zeros = torch.zeros(len(self.weight), dtype=torch.int64)
            with warnings.catch_warnings():
                # Deprecated upstream with no successor that is as fast on a CPU: measured, the
                # newer library's eager int8 is 2 to 100 times slower than this.
                warnings.simplefilter("ignore", UserWarning)
                quantized = torch._make_per_channel_quantized_tensor(
                    self.weight, self.weight_scale.flatten().double(), zeros, 0
                )
            self._packed = torch.ops.quantized.linear_prepack(quantized, None)
        return self._packed


class Int8Embedding(nn.Module):
    """A table of int8 rows, looked up and turned to float a row at a time.

    `embed_scale`: what the embedding in its place multiplies its rows by, as BART's can.
    """

    def __init__(
        self, rows: int, columns: int, padding_idx: int | None, *, embed_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.embed_scale = embed_scale
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows, 1))

    weight: Tensor
    weight_scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        rows = dequantize_rows(self.weight[ids], self.weight_scale[ids])
        return rows if self.embed_scale == 1 else rows * self.embed_scale
