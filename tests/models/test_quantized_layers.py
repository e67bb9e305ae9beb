"""int8 rows and int4 groups: the maths by hand, the packing, and torch's products of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.models import quantized_layers
from compressor.models.quantized_layers import (
    ZERO,
    Int4Linear,
    dequantize_groups,
    dequantize_rows,
    quantize_groups,
    quantize_rows,
    quantize_weights,
    unpack_entries,
)


def test_rows_are_quantized_by_their_largest_entry() -> None:
    """Scale = max / 127; a row of zeros stays zeros; a zero stays a zero."""
    weight = torch.tensor([[127.0, -63.6, 0.0], [0.0, 0.0, 0.0], [1.0, 0.5, -1.0]])
    quantized, scale = quantize_rows(weight)
    assert quantized.tolist() == [[127, -64, 0], [0, 0, 0], [127, 64, -127]]
    assert scale.flatten().tolist() == pytest.approx([1.0, 1.0, 1 / 127])
    error = (dequantize_rows(quantized, scale) - weight).abs()
    assert torch.all(error <= scale / 2 + 1e-7)


@pytest.mark.parametrize("bits", [7, 8])
def test_every_token_has_a_scale_of_its_own(bits: int, monkeypatch) -> None:
    """An outlier in one row costs the others nothing: each is within its own rounding.

    An entry of a row with the largest entry p is off by at most half a step of 2p / (2ᵇ - 1), and
    another half where the zero is moved onto a step; a row of zeros gives the bias.
    """
    monkeypatch.setattr(quantized_layers, "activation_bits", lambda: bits)
    torch.manual_seed(0)
    holder = nn.ModuleDict({"layer": nn.Linear(64, 32)})
    quantize_weights(holder)
    layer = holder["layer"]
    x = torch.randn(2, 3, 64) * torch.tensor([1e-3, 1.0, 1e4])[:, None]
    x[1, 1] = 0
    weight = dequantize_rows(layer.weight, layer.weight_scale)
    expected = nn.functional.linear(x, weight, layer.bias)
    step = 2 * x.abs().amax(-1, keepdim=True) / (2**bits - 1)
    layer.rounds_input = True
    assert torch.all((layer(x) - expected).abs() <= step * weight.abs().sum(1) + 1e-6)
    assert torch.equal(layer(x)[1, 1], layer.bias)
    assert layer(x[:0]).shape == (0, 3, 32)


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
    y, expected = layer(x), nn.functional.linear(x.bfloat16().float(), weight, layer.bias)
    assert y.dtype == torch.float32 and y.shape == (2, 3, 48)
    torch.testing.assert_close(y, expected, rtol=0.01, atol=0.01)
    assert layer(x[:0]).shape == (0, 3, 48)
