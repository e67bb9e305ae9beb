"""Amounts at their ends work; what diverges stops with the step and the cure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

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
