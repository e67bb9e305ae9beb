"""A model's weights in int8 or int4, and the layers that compute with them in their places.

The maths are in `int8` and `int4`; which weights become what is `compressor.models.quantization`'s.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from compressor.models.quantization import Kind, Quantization

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


LAYERS = (Int8Linear, Int8Embedding, Int4Linear)

Quantized = tuple[Tensor, Tensor]
"""A weight and its scales: int8 rows with float32 scales, or int4 groups with bfloat16 ones."""


def quantize_weight(weight: Tensor, kind: Kind, group_size: int | None) -> Quantized:
    """A weight as int8 rows or int4 groups."""
    if kind == "int8":
        return quantize_rows(weight)
    assert group_size is not None, "int4 has groups"
    return quantize_groups(weight, group_size)


def dequantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that a quantized weight stands for."""
    return (dequantize_groups if _is_int4(scale) else dequantize_rows)(weight, scale)


def count_entries(weight: Tensor, scale: Tensor) -> tuple[int, int]:
    """How many entries a quantized weight has, and how many are not zero."""
    entries = unpack_entries(weight) - ZERO if _is_int4(scale) else weight
    return entries.numel(), int(torch.count_nonzero(entries))


def _is_int4(scale: Tensor) -> bool:
    return scale.dtype == torch.bfloat16


def quantize_weights(
    model: nn.Module, kinds: Mapping[str, Kind] | None = None, group_size: int | None = None
) -> list[str]:
    """Quantize the named weights of `Linear` and `Embedding` layers in place; gives their names.

    None: the weights of all `Linear` layers, in int8, under the first name of each. A weight that
    is tied, such as a head's to an embedding, is quantized once and stays tied.
    """
    if kinds is None:
        linear = {id(m.weight) for _, m in _list_layers(model) if isinstance(m, nn.Linear)}
        first = {id(m.weight): f"{p}.weight" for p, m in reversed(_list_layers(model))}
        kinds = {name: "int8" for weight, name in first.items() if weight in linear}
    made = {n: quantize_weight(model.get_parameter(n), k, group_size) for n, k in kinds.items()}
    put_quantized(model, made)
    return list(made)


@contextmanager
def round_weights(model: nn.Module, kinds: Mapping[str, Kind], group_size: int) -> Iterator[None]:
    """While it lasts, the named weights have the values of their quantization.

    Gradients taken meanwhile go to the weights as they are: straight through the rounding
    (arXiv 1308.3432). The values are swapped, not the parameters, so that everything that holds a
    parameter (ties, DDP, an optimizer, a checkpointed layer that computes again) sees the same.

    A parameter of which this process has some rows has these rounded, in place, as the whole one's
    would be: scales are of a row or of a part of one.
    """
    own: list[tuple[nn.Parameter, Tensor]] = []
    rows: list[tuple[Tensor, Tensor]] = []
    try:
        for name, kind in kinds.items():
            parameter = model.get_parameter(name)
            if hasattr(parameter, "to_local"):
                part = parameter.to_local().detach()
                rows.append((part, part.clone()))
                if len(part):
                    part.copy_(dequantize_weight(*quantize_weight(part, kind, group_size)))
                continue
            values = dequantize_weight(*quantize_weight(parameter, kind, group_size)).to(
                parameter.dtype
            )
            own.append((parameter, parameter.data))
            parameter.data = values
        yield
    finally:
        for parameter, data in own:
            parameter.data = data
        for part, values in rows:
            part.copy_(values)


def put_quantized(model: nn.Module, made: Mapping[str, Quantized]) -> None:
    """Put layers that compute with these weights in the place of those that have them as float."""
    found = _list_layers(model)
    wanted = {id(m.weight): made[f"{p}.weight"] for p, m in found if f"{p}.weight" in made}
    for path, module in found:
        if id(module.weight) in wanted:
            parent, _, attribute = path.rpartition(".")
            new = _build_layer(module, *wanted[id(module.weight)])
            setattr(model.get_submodule(parent), attribute, new.train(module.training))


def _list_layers(model: nn.Module) -> list[tuple[str, nn.Linear | nn.Embedding]]:
    """All layers with a weight that can be quantized, under each of their names."""
    return [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    ]


def _build_layer(module: nn.Linear | nn.Embedding, weight: Tensor, scale: Tensor) -> nn.Module:
    new: Int8Linear | Int8Embedding | Int4Linear
    if isinstance(module, nn.Embedding):
        rows, columns = module.num_embeddings, module.embedding_dim
        factor = float(getattr(module, "embed_scale", 1.0))
        new = Int8Embedding(rows, columns, module.padding_idx, embed_scale=factor)
    else:
        rows, columns, bias = module.out_features, module.in_features, module.bias is not None
        if _is_int4(scale):
            new = Int4Linear(rows, columns, columns // scale.shape[1], bias=bias)
        else:
            new = Int8Linear(rows, columns, bias=bias)
        new.bias = None if module.bias is None else module.bias.detach()
    new.weight, new.weight_scale = weight, scale
    return new


def quantized_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a model whose weight is int8 or int4."""
    return (module for module in model.modules() if isinstance(module, LAYERS))


def set_activations(model: nn.Module, quantization: Quantization) -> None:
    """Have the layers compute with what comes in as the quantization says."""
    for module in quantized_layers(model):
        if isinstance(module, Int8Linear):
            module.integer = quantization.activations == "int8"
        elif isinstance(module, Int4Linear):
            module.rounds_input = quantization.activations == "bfloat16"
