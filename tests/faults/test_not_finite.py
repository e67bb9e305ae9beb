"""NaN and infinity in weights, activations, scores and metrics: one error that names the place."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.commands import show_command
from compressor.errors import StageError
from compressor.files import write_json
from compressor.finite import finite, json_text, not_finite, require_finite_metrics
from compressor.progress import Progress
from compressor.sparsity.int8 import quantize_rows
from compressor.sparsity.packed import pack
from tests.faults import trials
from tests.faults.conftest import Tell
from tests.faults.stages import (
    pico_classifier,
    pico_t5,
    ran,
    rows_of_labels,
    rows_of_text,
)

FIRST = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
AMOUNTS = {"amounts": {"encoder": {"feed_forward": 0.5}}}
CALIBRATED = {**AMOUNTS, "calibration_rows": 4}
STAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "finetune": ("finetune", {"epochs": 1}, "the loss is nan at step 1"),
    "distill": ("distill", {"epochs": 1, "teacher": "t"}, "the loss is nan at step 1"),
    "prune": ("prune", AMOUNTS, f"{FIRST} is "),
    "prune N:M": ("prune", {"pattern": "2:4"}, f"{FIRST} is "),
    "prune taylor": ("prune", {**CALIBRATED, "importance": "taylor"}, "taylor importance of "),
    "prune wanda": ("prune", {**CALIBRATED, "importance": "wanda"}, "the norm of what comes into "),
    "prune sparsegpt": ("prune", {**CALIBRATED, "importance": "sparsegpt"}, "the Hessian of "),
    "sensitivity": ("sensitivity", {"amounts": [0.5]}, "the loss of the model as it is is nan"),
    "slice": ("slice", {"feed_forward": 0.5}, f"the square of {FIRST}"),
    "slice taylor": ("slice", {"heads": 1, "importance": "taylor"}, "the taylor importance of "),
    "smooth": ("smooth", {"calibration_rows": 4}, "what comes into encoder.block.0.layer.1."),
    "shrink": ("shrink", {"encoder_layers": 1}, f"{FIRST} is "),
    "trim_vocabulary": ("trim_vocabulary", {}, f"{FIRST} is "),
    "quantize int8": ("quantize", {"weights": "int8"}, f"{FIRST}_scale is "),
    "quantize int4": ("quantize", {"weights": "int4", "group_size": 8}, f"{FIRST}_scale is "),
    "quantize bfloat16": ("quantize", {"weights": "bfloat16"}, f"{FIRST} has an entry that"),
    "quantize float16": ("quantize", {"weights": "float16"}, f"{FIRST} has an entry that"),
    "evaluate": ("evaluate", {"max_length": 8}, "the model's logits are NaN"),
    "evaluate beams": ("evaluate", {"max_length": 8, "num_beams": 2}, "the model's logits are NaN"),
    "pseudo_label": ("pseudo_label", {"max_length": 8}, "the model's logits are NaN"),
}


def with_entry(value: float, name: str = FIRST) -> Checkpoint:
    """A T5 with one entry of a weight that is `value`."""
    checkpoint = pico_t5()
    with torch.no_grad():
        checkpoint.parameter(name)[0, 0] = value
    return checkpoint


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("value", [math.nan, math.inf][: trials(2, 1)])
def test_a_weight_that_is_not_finite_makes_no_model_and_no_score(
    tmp_path: Path, tell: Tell, name: str, value: float
) -> None:
    """No stage that reads such a weight ends well; the error names the tensor, group or step.

    It used to be pruned, sliced and trimmed in silence, an int8 0, and scored like any other.
    """
    kind, settings, expected = STAGES[name]
    artifacts = {}
    if kind == "distill":
        pico_t5().save(tmp_path / "teacher")
        artifacts = {"teacher": tmp_path / "teacher"}
    with pytest.raises(StageError) as raised:
        ran(kind, with_entry(value), rows_of_text(tmp_path), tmp_path, artifacts, **settings)
    assert expected in str(raised.value)
    assert not (tmp_path / kind / "model.safetensors").exists()
    assert not (tmp_path / kind / "predictions.csv").exists()
    fault = f"{'NaN' if math.isnan(value) else 'infinity'} in a weight, {kind}"
    tell("numbers", fault, "exit 1: the tensor, layer or step, and what to do")


@pytest.mark.parametrize(
    "place", [FIRST, "shared.weight", "decoder.block.1.layer.2.layer_norm.weight"]
)
def test_a_source_with_a_weight_that_is_not_finite_is_refused(
    tmp_path: Path, tell: Tell, place: str
) -> None:
    """Of a matrix, a tied table, a vector: `load` names it, before anything is computed with it.

    It used to become the store's first model, and each later stage's input.
    """
    checkpoint = pico_t5()
    with torch.no_grad():
        checkpoint.parameter(place).view(-1)[3] = math.nan
    checkpoint.model.save_pretrained(tmp_path / "source")
    assert checkpoint.tokenizer is not None
    checkpoint.tokenizer.save_pretrained(tmp_path / "source")
    with pytest.raises(
        StageError, match=r"is NaN in 1 of .* entries; the source is damaged"
    ) as told:
        ran("load", tmp_path, rows_of_text(tmp_path), tmp_path, source=str(tmp_path / "source"))
    assert str(told.value).startswith(place)
    tell("numbers", "NaN in a weight of the source", "exit 1: `load` names the tensor")


def test_a_teacher_that_overflows_stops_the_training(tmp_path: Path, tell: Tell) -> None:
    """A student that is well, and a teacher whose finite weights give NaN."""
    teacher = pico_t5()
    with torch.no_grad():
        teacher.parameter("decoder.final_layer_norm.weight").fill_(3e38)
        teacher.parameter("shared.weight").mul_(1e3)
    teacher.save(tmp_path / "teacher")
    with pytest.raises(StageError, match="the loss is nan at step 1"):
        ran(
            "distill", pico_t5(), rows_of_text(tmp_path), tmp_path,
            {"teacher": tmp_path / "teacher"}, teacher="t", epochs=1,
        )  # fmt: skip
    tell("numbers", "NaN from a teacher", "exit 1: the step")


def test_a_float16_model_that_overflows_is_not_scored(tmp_path: Path, tell: Tell) -> None:
    """Weights that float16 holds and activations that it does not: what larger T5s are known for.

    The decode used to write whatever token came first, and to score that.
    """
    checkpoint = pico_t5()
    with torch.no_grad():
        for name in ("encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"):
            checkpoint.parameter(name).fill_(6e4)
        checkpoint.parameter("shared.weight").mul_(1e3)
    data = rows_of_text(tmp_path)
    ran("quantize", checkpoint, data, tmp_path, weights="float16")
    with pytest.raises(StageError, match="take bfloat16"):
        ran("evaluate", tmp_path / "quantize", data, tmp_path, max_length=8)
    tell("numbers", "float16 activations that overflow", "exit 1: take bfloat16")


@pytest.mark.parametrize("value", [1e30, math.nan])
def test_a_classifier_whose_logits_are_not_finite_is_not_scored(
    tmp_path: Path, value: float
) -> None:
    """As labels, NaN is below every threshold: a score like any other came of it."""
    checkpoint = pico_classifier()
    with torch.no_grad():
        checkpoint.parameter("classifier.weight").fill_(value)
        checkpoint.parameter("bert.pooler.dense.weight").fill_(1e30)
        checkpoint.parameter("classifier.weight").mul_(1e30)
    with pytest.raises(StageError, match="the model's logits are NaN or infinite"):
        ran("evaluate", checkpoint, rows_of_labels(tmp_path), tmp_path)


def test_a_group_that_overflows_when_pruned_is_named(tmp_path: Path) -> None:
    """`sensitivity` names group and amount; NaN used to be a point of its curve."""
    from compressor.stages.sensitivity import Sensitivity, _Measure

    checkpoint = pico_t5()
    data = rows_of_text(tmp_path)
    measure = _Measure(checkpoint, data.load("validation"), _context(data, tmp_path), Sensitivity())
    assert math.isfinite(measure("the model as it is")["loss"])
    with torch.no_grad():
        checkpoint.parameter("decoder.final_layer_norm.weight").fill_(math.inf)
    with pytest.raises(StageError, match=r"the loss of lm_head pruned at 0\.5 is "):
        measure("lm_head pruned at 0.5")


def _context(data: Any, folder: Path) -> Any:
    from rich.console import Console

    from compressor.stage import Context, Launch

    quiet = Progress(Console(quiet=True), quiet=True)
    return Context(folder, folder / "resume", data, 0, Launch(), quiet)


def test_a_metric_that_is_not_finite_is_no_result() -> None:
    """Of any stage, a user's own too: its path is named, and nothing is committed."""
    require_finite_metrics({"a": 1.0, "b": [{"c": None}, "nan"], "d": True})
    with pytest.raises(StageError, match=r"its metric groups\.lm_head\.points\.1 is inf"):
        require_finite_metrics({"groups": {"lm_head": {"points": [1.0, math.inf]}}})


def test_no_json_file_has_a_bare_nan(tmp_path: Path) -> None:
    """JSON has no NaN, and many readers refuse a file with one; `write_json` used to write it."""
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": math.nan})
    assert json.loads(path.read_text()) == {"a": 1}
    values = {"a": [math.nan, -math.inf, 1.5], "b": {"c": (math.inf, True)}}
    assert finite(values) == {"a": [None, None, 1.5], "b": {"c": [None, True]}}
    assert [path for path, _ in not_finite(values)] == ["a.0", "a.1", "b.c.0"]
    assert json.loads(json_text(values), parse_constant=pytest.fail)["a"] == [None, None, 1.5]


def test_show_gives_json_of_an_older_run_that_has_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of before this was refused may have it: `show --json` gives null."""
    from argparse import Namespace

    record = {
        "name": "sensitivity", "stage": "sensitivity", "label": "sensitivity", "model": "load",
        "key": "k", "cached": False, "parameters": 1, "nonzero": 1, "nonzero_ratio": 1.0,
        "bytes": 4, "seconds": 0.1, "made_in_seconds": 0.1, "metrics": {"loss": math.nan},
    }  # fmt: skip
    run = tmp_path / "runs" / "old" / "2026-01-01_00-00-00"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps([record]))
    (run / "recipe.yaml").write_text("name: old\n")
    given = Namespace(run=str(run), outputs=str(tmp_path), json=True, scores=False)
    assert show_command(given) == 0
    shown = capsys.readouterr().out
    assert '"loss": null' in shown
    json.loads(shown, parse_constant=pytest.fail)


def test_what_a_type_cannot_hold_is_not_packed() -> None:
    """3.4e38 is a float32, and infinity in bfloat16: a packed file used to have that."""
    large = torch.ones(64, 64)
    large[5, 6] = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match="too large for bfloat16"):
        pack(large, "bfloat16")
    assert torch.equal(pack(large, "float32").unpack(), large)


def test_rows_of_the_smallest_numbers_are_zeros_as_int8() -> None:
    """A peak whose 127th part is no float32 above 0: 0 / 0 used to decide what zeros became."""
    weight = torch.zeros(3, 8)
    weight[0, 0], weight[1] = 1e-45, torch.tensor([127.0, 63.5, -127.0, 0, 0, 0, 0, 0.4])
    values, scale = quantize_rows(weight)
    assert values[0].tolist() == [0] * 8 and values[2].tolist() == [0] * 8
    assert values[1].tolist() == [127, 64, -127, 0, 0, 0, 0, 0]
    assert scale.flatten().tolist() == [1.0, 1.0, 1.0]
    weight[0, 1] = math.nan  # is not taken for a zero
    assert math.isnan(quantize_rows(weight)[1][0])


@pytest.mark.parametrize("backend", ["greedy", "beams"])
def test_an_exports_decode_refuses_nan_too(backend: str) -> None:
    """ONNX Runtime's logits go through a decoder of ours, in numpy: `argmax` takes NaN for best."""
    import numpy as np

    from compressor.backends.decoding import beam_search, greedy
    from compressor.backends.generation_settings import Settings

    class Decoder:
        def step(self, tokens: Any) -> Any:
            return np.full((len(tokens), 7), np.nan, dtype=np.float32)

        def keep(self, rows: Any) -> None: ...
        def reorder(self, rows: Any) -> None: ...

    settings = Settings(start=0, eos=(1,), max_length=5)
    decode: Callable[[], Any] = (
        (lambda: greedy(Decoder(), 2, settings))
        if backend == "greedy"
        else (lambda: beam_search(Decoder(), 2, 2, settings))
    )
    with pytest.raises(StageError, match="the model's logits are NaN"):
        decode()
