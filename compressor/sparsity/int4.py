"""int4 weights in groups along their rows, one bfloat16 scale a group: the maths, and the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ZERO = 8
"""What an entry of 0 is stored as: two entries a byte, each from 0 (for -8) to 15 (for 7)."""
KERNEL_GROUPS = (32, 64, 128, 256)
"""Group sizes that torch's CPU product of bfloat16 and int4 takes."""
KERNEL_ROWS = 16
"""It wants a multiple of this many rows of weights."""


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """int4 for each group of `group_size` columns: (int8 (rows, columns / 2), two entries a byte;
    bfloat16 scales (rows, columns / group_size)).

    `scale` is the group's largest entry by magnitude over -8, so that all 16 values are used on
    the side where that entry lies; `q = round(entry / scale)` in [-8, 7]. It is rounded to bfloat16
    first, the one form that torch's int4 product takes. A zero stays a zero. The error is at most
    half a scale, but for entries above 7.5 scales on the other side, where it is at most a scale.
    """
    groups = weight.detach().float().view(len(weight), -1, group_size)
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = (extreme / -8).bfloat16()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    entries = torch.round(groups / scale.float()).clamp_(-8, 7).flatten(1).to(torch.int8) + ZERO
    return entries[:, ::2] | (entries[:, 1::2] << 4), scale.squeeze(2)


def unpack_entries(weight: Tensor) -> Tensor:
    """The entries, from 0 to 15, of bytes that hold two: int8, twice the columns."""
    return torch.stack((weight & 15, (weight >> 4) & 15), dim=-1).flatten(1)


def dequantize_groups(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that packed int4 groups stand for."""
    entries = unpack_entries(weight).sub_(ZERO).float().view(*scale.shape, -1)
    return entries.mul_(scale.float()[..., None]).flatten(1)


class Int4Linear(nn.Module):
    """`y = x Wᵀ + b` with W int4, one scale a group.

    With `rounds_input` on a CPU, x and y are rounded to bfloat16 and torch's int4 product reads the
    four bits themselves. Otherwise the weight is turned to float for each product: exact, slower.
    """

    def __init__(self, rows: int, columns: int, group_size: int, *, bias: bool) -> None:
        super().__init__()
        self.rounds_input = False
        self.group_size = group_size
        # Bytes are kept as int8, which transformers' T5 knows for a weight it may not cast to.
        self.register_buffer("weight", torch.zeros(rows, columns // 2, dtype=torch.int8))
        scales = torch.ones(rows, columns // group_size, dtype=torch.bfloat16)
        self.register_buffer("weight_scale", scales)
        self.register_buffer("bias", torch.zeros(rows) if bias else None)
        self._packed: tuple[Tensor, Tensor] | None = None

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        fits = self.group_size in KERNEL_GROUPS and len(self.weight) % KERNEL_ROWS == 0
        if self.rounds_input and fits and x.device.type == "cpu" and x.numel():
            return self._product(x)
        weight = dequantize_groups(self.weight, self.weight_scale).to(x.dtype)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _product(self, x: Tensor) -> Tensor:
        packed, scales = self._pack()
        rows = x.bfloat16().flatten(0, -2).contiguous()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, packed, self.group_size, scales
        )
        y = y.to(x.dtype)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)

    def _pack(self) -> tuple[Tensor, Tensor]:
        """Weight and (scale, offset) pairs as the product wants them; made once."""
        if self._packed is None:
            entries = unpack_entries(self.weight).int()
            scale = self.weight_scale.t()
            self._packed = (
                torch.ops.aten._convert_weight_to_int4pack_for_cpu(entries, 1),
                torch.stack((scale, torch.zeros_like(scale)), dim=-1).contiguous(),
            )
        return self._packed
