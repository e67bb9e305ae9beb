"""The block that stands in the place of encoder layers, as a module, and how it gets there.

How it learns what those layers do is in `compressor.compression.approximation`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.output_capturing import install_output_capuring_hook

from compressor.models.block_config import BlockSizes
from compressor.models.structure import Stack

NORM_EPSILON = 1e-12


def _build_projection(into: int, out: int, depth: int) -> nn.Sequential:
    """`depth` times Linear(into, into) and GELU, then Linear(into, out)."""
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(into, into), nn.GELU())]
    return nn.Sequential(*hidden, nn.Linear(into, out))


class Block(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers' types are not read
    """One attention between small networks, in the place of one or more layers of an encoder.

    For hidden states x [B, T, D], H heads of size S and four networks f, each `depth` times
    Linear(n, n) and GELU and then a Linear (from D to H·S; the output's from H·S to D):

        q, k, v = f_query(x), f_key(x), f_value(x)          [B, T, H·S]
        a = softmax(q kᵀ / √S + mask) v, for each head      [B, T, H·S]
        y = LayerNorm(x + Dropout(f_output(a)))             [B, T, D]

    Weights start as torch's Linear does. `forward` takes what the encoder hands to its layers and
    gives what it expects of one: y. Its hidden states are recorded as any layer's
    (`output_hidden_states`); attention maps are not, since the fused attention makes none.
    """

    def __init__(self, width: int, sizes: BlockSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.query = _build_projection(width, sizes.inner_width, sizes.depth)
        self.key = _build_projection(width, sizes.inner_width, sizes.depth)
        self.value = _build_projection(width, sizes.inner_width, sizes.depth)
        self.output = _build_projection(sizes.inner_width, width, sizes.depth)
        self.dropout = nn.Dropout(sizes.dropout)
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        # transformers finds a model's own layers by their class, and records those alone.
        install_output_capuring_hook(self, "hidden_states", 0)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Compute y for x [B, T, D]. `attention_mask` says which keys are real.

        None: all. Boolean or additive: [B, 1, 1 or T, T], of the encoder's plain or fused
        attention. 0 and 1, [B, T]: of flash attention.
        """
        query, key, value = (
            part(hidden_states).unflatten(-1, (self.sizes.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mask = _expand_mask(attention_mask, query.dtype)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        output = self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        normed: Tensor = self.norm(hidden_states + output)
        return normed


def _expand_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Make a mask as torch's attention takes it: boolean, or additive in the queries' precision."""
    if mask is None:
        return None
    if mask.ndim == 2:
        return mask[:, None, None, :].bool()
    if mask.dtype == torch.bool:
        return mask
    return mask.to(dtype).clamp(min=torch.finfo(dtype).min)  # no -inf: it has no softmax


def has_blocks(model: nn.Module) -> bool:
    """Tell whether blocks stand in the place of some of its layers."""
    return any(isinstance(module, Block) for module in model.modules())


def put_blocks(model: nn.Module, width: int, stack: Stack) -> None:
    """Put fresh blocks in the place of the layers that a stack names. Changes `model`."""
    for layer, sizes in enumerate(stack.blocks):
        if sizes is not None:
            put_block(model, stack, layer, Block(width, sizes))


def put_block(model: nn.Module, stack: Stack, layer: int, block: Block) -> None:
    """Put a block in the place of a layer. Changes `model`."""
    layers = model.get_submodule(stack.prefix)
    assert isinstance(layers, nn.ModuleList)
    layers[layer] = block
