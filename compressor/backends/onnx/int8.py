"""int8 layers as ONNX Runtime's operators: a model whose trace has them in its graph.

`MatMulNBits` has one scale for each block of a row: here all blocks of a row have the row's scale,
so that its values are exactly those of `models.quantized_layers`. It quantizes its input by the
block too, as it comes, which activations with outliers need; the products of a block are integer
ones where the processor has them. `onnxruntime.quantization.quantize_dynamic` has one scale for an
input tensor: a real T5 of 77 M lost 42 % of its rougeLsum with that, 5 % with this, 6 % with
products in float (100 titles; 1, 56 and 64 of them were the float32 model's very tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from compressor.models.quantization import Kind
from compressor.models.quantized_layers import Int8Embedding, Int8Linear, quantize_weights

BLOCK = 32
"""Columns that share a scale of the input. A power of two from 16 to 256. With 64 and 128, 48 and
44 titles were float32's, and decoding was at most a tenth faster."""
_ZERO = 128
"""What stands for zero: the operator's int8 values are unsigned."""


class _Matrix:
    """An int8 weight [N, K] in blocks of columns, filled up with zeros, and its scales [N, 1]."""

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        self.rows, self.columns = weight.shape
        self.block = BLOCK
        while self.block > 16 and self.columns % self.block:
            self.block //= 2
        filled = nn.functional.pad(weight, (0, -self.columns % self.block))
        unsigned = (filled.to(torch.int16) + _ZERO).to(torch.uint8)
        self.values = unsigned.reshape(self.rows, -1, self.block)
        self.scale = scale.float()


class _Linear(nn.Module):
    """`y = x Wᵀ + b` by `MatMulNBits`; x is quantized to int8 by the block."""

    values: Tensor
    row_scale: Tensor
    bias: Tensor | None

    def __init__(self, matrix: _Matrix, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.rows, matrix.columns
        self.block = matrix.block
        self.weight = torch.empty(0, dtype=torch.int8)  # T5 looks at the type of one
        self.register_buffer("values", matrix.values)
        self.register_buffer("row_scale", matrix.scale)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        # Repeated in the graph, where the runtime does it once as it loads, and not on disk.
        scales = self.row_scale.expand(-1, self.values.shape[1])
        sizes = {"K": self.in_features, "N": self.out_features, "block_size": self.block}
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.values, scales, None, None, self.bias),
            {**sizes, "bits": 8, "accuracy_level": 4},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.out_features),
            version=1,
        )


class _Embedding(nn.Module):
    """The rows that the ids name, times the scale of the row and that of the embedding."""

    values: Tensor
    row_scale: Tensor

    def __init__(self, matrix: _Matrix, scale: float) -> None:
        super().__init__()
        self.columns, self.scale = matrix.columns, scale
        self.register_buffer("values", matrix.values)
        self.register_buffer("row_scale", matrix.scale)

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.values[ids].float() - _ZERO
        rows = rows.flatten(-2)[..., : self.columns] * self.row_scale[ids]
        return rows * self.scale if self.scale != 1 else rows


def straighten_layers(model: nn.Module) -> list[str]:
    """Put a `Linear` in the place of each `Conv1D`, GPT-2's, whose weight is the transpose of one.

    Names their weights. Changes `model`.
    """
    places = [path for path, layer in model.named_modules() if isinstance(layer, Conv1D)]
    for path in places:
        old: Any = model.get_submodule(path)
        new = nn.Linear(old.nx, old.nf)
        new.weight, new.bias = nn.Parameter(old.weight.T.contiguous()), old.bias
        model.set_submodule(path, new)
    return [f"{path}.weight" for path in places]


def with_int8_operators(model: nn.Module, kinds: Mapping[str, Kind]) -> nn.Module:
    """Give the model int8 layers whose trace has ONNX Runtime's operators. Changes `model`.

    The weights in `kinds` are quantized first, as the stage `quantize` does it; a tied one stays
    one tensor.
    """
    quantize_weights(model, kinds)
    matrices: dict[int, _Matrix] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, Int8Linear | Int8Embedding):
            continue
        key = id(module.weight)
        if key not in matrices:
            matrices[key] = _Matrix(module.weight, module.weight_scale)
        new: nn.Module
        if isinstance(module, Int8Linear):
            new = _Linear(matrices[key], module.bias)
        else:
            new = _Embedding(matrices[key], module.embed_scale)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, new)
    return model
