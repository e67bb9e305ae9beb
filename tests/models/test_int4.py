"""int4 groups: the maths by hand, the packing, and torch's own product of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.models.quantized_layers import (
    ZERO,
    Int4Linear,
    dequantize_groups,
    quantize_groups,
    quantize_weights,
    unpack_entries,
)


def test_groups_are_quantized_by_their_largest_entry() -> None:
    """It becomes -8 of a scale that has its sign turned; a group of zeros stays zeros."""
    weight = torch.tensor([[8.0, -3.4, 0.0, -8.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, -4, 1, 2, 4]])
    packed, scale = quantize_groups(weight, 4)
    assert packed.shape == (2, 4) and packed.dtype == torch.int8
    assert scale.tolist() == [[-1.0, 1.0], [1.0, 0.5]]
    expected = [[-8, 3, 0, 7, 0, 0, 0, 0], [0, 0, 0, 0, -8, 2, 4, 7]]
    assert (unpack_entries(packed) - ZERO).tolist() == expected
    values = [[8.0, -3.0, 0.0, -7.0, 0.0, 0.0, 0.0, 0.0], [0, 0, 0, 0, -4.0, 1.0, 2.0, 3.5]]
    assert dequantize_groups(packed, scale).tolist() == values


@pytest.mark.parametrize("group_size", [8, 32, 64])
def test_an_entry_moves_by_at_most_a_scale(group_size: int) -> None:
    """Half a scale within the range, a whole one at its other end; zeros do not move."""
    torch.manual_seed(0)
    weight = torch.randn(48, 64) * (torch.rand(48, 64) > 0.3)
    packed, scale = quantize_groups(weight, group_size)
    error = (dequantize_groups(packed, scale) - weight).view(48, -1, group_size)
    scale = scale.float()[..., None]
    inner = weight.view(error.shape) / scale <= 7.5
    assert torch.all(error[inner].abs() <= (scale.abs() * 0.50001).expand_as(error)[inner])
    assert torch.all(error.abs() <= scale.abs() * 1.04)
    assert torch.equal(
        unpack_entries(packed) == ZERO, dequantize_groups(packed, scale[..., 0]) == 0
    )
    assert torch.all(dequantize_groups(packed, scale[..., 0])[weight == 0] == 0)


@pytest.mark.parametrize("group_size", [16, 32, 64])
@pytest.mark.parametrize("bias", [False, True])
def test_both_products_are_those_of_the_values(group_size: int, bias: bool) -> None:
    """Float: to the bit. With bfloat16 activations: within their rounding, and its accumulation."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"layer": nn.Linear(128, 48, bias=bias)})
    quantize_weights(holder, {"layer.weight": "int4"}, group_size)
    layer = holder["layer"]
    assert isinstance(layer, Int4Linear)
    weight = dequantize_groups(layer.weight, layer.weight_scale)
    x = torch.randn(2, 3, 128)
    assert torch.equal(layer(x), nn.functional.linear(x, weight, layer.bias))
    layer.rounds_input = True
    found, expected = layer(x), nn.functional.linear(x.bfloat16().float(), weight, layer.bias)
    assert found.dtype == torch.float32 and found.shape == (2, 3, 48)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
    assert layer(x[:0]).shape == (0, 3, 48)
