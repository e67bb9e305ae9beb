"""Packed directories: whole models come back as they were, and damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, T5Config

import compressor
from compressor.backends.packed import FILE, save_packed
from compressor.compression.thresholds import prune_smallest
from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint, save_pretrained
from compressor.models.loading import Head, build_model, has_untied_head
from compressor.models.masks import count_left
from compressor.models.quantization import Quantization
from compressor.models.quantized_layers import dequantize_rows, quantize_rows, quantize_weights
from compressor.models.surgery import dequantize_checkpoint

SIZES = {"vocab_size": 90, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
FFN = "encoder.block.0.layer.1.DenseReluDense.wi.weight"


def pico(*, untied: bool = False, **config: Any) -> Checkpoint:
    """A pruned T5: 0.6 of all feed-forward weights and of the head."""
    torch.manual_seed(0)
    made = T5Config(**(SIZES | config), decoder_start_token_id=0)
    model = build_model(made, "seq2seq_lm", untied_head=untied).eval()
    model.generation_config.max_length = 17
    names = [n for n, _ in model.named_parameters() if "DenseReluDense.w" in n]
    weights = {n: model.get_parameter(n) for n in [*names, "lm_head.weight"]}
    checkpoint = Checkpoint(model, None, "seq2seq_lm")
    prune_smallest(weights, checkpoint.masks, round(0.6 * count_left({}, weights)))
    checkpoint.apply_masks()
    return checkpoint


def logits(model: nn.Module) -> Tensor:
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        return model(input_ids=ids, decoder_input_ids=ids[:, :4]).logits


def rounded(model: nn.Module, values: str) -> nn.Module:
    """The same rule, written out: matrices of 1,024 entries or more, one scale a row."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and parameter.numel() >= 1024:
                if values == "int8":
                    parameter.copy_(dequantize_rows(*quantize_rows(parameter)))
                elif values == "bfloat16":
                    parameter.copy_(parameter.bfloat16())
    return model


@pytest.mark.parametrize("values", ["int8", "bfloat16", "float32"])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_packed_model_computes_what_the_rounded_one_does(
    tmp_path, values, untied, scaled
) -> None:
    """The same logits to the bit; ties, generation config and mode as they were."""
    checkpoint = pico(untied=untied, scale_decoder_outputs=scaled)
    save_packed(checkpoint, tmp_path, values)
    loaded = compressor.load_model(tmp_path)
    assert torch.equal(logits(rounded(checkpoint.model, values)), logits(loaded))
    assert has_untied_head(loaded) == untied
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert not loaded.training and all(p.dtype == torch.float32 for p in loaded.parameters())
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())
    assert len(list(loaded.parameters())) == len(list(checkpoint.model.parameters()))
    assert loaded.generation_config.max_length == 17
    assert loaded.get_parameter(FFN)[~checkpoint.masks[FFN]].count_nonzero() == 0


def test_a_packed_model_can_be_trained_and_saved_as_any_other(tmp_path) -> None:
    """A step of training changes it and not the file; plain transformers reads it saved."""
    save_packed(pico(), tmp_path / "packed", "int8")
    before = (tmp_path / "packed" / FILE).read_bytes()
    model = compressor.load_model(tmp_path / "packed")
    first = logits(model)
    model(input_ids=torch.ones(1, 4).long(), labels=torch.ones(1, 4).long()).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(logits(model), first)
    assert (tmp_path / "packed" / FILE).read_bytes() == before
    save_pretrained(model, tmp_path / "plain")
    again = type(model).from_pretrained(tmp_path / "plain")
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("untied", [False, True])
def test_an_int8_model_keeps_its_values_and_scales(tmp_path, untied) -> None:
    """No second rounding: the file has the model's own int8 numbers."""
    checkpoint = pico(untied=untied)
    quantize_weights(checkpoint.model)
    checkpoint.quantization = Quantization(weights="int8")
    state = checkpoint.model.state_dict()
    state[f"{FFN}_scale"].mul_(1.7)  # scales that rounding would not find again
    save_packed(checkpoint, tmp_path, "int8")
    tensors = load_file(tmp_path / FILE)
    assert torch.equal(tensors[f"{FFN}:scale"], state[f"{FFN}_scale"])
    assert torch.equal(tensors[FFN], state[FFN][state[FFN] != 0])
    loaded = compressor.load_model(tmp_path)
    assert torch.equal(loaded.get_parameter(FFN), state[FFN].float() * state[f"{FFN}_scale"])
    if not untied:  # an embedding of its own is a float matrix, and rounded now
        assert torch.equal(logits(loaded), logits(dequantize_checkpoint(checkpoint).model))


@pytest.mark.parametrize("head", ["sequence_classification", "none"])
def test_buffers_and_other_heads_come_back(tmp_path, head: Head) -> None:
    """BERT, whose positions are buffers that no file has."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=90, intermediate_size=64, num_labels=3, **sizes)
    model = build_model(config, head).eval()
    save_packed(Checkpoint(model, None, head), tmp_path, "float32")
    loaded = compressor.load_model(tmp_path)
    ids = torch.arange(2, 12)[None]
    with torch.inference_mode():
        assert torch.equal(model(ids)[0], loaded(ids)[0])
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert not any(buffer.is_meta for buffer in loaded.buffers())


def other_config(**values: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return damage


def truncate(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data[: len(data) // 2])


def make_newer(folder: Path) -> None:
    data = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(data.replace(b'\\"version\\":1', b'\\"version\\":2'))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "half a file": (truncate, "is damaged"),
    "no file": (lambda f: (f / FILE).unlink(), "cannot load the model .* no file named"),
    "half a config": (lambda f: (f / "config.json").write_text('{"a":'), "cannot build the model"),
    "more layers": (other_config(num_layers=3), r"lacks encoder.block.2.* the config asks for"),
    "fewer layers": (other_config(num_layers=1), "which the config does not ask for"),
    "another shape": (other_config(d_ff=48), r"expected shape \(48, 32\) .* found \(64, 32\)"),
    "a version to come": (make_newer, "version: Input should be 1"),
    "no description": (
        lambda f: save_file({"x": torch.ones(1)}, f / FILE),
        "is no packed model",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_directory_is_refused_by_name(tmp_path, damage: str) -> None:
    """A StageError that says where and what."""
    save_packed(pico(), tmp_path, "int8")
    do, message = DAMAGES[damage]
    do(tmp_path)
    with pytest.raises(StageError, match=message):
        compressor.load_model(tmp_path)


def test_no_flipped_bit_goes_unseen(tmp_path) -> None:
    """One bit at each of 200 places, header and data: always a StageError."""
    save_packed(pico(), tmp_path, "int8")
    whole = (tmp_path / FILE).read_bytes()
    for step in range(200):
        data = bytearray(whole)
        data[step * (len(whole) - 1) // 199] ^= 1 << step % 8
        (tmp_path / FILE).write_bytes(data)
        with pytest.raises(StageError):
            compressor.load_model(tmp_path)
