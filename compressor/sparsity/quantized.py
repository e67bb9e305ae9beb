"""A model's weights in int8 or int4, and the layers that compute with them in their places.

The maths are in `int8` and `int4`; which weights become what is `compressor.quantization`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressor.quantization import Kind, Quantization
from compressor.sparsity.int4 import (
    ZERO,
    Int4Linear,
    dequantize_groups,
    quantize_groups,
    unpack_entries,
)
from compressor.sparsity.int8 import Int8Embedding, Int8Linear, dequantize_rows, quantize_rows

LAYERS = (Int8Linear, Int8Embedding, Int4Linear)
Quantized = tuple[Tensor, Tensor]
"""A weight and its scales: int8 rows with float32 scales, or int4 groups with bfloat16 ones."""


def quantize(weight: Tensor, kind: Kind, group_size: int | None) -> Quantized:
    """A weight as int8 rows or int4 groups."""
    if kind == "int8":
        return quantize_rows(weight)
    assert group_size is not None, "int4 has groups"
    return quantize_groups(weight, group_size)


def dequantize(weight: Tensor, scale: Tensor) -> Tensor:
    """The float32 values that a quantized weight stands for."""
    return (dequantize_groups if _is_int4(scale) else dequantize_rows)(weight, scale)


def counts(weight: Tensor, scale: Tensor) -> tuple[int, int]:
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
        linear = {id(m.weight) for _, m in _layers(model) if isinstance(m, nn.Linear)}
        first = {id(m.weight): f"{p}.weight" for p, m in reversed(_layers(model))}
        kinds = {name: "int8" for weight, name in first.items() if weight in linear}
    made = {n: quantize(model.get_parameter(n), k, group_size) for n, k in kinds.items()}
    put_quantized(model, made)
    return list(made)


@contextmanager
def rounded(model: nn.Module, kinds: Mapping[str, Kind], group_size: int) -> Iterator[None]:
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
                    part.copy_(dequantize(*quantize(part, kind, group_size)))
                continue
            values = dequantize(*quantize(parameter, kind, group_size)).to(parameter.dtype)
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
    found = _layers(model)
    wanted = {id(m.weight): made[f"{p}.weight"] for p, m in found if f"{p}.weight" in made}
    for path, module in found:
        if id(module.weight) in wanted:
            parent, _, attribute = path.rpartition(".")
            new = _layer(module, *wanted[id(module.weight)])
            setattr(model.get_submodule(parent), attribute, new.train(module.training))


def _layers(model: nn.Module) -> list[tuple[str, nn.Linear | nn.Embedding]]:
    """All layers with a weight that can be quantized, under each of their names."""
    return [
        (path, module)
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | nn.Embedding)
    ]


def _layer(module: nn.Linear | nn.Embedding, weight: Tensor, scale: Tensor) -> nn.Module:
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
