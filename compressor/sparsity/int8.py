"""int8 weights with one float32 scale a row: the maths, and the layers that compute with them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

Activations = Literal["float", "int8"]


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 for each row: (int8 of the same shape, float32 scale of shape (rows, 1)).

    `scale = max|row| / 127`, `q = round(row / scale)` in [-127, 127]; the error of an entry is at
    most `scale / 2`, and a zero stays a zero. A row of zeros has scale 1.
    """
    peak = weight.detach().float().abs().amax(dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak / 127, torch.ones_like(peak))
    return torch.round(weight.detach().float() / scale).clamp_(-127, 127).to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that int8 rows stand for."""
    return weight.float() * scale


class Int8Linear(nn.Module):
    """`y = x Wᵀ + b` with W int8, one scale a row.

    With `activations` "int8" on a CPU, x is quantized as it comes (one scale for the tensor) and
    the product is an integer one: several times faster, and slightly less exact. Otherwise the
    weight is turned to float for each product: exact, less memory, slower.
    """

    def __init__(self, rows: int, columns: int, *, bias: bool) -> None:
        super().__init__()
        self.activations: Activations = "float"
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows, 1))
        self.register_buffer("bias", torch.zeros(rows) if bias else None)
        self._packed: torch.ScriptObject | None = None

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        if self.activations == "int8" and x.device.type == "cpu":
            y: Tensor = torch.ops.quantized.linear_dynamic(x.float(), self._pack(), True)
            return y.to(x.dtype)
        weight = dequantize_rows(self.weight, self.weight_scale).to(x.dtype)
        return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def _pack(self) -> torch.ScriptObject:
        """The weight in the layout that the processor's integer product wants; made once."""
        if self._packed is None:
            zeros = torch.zeros(len(self.weight), dtype=torch.int64)
            with warnings.catch_warnings():
                # Deprecated upstream with no successor that is as fast on a CPU: measured, the
                # newer library's eager int8 is slower than float32, this several times faster.
                warnings.simplefilter("ignore", UserWarning)
                quantized = torch._make_per_channel_quantized_tensor(
                    self.weight, self.weight_scale.flatten().double(), zeros, 0
                )
            self._packed = torch.ops.quantized.linear_prepack(quantized, self.bias)
        return self._packed


class Int8Embedding(nn.Module):
    """A table of int8 rows, looked up and turned to float a row at a time."""

    def __init__(self, rows: int, columns: int, padding_idx: int | None) -> None:
        super().__init__()
        self.padding_idx = padding_idx
        self.register_buffer("weight", torch.zeros(rows, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(rows, 1))

    weight: Tensor
    weight_scale: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize_rows(self.weight[ids], self.weight_scale[ids])


def int8_layers(model: nn.Module) -> Iterator[Int8Linear]:
    """The int8 linear layers of a model."""
    return (module for module in model.modules() if isinstance(module, Int8Linear))


def replace_by_int8(model: nn.Module, names: Collection[str] | None = None) -> list[str]:
    """Put int8 layers in the place of `Linear` layers, and of embeddings that a head is tied to.

    `names`: the weights to replace (all of these where None). Tied weights stay tied: one int8
    tensor serves both. Returns the names of the replaced weights. Changes `model` in place.
    """
    layers = [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    heads = {id(module.weight) for _, module in layers if isinstance(module, nn.Linear)}
    wanted = heads & {
        id(module.weight) for path, module in layers if names is None or f"{path}.weight" in names
    }
    made: dict[int, tuple[Tensor, Tensor]] = {}
    replaced = []
    for path, module in layers:
        if id(module.weight) not in wanted:
            continue
        parent, _, attribute = path.rpartition(".")
        owner = model.get_submodule(parent)
        new: nn.Module
        if isinstance(module, nn.Linear):
            new = Int8Linear(module.out_features, module.in_features, bias=module.bias is not None)
            new.bias = None if module.bias is None else module.bias.detach()
        else:
            rows, columns = module.num_embeddings, module.embedding_dim
            new = Int8Embedding(rows, columns, module.padding_idx)
        key = id(module.weight)
        if key not in made:
            made[key] = quantize_rows(module.weight)
            replaced.append(f"{path}.weight")
        new.weight, new.weight_scale = made[key]
        setattr(owner, attribute, new.train(module.training))
    return replaced
