"""Adapters of a model's layers: attached, trained as they will be merged, merged. See `lora`.

The layers are peft's. Where a weight has a mask, or is rounded, its layer computes with the merged
weight itself, for `W x + scale · B A x` would then be another model than the one that is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.masks import apply_mask
from compressor.models.quantization import Kind
from compressor.models.quantized_layers import dequantize_weight, quantize_weight, round_weights
from compressor.training.lora import Lora

_NAME = "default"
"""What peft calls an adapter without a name."""


class AdaptedLinear(Linear):  # type: ignore[misc]  # peft's classes are not typed
    """A `Linear` or `Conv1D` with an adapter: peft's own, to the bit, without mask and rounding."""

    find_mask: Callable[[], Tensor | None]
    """The weight's mask as it is now, of the weight's shape; None where nothing is pruned."""
    round_weight: Callable[[Tensor], Tensor] | None = None
    """What the merged weight is rounded by while losses are computed."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor
        if self.find_mask() is None and self.round_weight is None:
            output = super().forward(x)
            return output
        dropout, base = self.lora_dropout[_NAME], None
        compute, bias = self._round_merged, self.bias
        if self.training and isinstance(dropout, nn.Dropout):
            x, base = dropout(x), self.base_layer(x)
            compute, bias = self.multiply_factors, None
        factors = self.lora_A[_NAME].weight, self.lora_B[_NAME].weight
        apply: Any = _Product.apply  # torch does not type it
        output = apply(self, compute, x, bias, *factors)
        return output if base is None else base + output

    @torch.no_grad()
    def merge_weight(self) -> Tensor:
        """Compute `W + scale · B A` under the mask, in float32."""
        return self.multiply_factors().add_(self.weight)

    def _round_merged(self) -> Tensor:
        weight = self.merge_weight()
        return weight if self.round_weight is None else self.round_weight(weight)

    @torch.no_grad()
    def multiply_factors(self) -> Tensor:
        """Compute `scale · B A` under the mask, in float32, of the weight's shape."""
        with torch.autocast(self.weight.device.type, enabled=False):
            product: Tensor = self.get_delta_weight(_NAME)
        mask = self.find_mask()
        if mask is not None:
            apply_mask(product, mask.to(product.device))
        return product

    def view_as_rows(self, matrix: Tensor) -> Tensor:
        """View what has the weight's shape as [outputs, inputs]."""
        return matrix.T if self.fan_in_fan_out else matrix


class _Product(torch.autograd.Function):
    """`x Mᵀ + bias` for a matrix M that a layer computes of its factors A and B, under its mask.

    M is computed again in the backward pass, so that nothing of its size is kept for that.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layer: AdaptedLinear,
        compute: Callable[[], Tensor],
        x: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
    ) -> Tensor:
        ctx.layer, ctx.compute = layer, compute
        ctx.save_for_backward(x, a, b)
        return functional.linear(x, layer.view_as_rows(compute()), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, a, b), layer = ctx.saved_tensors, ctx.layer
        of_x = None
        if ctx.needs_input_grad[2]:
            rows = layer.view_as_rows(ctx.compute())
            of_x = (gradient @ rows.to(gradient.dtype)).to(x.dtype)
        of_rows = (gradient.flatten(0, -2).T @ x.flatten(0, -2).to(gradient.dtype)).float()
        of_rows *= layer.scaling[_NAME]
        mask = layer.find_mask()
        if mask is not None:
            apply_mask(of_rows, layer.view_as_rows(mask))
        return None, None, of_x, None, b.T @ of_rows, of_rows @ a.T


@dataclass
class Adapters:
    """The adapters of a checkpoint's model, by the names of the weights that they belong to."""

    checkpoint: Checkpoint
    layers: Mapping[str, AdaptedLinear]

    @contextmanager
    def show_merged(self, names: Iterable[str]) -> Iterator[None]:
        """Inside, let these weights be what they would be merged; changes to them are lost."""
        weights = {n: self.checkpoint.get_parameter(n) for n in names if n in self.layers}
        plain = {name: weight.data for name, weight in weights.items()}
        for name, weight in weights.items():
            weight.data = self.layers[name].merge_weight()
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.data = plain[name]

    @contextmanager
    def round_weights(self, kinds: Mapping[str, Kind], group_size: int) -> Iterator[None]:
        """Inside, compute with what quantization makes of the merged weights, and of all others."""
        others = {name: kind for name, kind in kinds.items() if name not in self.layers}
        try:
            for name in kinds.keys() & self.layers.keys():
                self.layers[name].round_weight = partial(_round_weight, kinds[name], group_size)
            with round_weights(self.checkpoint.model, others, group_size):
                yield
        finally:
            for layer in self.layers.values():
                layer.round_weight = None

    def merge(self) -> None:
        """Make each adapter a part of its weight, and the model as plain as it was.

        Raises StageError where a pruned entry is then not zero.
        """
        model, masks = self.checkpoint.model, self.checkpoint.masks
        for name, layer in self.layers.items():
            layer.weight.data.add_(layer.multiply_factors())
            model.set_submodule(name.removesuffix(".weight"), layer.get_base_layer())
        model.requires_grad_(requires_grad=True)
        for name, mask in masks.items():
            weight = self.checkpoint.get_parameter(name)
            count = int(torch.count_nonzero(weight[~mask.to(weight.device)]))
            if count:
                raise StageError(f"{count} pruned entries of {name} came alive in its merge")


def _round_weight(kind: Kind, group_size: int, weight: Tensor) -> Tensor:
    return dequantize_weight(*quantize_weight(weight, kind, group_size))


def attach_adapters(checkpoint: Checkpoint, lora: Lora, seed: int) -> Adapters:
    """Put adapters into the model, which change nothing yet, and freeze all that is not trained."""
    torch.manual_seed(seed)
    model, facts = checkpoint.model, checkpoint.derive_facts()
    names, layers = lora.list_targets(facts), dict[str, AdaptedLinear]()
    model.requires_grad_(requires_grad=False)
    for path, module in list(model.named_modules()):
        if (name := f"{path}.weight") in names:
            layers[name] = layer = _adapt_layer(module, lora)
            layer.find_mask = partial(checkpoint.masks.get, name)
            model.set_submodule(path, layer)
    for name in lora.list_head(facts):
        model.get_parameter(name).requires_grad_(requires_grad=True)
    return Adapters(checkpoint, layers)


def _adapt_layer(module: nn.Module, lora: Lora) -> AdaptedLinear:
    config = LoraConfig(
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        fan_in_fan_out=isinstance(module, Conv1D),
    )
    layer = AdaptedLinear(module, _NAME, config, r=lora.rank, lora_alpha=lora.alpha)
    module.requires_grad_(requires_grad=False)
    return layer
