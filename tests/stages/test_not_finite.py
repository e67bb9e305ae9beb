"""NaN and infinity in weights, activations and metrics: one error that names the place."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import StageError
from compressor.core.files import write_json
from compressor.core.numbers import json_text, replace_nonfinite, require_finite_metrics
from compressor.models.checkpoint import Checkpoint
from tests.harness.stages import measure, pico_classifier, pico_t5, rows_of_labels, rows_of_text

FIRST = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
AMOUNTS: dict[str, Any] = {"amounts": {"encoder": {"feed_forward": 0.5}}}
CALIBRATED = {**AMOUNTS, "calibration_rows": 4}
STAGES: dict[str, tuple[dict[str, Any], str]] = {
    "finetune": ({"epochs": 1}, "the loss is nan at step 1"),
    "distill": ({"epochs": 1, "teacher": "t"}, "the loss is nan at step 1"),
    "prune": (AMOUNTS, f"{FIRST} is "),
    "prune taylor": ({**CALIBRATED, "importance": "taylor"}, "taylor importance of "),
    "prune wanda": ({**CALIBRATED, "importance": "wanda"}, "the norm of what comes into "),
    "prune sparsegpt": ({**CALIBRATED, "importance": "sparsegpt"}, "the Hessian of "),
    "sensitivity": ({"amounts": [0.5]}, "the loss of the model as it is is nan"),
    "slice": ({"feed_forward": 0.5}, f"the square of {FIRST}"),
    "smooth": ({"calibration_rows": 4}, "what comes into encoder.block.0.layer.1."),
    "shrink": ({"encoder_layers": 1}, f"{FIRST} is "),
    "trim_vocabulary": ({}, f"{FIRST} is "),
    "quantize int8": ({"weights": "int8"}, f"{FIRST}_scale is "),
    "quantize bfloat16": ({"weights": "bfloat16"}, f"{FIRST} has an entry that"),
    "evaluate": ({"max_length": 8}, "the model's logits are NaN"),
    "pseudo_label": ({"max_length": 8}, "the model's logits are NaN"),
}


def with_entry(value: float, name: str) -> Checkpoint:
    """A T5 with one entry of a tensor that is `value`."""
    checkpoint = pico_t5()
    with torch.no_grad():
        checkpoint.get_parameter(name).view(-1)[3] = value
    return checkpoint


@pytest.mark.parametrize(
    ("name", "value"), list(zip(STAGES, itertools.cycle([math.nan, math.inf]), strict=False))
)
def test_a_weight_that_is_not_finite_makes_no_model_and_no_score(
    tmp_path: Path, name: str, value: float
) -> None:
    """The error names the tensor, group or step. It used to be pruned, sliced and scored."""
    settings, expected = STAGES[name]
    kind = name.split(maxsplit=1)[0]
    pico_t5().save(tmp_path / "teacher")
    artifacts = {"teacher": tmp_path / "teacher"} if kind == "distill" else {}
    checkpoint, rows = with_entry(value, FIRST), rows_of_text(tmp_path)
    with pytest.raises(StageError) as error:
        measure(kind, checkpoint, rows, tmp_path, artifacts, **settings)
    assert expected in str(error.value)
    assert not (tmp_path / kind / "model.safetensors").exists()
    assert not (tmp_path / kind / "predictions.csv").exists()


@pytest.mark.parametrize(
    "place", [FIRST, "shared.weight", "decoder.block.1.layer.2.layer_norm.weight"]
)
def test_a_source_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path, place: str) -> None:
    """A matrix, a tied table, a vector: `load` names it, before anything is computed with it."""
    with_entry(math.nan, place).save(tmp_path / "source")
    (tmp_path / "source" / "checkpoint.json").unlink()
    expected = rf"^{place} is NaN in 1 of .* entries; the source is damaged"
    with pytest.raises(StageError, match=expected):
        measure("load", tmp_path, rows_of_text(tmp_path), tmp_path, source=str(tmp_path / "source"))


def test_a_float16_model_that_overflows_is_not_scored(tmp_path: Path) -> None:
    """Weights that float16 holds and activations that it does not: what larger T5s are known for.

    The decode used to write whatever token came first, and to score that.
    """
    checkpoint, data = pico_t5(), rows_of_text(tmp_path)
    with torch.no_grad():
        for stack in ("encoder", "decoder"):
            checkpoint.get_parameter(f"{stack}.final_layer_norm.weight").fill_(6e4)
        checkpoint.get_parameter("shared.weight").mul_(1e3)
    measure("quantize", checkpoint, data, tmp_path, weights="float16")
    with pytest.raises(StageError, match="take bfloat16"):
        measure("evaluate", tmp_path / "quantize", data, tmp_path, max_length=8)


@pytest.mark.parametrize("value", [1e30, math.nan])
def test_a_classifier_whose_logits_are_not_finite_is_not_scored(
    tmp_path: Path, value: float
) -> None:
    """As labels, NaN is below every threshold: a score like any other came of it."""
    checkpoint = pico_classifier()
    with torch.no_grad():
        checkpoint.get_parameter("bert.pooler.dense.weight").fill_(1e30)
        checkpoint.get_parameter("classifier.weight").fill_(value).mul_(1e30)
    with pytest.raises(StageError, match="the model's logits are NaN or infinite"):
        measure("evaluate", checkpoint, rows_of_labels(tmp_path), tmp_path)


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
    assert replace_nonfinite(values) == {"a": [None, None, 1.5], "b": {"c": [None, True]}}
    assert json.loads(json_text(values), parse_constant=pytest.fail)["a"] == [None, None, 1.5]
