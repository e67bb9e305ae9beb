"""Quantize a model's weights to int8 or int4; the layers that compute with them.

Which weights become what is decided in `compressor.models.quantization`.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.quantization import Kind, Quantization

SMALLEST_PEAK = 1e-30
"""What a row of zeros is divided by: far below what any other row has, far above underflow."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each row to symmetric int8: (int8 of the same shape, float32 scales (rows, 1)).

    `scale = max|row| / 127`, `q = round(row / scale)` in [-127, 127]; the error of an entry is at
    most `scale / 2`, and a zero stays a zero. A row of zeros has scale 1, and so has one
    whose entries are too small for a scale to be a float32 above 0: it becomes zeros.
    """
    peak = weight.detach().float().abs().amax(dim=1, keepdim=True)
    scale = peak / 127
    scale = torch.where(scale == 0, torch.ones_like(peak), scale)
    return torch.round(weight.detach().float() / scale).clamp_(-127, 127).to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """Give the float32 values that int8 rows stand for."""
    return weight.float() * scale


@cache
def activation_bits() -> int:
    """Count the bits that an integer product on this CPU leaves for what comes in: 8, or 7.

    An x86 without VNNI adds two products of 8 bits in a register of 16, which overflows.
    """
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return 7 if x86 and not torch.cpu._is_vnni_supported() else 8


class _QuantizedLinear(nn.Module):
    """`y = x Wᵀ + b` with W quantized.

    With `rounds_input` on a CPU, x is rounded as well, and a product of torch's reads the quantized
    weight itself. Otherwise the weight is turned to float for each product: exact, slower.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.rounds_input = False
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias)
        self._packed: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.rounds_input and self._has_product() and x.device.type == "cpu" and x.numel():
            y = self._multiply(x)
            return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)
        weight = dequantize_weight(self.weight, self.weight_scale).to(x.dtype)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _has_product(self) -> bool:
        """Tell whether torch can multiply by this weight."""
        return True

    def _multiply(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ with x rounded."""
        raise NotImplementedError


class Int8Linear(_QuantizedLinear):
    """W is int8, one scale a row.

    x is rounded as it comes, one scale for each of its rows (tokens), and the product is an integer
    one: several times faster, and slightly less exact.
    """

    _packed: torch.ScriptObject | None

    def _multiply(self, x: Tensor) -> Tensor:
        """Multiply rows whose largest entry is 1, so that torch's one scale suits each of them."""
        peak = x.float().abs().amax(-1, keepdim=True).clamp_(min=SMALLEST_PEAK)
        reduced = activation_bits() == 7
        y: Tensor = torch.ops.quantized.linear_dynamic(x.float() / peak, self._pack(), reduced)
        return y.mul_(peak)

    def _pack(self) -> torch.ScriptObject:
        """Lay the weight out as the processor's integer product wants it, once."""
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

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, embed_scale: float = 1.0) -> None:
        super().__init__()
        self.embed_scale = embed_scale
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        rows = dequantize_rows(self.weight[ids], self.weight_scale[ids])
        return rows if self.embed_scale == 1 else rows * self.embed_scale


ZERO = 8
"""What an entry of 0 is stored as: two entries a byte, each from 0 (for -8) to 15 (for 7)."""

KERNEL_GROUPS = (32, 64, 128, 256)
"""Group sizes that torch's CPU product of bfloat16 and int4 takes."""

KERNEL_ROWS = 16
"""It wants a multiple of this many rows of weights."""


def quantize_groups(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Quantize each group of `group_size` columns to int4, two entries a byte.

    Gives int8 (rows, columns / 2) and bfloat16 scales (rows, columns / group_size).

    `scale` is the group's largest entry by magnitude over -8, so that all 16 values are used on
    the side where that entry lies; `q = round(entry / scale)` in [-8, 7]. It is rounded to bfloat16
    first, the one form that torch's int4 product takes. A zero stays a zero. The error is at most
    half a scale, but for entries above 7.5 scales on the other side, where it is at most a scale.
    """
    groups = weight.detach().float().view(len(weight), -1, group_size)
    extreme = groups.gather(2, groups.abs().argmax(dim=2, keepdim=True))
    scale = to_int4_scales(extreme / -8)
    entries = torch.round(groups / scale).clamp_(-8, 7).flatten(1).to(torch.int8)
    return pack_entries(entries), scale.squeeze(2).bfloat16()


def to_int4_scales(scale: Tensor) -> Tensor:
    """Round scales as they are stored, to bfloat16, still as float32; one of 0 becomes 1."""
    scale = scale.bfloat16().float()
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def pack_entries(entries: Tensor) -> Tensor:
    """Pack entries in [-8, 7], int8, two a byte."""
    entries = entries + ZERO
    return entries[:, ::2] | (entries[:, 1::2] << 4)


def unpack_entries(weight: Tensor) -> Tensor:
    """Unpack the entries, from 0 to 15, of bytes that hold two: int8, twice the columns."""
    return torch.stack((weight & 15, (weight >> 4) & 15), dim=-1).flatten(1)


def dequantize_groups(weight: Tensor, scale: Tensor) -> Tensor:
    """Give the float32 values that packed int4 groups stand for."""
    entries = unpack_entries(weight).sub_(ZERO).float().view(*scale.shape, -1)
    return entries.mul_(scale.float()[..., None]).flatten(1)


class Int4Linear(_QuantizedLinear):
    """W is int4, one scale a group; x and y are rounded to bfloat16."""

    _packed: tuple[Tensor, Tensor] | None

    @property
    def group_size(self) -> int:
        return 2 * self.weight.shape[1] // self.weight_scale.shape[1]

    def _has_product(self) -> bool:
        return self.group_size in KERNEL_GROUPS and len(self.weight) % KERNEL_ROWS == 0

    def _multiply(self, x: Tensor) -> Tensor:
        packed, scales = self._pack()
        rows = x.bfloat16().flatten(0, -2).contiguous()
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, packed, self.group_size, scales
        )
        return y.to(x.dtype).view(*x.shape[:-1], -1)

    def _pack(self) -> tuple[Tensor, Tensor]:
        """Lay out weight and (scale, offset) pairs as the product wants them, once."""
        if self._packed is None:
            entries = unpack_entries(self.weight).int()
            scale = self.weight_scale.t()
            self._packed = (
                torch.ops.aten._convert_weight_to_int4pack_for_cpu(entries, 1),
                torch.stack((scale, torch.zeros_like(scale)), dim=-1).contiguous(),
            )
        return self._packed


LAYERS = (Int8Linear, Int8Embedding, Int4Linear)

Quantized = tuple[Tensor, Tensor]
"""A weight and its scales: int8 rows with float32 scales, or int4 groups with bfloat16 ones."""


def quantize_weight(weight: Tensor, kind: Kind, group_size: int | None) -> Quantized:
    """Quantize a weight to int8 rows or int4 groups."""
    if kind == "int8":
        return quantize_rows(weight)
    assert group_size is not None, "int4 has groups"
    return quantize_groups(weight, group_size)


def dequantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """Give the float32 values that a quantized weight stands for."""
    return (dequantize_groups if _is_int4(scale) else dequantize_rows)(weight, scale)


def count_entries(weight: Tensor, scale: Tensor) -> tuple[int, int]:
    """Count the entries of a quantized weight, and those that are not zero."""
    entries = unpack_entries(weight) - ZERO if _is_int4(scale) else weight
    return entries.numel(), int(torch.count_nonzero(entries))


def _is_int4(scale: Tensor) -> bool:
    return scale.dtype == torch.bfloat16


def quantize_weights(
    model: nn.Module,
    kinds: Mapping[str, Kind] | None = None,
    group_size: int | None = None,
    rounded: Mapping[str, Quantized] | None = None,
) -> list[str]:
    """Quantize the named weights of `Linear` and `Embedding` layers in place, and name them.

    None: the weights of all `Linear` layers, in int8, under the first name of each. A weight that
    is tied, such as a head's to an embedding, is quantized once and stays tied. Those of `rounded`
    are quantized already.
    """
    if kinds is None:
        linear = {id(m.weight) for _, m in _list_layers(model) if isinstance(m, nn.Linear)}
        first = {id(m.weight): f"{p}.weight" for p, m in reversed(_list_layers(model))}
        kinds = {name: "int8" for weight, name in first.items() if weight in linear}
    weights = dict(rounded or {})
    for name, kind in kinds.items():
        if name not in weights:
            weights[name] = quantize_weight(model.get_parameter(name), kind, group_size)
    put_quantized(model, weights)
    return list(weights)


@contextmanager
def round_weights(model: nn.Module, kinds: Mapping[str, Kind], group_size: int) -> Iterator[None]:
    """While it lasts, give the named weights the values of their quantization.

    Gradients taken meanwhile go to the weights as they are: straight through the rounding
    (arXiv 1308.3432). The values are swapped, not the parameters, so that everything that holds a
    parameter (ties, DDP, an optimizer, a checkpointed layer that computes again) sees the same.

    A parameter of which this process has some rows has these rounded, in place, as the whole one's
    would be: scales are of a row or of a part of one.
    """
    swapped: list[tuple[nn.Parameter, Tensor]] = []
    rounded: list[tuple[Tensor, Tensor]] = []
    try:
        for name, kind in kinds.items():
            parameter = model.get_parameter(name)
            if hasattr(parameter, "to_local"):
                part = parameter.to_local().detach()
                rounded.append((part, part.clone()))
                if len(part):
                    part.copy_(dequantize_weight(*quantize_weight(part, kind, group_size)))
                continue
            values = dequantize_weight(*quantize_weight(parameter, kind, group_size))
            swapped.append((parameter, parameter.data))
            parameter.data = values.to(parameter.dtype)
        yield
    finally:
        for parameter, data in swapped:
            parameter.data = data
        for part, values in rounded:
            part.copy_(values)


def put_quantized(model: nn.Module, weights: Mapping[str, Quantized]) -> None:
    """Put layers that compute with these weights in the place of those that have them as float."""
    layers = _list_layers(model)
    wanted = {id(m.weight): weights[f"{p}.weight"] for p, m in layers if f"{p}.weight" in weights}
    for path, module in layers:
        if id(module.weight) in wanted:
            parent, _, attribute = path.rpartition(".")
            new = _build_layer(module, *wanted[id(module.weight)])
            setattr(model.get_submodule(parent), attribute, new.train(module.training))


def _list_layers(model: nn.Module) -> list[tuple[str, nn.Linear | nn.Embedding]]:
    """List all layers with a weight that can be quantized, under each of their names."""
    return [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    ]


def _build_layer(module: nn.Linear | nn.Embedding, weight: Tensor, scale: Tensor) -> nn.Module:
    if isinstance(module, nn.Embedding):
        return Int8Embedding(weight, scale, float(getattr(module, "embed_scale", 1.0)))
    bias = None if module.bias is None else module.bias.detach()
    return (Int4Linear if _is_int4(scale) else Int8Linear)(weight, scale, bias)


def set_activations(model: nn.Module, quantization: Quantization) -> None:
    """Have the layers compute with what comes in as the quantization says."""
    for module in model.modules():
        if isinstance(module, Int8Linear | Int4Linear):
            module.rounds_input = quantization.activations != "float"
