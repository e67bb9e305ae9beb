"""Amounts at their ends, models of zeros, a few rows, limits of a token: what still means something
works, and what diverges stops with the step and the cure.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import StageError
from compressor.stages.finetune import Finetune
from compressor.training import loop
from tests.harness.stages import (
    measure,
    pico_classifier,
    pico_t5,
    preview,
    rows_of_labels,
    rows_of_text,
)

ALL = {
    "encoder": {"self_attention": 1.0, "feed_forward": 1.0},
    "decoder": {"self_attention": 1.0, "cross_attention": 1.0, "feed_forward": 1.0},
    "lm_head": 1.0,
}


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "wanda", "sparsegpt"])
def test_everything_is_pruned_and_pruned_again(tmp_path: Path, importance: str) -> None:
    """Amount 1 of every group, then of nothing, which is left."""
    data = rows_of_text(tmp_path)
    settings: dict[str, Any] = {"amounts": ALL, "importance": importance, "calibration_rows": 2}
    first = measure("prune", pico_t5(), data, tmp_path / "1", **settings)["groups"]
    assert all(group["left"] == 0 for group in first.values())
    again = measure("prune", tmp_path / "1" / "prune", data, tmp_path / "2", **settings)["groups"]
    assert all(group["pruned"] == 0 and group["amount"] == 0.0 for group in again.values())


def test_a_model_of_zeros_goes_through_what_reads_it(tmp_path: Path) -> None:
    """Pattern, slicing, smoothing, each kind of quantization, sensitivity, a decode."""
    data = rows_of_text(tmp_path)
    measure("prune", pico_t5(), data, tmp_path, amounts=ALL)
    stages: list[tuple[str, dict[str, Any]]] = [
        ("prune", {"pattern": "2:4", "importance": "sparsegpt"}),
        ("slice", {"feed_forward": 0.5, "heads": 1, "layers": 1}),
        ("smooth", {}),
        ("quantize", {"weights": "int8"}),
        ("quantize", {"weights": "int4", "group_size": 8}),
        ("quantize", {"weights": "float16"}),
        ("sensitivity", {"amounts": [1.0]}),
        ("evaluate", {"max_length": 6}),
    ]
    for number, (kind, settings) in enumerate(stages):
        metrics = measure(kind, tmp_path / "prune", data, tmp_path / str(number), **settings)
    assert metrics["rouge1"] == 0.0 and metrics["cut_off"] == 1.0
    assert metrics["intervals"]["rouge1"] == [0.0, 0.0]


@pytest.mark.parametrize("limit", [1, 2])
def test_limits_of_a_token_or_two(tmp_path: Path, limit: int) -> None:
    """Source, target and summary: the end token alone."""
    data = rows_of_text(tmp_path, max_source_length=limit, max_target_length=limit)
    trained = measure("finetune", pico_t5(), data, tmp_path, epochs=1)
    assert math.isfinite(trained["validation_loss"])
    scored = measure("evaluate", pico_t5(), data, tmp_path, max_length=2)
    assert scored["gen_len"] == 1.0 and scored["count"] == 8


# Trainings that diverge, or that nothing can be learned in


@pytest.mark.parametrize(
    ("kind", "rate"), [("t5", 1e6), ("t5", 1e300), ("bert", 1e38), ("gpt2", 1e38)]
)
def test_a_rate_that_is_too_high_stops_at_the_second_step(
    tmp_path: Path, kind: str, rate: float
) -> None:
    """With the step, the loss and the cure. A T5's norms turn what overflows to zeros: it gave each
    token one probability from there on, learned nothing, and used to end as done.
    """
    model = pico_t5() if kind == "t5" else pico_classifier(kind)
    rows = rows_of_text(tmp_path) if kind == "t5" else rows_of_labels(tmp_path)
    with pytest.raises(StageError) as error:
        measure("finetune", model, rows, tmp_path, epochs=100, batch_size=2, learning_rate=rate)
    message = str(error.value)
    assert "at step 2, learning rate " in message
    assert "the usual cures: a lower learning_rate, more warmup_steps" in message
    assert any(part in message for part in ("the loss is nan", "0 everywhere", "norm is"))


def test_a_loss_of_nothing_is_no_divergence(tmp_path: Path) -> None:
    """A model that knows its rows has a loss whose gradient float32 rounds to 0: it goes on."""
    settings = {"epochs": 20, "batch_size": 2, "learning_rate": 100.0}
    metrics = measure("finetune", pico_classifier(), rows_of_labels(tmp_path), tmp_path, **settings)
    assert math.isfinite(metrics["validation_loss"])


def test_a_model_of_zeros_learns_nothing(tmp_path: Path) -> None:
    """No weight decides anything, and no step changes that; of 304 tokens the loss is ln 304."""
    checkpoint = pico_t5()
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.zero_()
    with pytest.raises(StageError, match=r"the loss is 5\.717 and its gradient is 0 everywhere"):
        measure("finetune", checkpoint, rows_of_text(tmp_path), tmp_path, epochs=1)
    assert math.isclose(math.log(304), 5.717, abs_tol=1e-3)


def test_a_validation_loss_that_overflows_ends_the_training(tmp_path: Path, monkeypatch) -> None:
    """After the last step, too, and without a checkpoint, from which it would end as done."""
    monkeypatch.setattr(loop.Training, "validation_loss", lambda _: math.inf)
    with pytest.raises(StageError, match="the validation loss is inf after step 1; the usual cure"):
        measure("finetune", pico_t5(), rows_of_text(tmp_path), tmp_path, epochs=1)
    assert not (tmp_path / "finetune" / "resume").exists()


def test_a_decay_that_blows_weights_up_is_refused_when_planned() -> None:
    """AdamW takes rate x decay of each weight away in a step: 1 and more turns their signs."""
    stage = Finetune(learning_rate=1e-3, weight_decay=2000.0)
    ((path, message),) = preview(stage, pico_t5().derive_facts())[1]
    assert path == "weight_decay" and "each step would take 2 of every weight away" in message
    assert preview(stage.model_copy(update={"weight_decay": 999.0}), None)[1] == []
