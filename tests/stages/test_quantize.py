"""`quantize`: every kind, on real pico models; what a plan says of bytes is what files have."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

import compressor
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.loading import CHECKPOINT_JSON, WEIGHTS
from compressor.models.surgery import dequantize_checkpoint
from compressor.stages.base import Inputs
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize
from tests.harness.models import UNTIED, build_case, outputs
from tests.harness.stages import preview, stage_context

KINDS = ["int8", "int4", "bfloat16", "float16"]
T5 = {"vocab_size": 1100, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4}
BERT = {"vocab_size": 1100, "hidden_size": 32, "intermediate_size": 64}
SETTINGS: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8", "activations": "float"},
    "int4": {"weights": "int4", "activations": "float", "group_size": 16},
    "bfloat16": {"weights": "bfloat16"},
    "float16": {"weights": "float16"},
}


def pico(**changes: Any) -> Checkpoint:
    return build_case("t5", T5 | changes, "seq2seq_lm")


def bert() -> Checkpoint:
    return build_case("bert", BERT, "sequence_classification")


def run_quantize(start: Checkpoint, folder: Path, **settings: Any) -> Checkpoint:
    """The quantized model, as it was before it was saved in `folder / "saved"`."""
    start.save(folder / "start")
    result = Quantize(**settings).run(Inputs(folder / "start"), stage_context(folder / "quantize"))
    result.save(folder / "saved")
    return result


def preview_facts(facts: Facts, stage: Any = None, **settings: Any) -> tuple[Facts, list[str]]:
    result, problems = preview(stage or Quantize(**settings), facts)
    assert result is not None
    return result, [f"{path}: {message}" for path, message in problems]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", [pico, lambda: pico(**UNTIED), bert])
def test_a_plan_knows_the_bytes_of_every_tensor(
    tmp_path: Path, kind: str, start: Callable[[], Checkpoint]
) -> None:
    """Names, types and sizes in the file are those of the plan; the same logits after a reload."""
    source = start()
    facts, told = preview_facts(source.derive_facts(), **SETTINGS[kind])
    result = run_quantize(source, tmp_path, **SETTINGS[kind])
    assert not told
    sizes = {name: t.nbytes for name, t in load_file(tmp_path / "saved" / WEIGHTS).items()}
    assert sizes.keys() - facts.shapes.keys() == {f"{n}_scale" for n in facts.int8 | facts.int4}
    for name in facts.shapes:
        assert sizes[name] + sizes.get(f"{name}_scale", 0) == facts.tensor_bytes(name), name
    assert sum(sizes.values()) == facts.bytes < source.derive_facts().bytes
    loaded = Checkpoint.load(tmp_path / "saved")
    assert loaded.quantization == result.quantization and loaded.quantization.weights == kind
    assert torch.equal(outputs(loaded.model), outputs(result.model))
    assert loaded.measure_sizes(tmp_path / "saved")["parameters"] == facts.parameters
    twin = outputs(dequantize_checkpoint(loaded).model)
    assert twin.dtype == torch.float32
    exact = kind in ("int8", "int4")
    torch.testing.assert_close(
        outputs(loaded.model).float(), twin, rtol=0, atol=1e-6 if exact else 0.02 * twin.abs().max()
    )
    assert not torch.equal(twin, outputs(start().model))


def test_which_weights_become_what() -> None:
    """int4 where groups divide the columns; tables int8; small tables and positions stay float."""
    facts, _ = preview_facts(bert().derive_facts(), weights="int4", group_size=64)
    words = "bert.embeddings.word_embeddings.weight"
    assert facts.int4 == {f"bert.encoder.layer.{i}.output.dense.weight" for i in range(3)}
    assert words in facts.int8 and "classifier.weight" in facts.int8
    assert "bert.embeddings.position_embeddings.weight" not in facts.int8 | facts.int4
    without, _ = preview_facts(bert().derive_facts(), embeddings=False)
    assert words not in without.int8
    small, _ = preview_facts(
        replace(bert().derive_facts(), shapes=bert().derive_facts().shapes | {words: (1023, 32)})
    )
    assert words not in small.int8
    tied, _ = preview_facts(pico().derive_facts(), weights="int4", embeddings=False)
    assert tied.int8 >= {"shared.weight"}  # a head is tied to it


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(tmp_path: Path, kind: str) -> None:
    """What was pruned is zero in the quantized model, and is counted as such."""
    start = pico(**UNTIED)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in start.model.parameters():
            parameter.mul_(torch.rand_like(parameter) > 0.5)
    before = start.model.state_dict()
    zeros = {name: tensor == 0 for name, tensor in before.items()}
    run_quantize(start, tmp_path, **SETTINGS[kind])
    loaded = Checkpoint.load(tmp_path / "saved")
    after = dequantize_checkpoint(loaded).model.state_dict()
    assert sum(int(zero.sum()) for zero in zeros.values()) > 10_000
    assert all(torch.all(after[name][zero] == 0) for name, zero in zeros.items())
    nonzero = sum(int(torch.count_nonzero(after[n])) for n in loaded.derive_facts().shapes)
    assert loaded.measure_sizes(tmp_path / "saved")["nonzero"] == nonzero


@pytest.mark.parametrize(("kind", "dtype"), [("bfloat16",) * 2, ("int4", "float32")])
def test_it_is_exported_with_its_own_values(tmp_path: Path, kind: str, dtype: str) -> None:
    """Of two bytes in its own type, else as the floats it stands for; equal to the bit."""
    result = run_quantize(pico(), tmp_path, **SETTINGS[kind])
    Export(parity=None).run(Inputs(tmp_path / "saved"), stage_context(tmp_path / "export"))
    folder = tmp_path / "export" / "model"
    assert {str(t.dtype) for t in load_file(folder / WEIGHTS).values()} == {f"torch.{dtype}"}
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(outputs(plain), outputs(dequantize_checkpoint(result).model))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_quantizes_or_packs_into_other_numbers_afterwards(kind: str) -> None:
    """A second `quantize`, and values of a packed file that the model has not."""
    facts, _ = preview_facts(pico().derive_facts(), **SETTINGS[kind])
    _, told = preview_facts(facts)
    article = "an" if kind.startswith("int") else "a"
    assert told == [f": this is {article} {kind} model already"]
    allowed = {"int8": {"int8"}, "int4": set(), "bfloat16": {"bfloat16", "float32"},
               "float16": {"float32"}}[kind]  # fmt: skip
    for values in ("int8", "bfloat16", "float32"):
        _, told = preview_facts(facts, Export(format="packed", weights=values))
        assert bool(told) == (values not in allowed), told


def test_defaults_are_part_of_the_key_as_what_they_mean() -> None:
    """`activations` left out is that of the weights; what decides nothing is left out."""
    assert Quantize().parameters() == Quantize(weights="int8", activations="int8").parameters()
    assert Quantize(weights="int4").parameters() == {
        "weights": "int4", "activations": "bfloat16", "group_size": 32, "embeddings": True,
    }  # fmt: skip
    assert Quantize(weights="bfloat16").parameters() == {
        "weights": "bfloat16", "activations": "float",
    }  # fmt: skip


def test_an_int8_model_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """Its `checkpoint.json` says `int8_activations`."""
    result = run_quantize(pico(), tmp_path, weights="int8", activations="int8")
    about = {"head": "seq2seq_lm", "int8_activations": "int8"}
    (tmp_path / "saved" / CHECKPOINT_JSON).write_text(json.dumps(about))
    loaded = compressor.load_model(tmp_path / "saved")
    assert torch.equal(outputs(loaded), outputs(result.model))
