"""int8 rows: the maths by hand, and whole models whose tied weights stay tied."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import T5Config

from compressor.models import quantized_layers
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import (
    Int8Embedding,
    Int8Linear,
    dequantize_rows,
    dequantize_weight,
    quantize_rows,
    quantize_weight,
    quantize_weights,
    set_activations,
)
from compressor.models.surgery import dequantize_checkpoint

T5 = {"vocab_size": 60, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}


def pico(*, untied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(**T5, decoder_start_token_id=0)
    return build_model(config, "seq2seq_lm", untied_head=untied).eval()


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        return model(input_ids=ids, decoder_input_ids=ids[:, :4]).logits


@pytest.mark.parametrize("bits", [7, 8])
def test_what_comes_in_has_as_many_steps_as_the_processor_has_bits(bits, monkeypatch) -> None:
    """Through an identity, 1,000 values between -1 and 1 come out as some 2 ** bits."""
    monkeypatch.setattr(quantized_layers, "activation_bits", lambda: bits)
    layer = Int8Linear(1000, 1000, bias=False)
    layer.weight, layer.weight_scale = quantize_rows(torch.eye(1000))
    layer.integer = True
    found = layer(torch.linspace(-1, 1, 1000)[None])
    assert 0.9 * 2**bits < len(found.unique()) <= 2**bits + 1


def test_a_table_that_multiplies_its_rows_does_so_in_int8() -> None:
    """As BART's can: by 4, here, within half a step of its rows' scales."""
    torch.manual_seed(0)
    table = nn.Embedding(5, 8)
    made = Int8Embedding(5, 8, None, embed_scale=4.0)
    made.weight, made.weight_scale = quantize_rows(table.weight)
    ids = torch.tensor([[4, 0, 2]])
    error = (made(ids) - 4 * table(ids)).abs()
    assert bool((error <= 2 * made.weight_scale[ids] + 1e-6).all())


def test_rows_of_the_smallest_numbers_are_zeros() -> None:
    """A peak whose 127th part is no float32 above 0; one of NaN is not taken for it."""
    weight = torch.zeros(2, 8)
    weight[0, 0] = 1e-45
    values, scale = quantize_rows(weight)
    assert values.count_nonzero() == 0 and scale.flatten().tolist() == [1.0, 1.0]
    weight[0, 1] = math.nan
    assert math.isnan(quantize_rows(weight)[1][0])


def test_an_outlier_takes_its_own_rows_scale_alone() -> None:
    """Beside 1e5 all of 0.5 is 0; the next row is within half a scale."""
    weight = torch.full((2, 16), 0.5)
    weight[0, 3] = 1e5
    back = dequantize_rows(*quantize_rows(weight))
    assert back[0].tolist() == pytest.approx([1e5 if i == 3 else 0.0 for i in range(16)])
    assert torch.allclose(back[1], weight[1], atol=0.5 / 254)


@pytest.mark.parametrize("value", [0.0, 0.5, 6e4])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_constant_weights_come_back_as_they_are(kind, value: float) -> None:
    """A scale that is the value's own 127th (8th), or for 0 is 1, gives each entry back."""
    weight = torch.full((4, 16), value)
    assert torch.allclose(dequantize_weight(*quantize_weight(weight, kind, 8)), weight, rtol=4e-3)


def test_rows_are_quantized_by_their_largest_entry() -> None:
    """Scale = max / 127; a row of zeros stays zeros; a zero stays a zero."""
    weight = torch.tensor([[127.0, -63.6, 0.0], [0.0, 0.0, 0.0], [1.0, 0.5, -1.0]])
    quantized, scale = quantize_rows(weight)
    assert quantized.tolist() == [[127, -64, 0], [0, 0, 0], [127, 64, -127]]
    assert scale.flatten().tolist() == pytest.approx([1.0, 1.0, 1 / 127])
    error = (dequantize_rows(quantized, scale) - weight).abs()
    assert torch.all(error <= scale / 2 + 1e-7)


@pytest.mark.parametrize("bias", [False, True])
def test_integer_products_are_close_to_float_ones(bias: bool) -> None:
    """Both ways of computing agree within the rounding of the activations."""
    torch.manual_seed(0)
    holder = nn.ModuleDict({"layer": nn.Linear(64, 32, bias=bias)})
    x = torch.randn(3, 64)
    expected = holder["layer"](x)
    quantize_weights(holder)
    layer = holder["layer"]
    assert isinstance(layer, Int8Linear)
    torch.testing.assert_close(layer(x), expected, atol=0.02, rtol=0)
    layer.integer = True
    torch.testing.assert_close(layer(x), expected, atol=0.05, rtol=0)


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
    layer.integer = True
    assert torch.all((layer(x) - expected).abs() <= step * weight.abs().sum(1) + 1e-6)
    assert torch.equal(layer(x)[1, 1], layer.bias)
    assert layer(x[:0]).shape == (0, 3, 32)


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("activations", ["float", "int8"])
def test_an_int8_model_comes_back_from_disk_as_it_was(tmp_path, untied, activations) -> None:
    """Same logits after reload; a tied table is stored once; its float twin has its values."""
    model = pico(untied=untied)
    before = logits(model)
    quantize_weights(model)
    quantization = Quantization(weights="int8", activations=activations)
    set_activations(model, quantization)
    checkpoint = Checkpoint(model, None, "seq2seq_lm", quantization=quantization)
    checkpoint.save(tmp_path)
    loaded = Checkpoint.load(tmp_path)
    assert torch.equal(logits(loaded.model), logits(model))
    assert (logits(model) - before).abs().max() < 0.1 * before.abs().max()
    assert loaded.measure_sizes(tmp_path)["parameters"] == sum(
        parameter.numel() for parameter in pico(untied=untied).parameters()
    )
    if activations == "float":
        assert torch.equal(logits(dequantize_checkpoint(loaded).model), logits(model))
