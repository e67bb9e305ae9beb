"""Trainings that diverge, or that nothing can be learned in: they stop, and say what to lower."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import StageError
from compressor.hyperparameters import Hyperparameters
from tests.faults import trials
from tests.faults.conftest import Tell
from tests.faults.stages import (
    pico_classifier,
    pico_t5,
    ran,
    rows_of_labels,
    rows_of_text,
)

CURE = "the usual cures: a lower learning_rate, more warmup_steps"


def model(kind: str) -> Checkpoint:
    return pico_t5() if kind == "t5" else pico_classifier(kind)


def rows(kind: str, folder: Path) -> Any:
    return rows_of_text(folder) if kind == "t5" else rows_of_labels(folder)


@pytest.mark.parametrize("kind", ["t5", "bert", "gpt2"])
@pytest.mark.parametrize("precision", ["float32", "bf16"][: trials(2, 1)])
@pytest.mark.parametrize("clip", [1.0, None][: trials(2, 1)])
def test_a_rate_of_a_million_stops_at_the_second_step(
    tmp_path: Path, tell: Tell, kind: str, precision: str, clip: float | None
) -> None:
    """With the step, the loss and the cure. A T5's norms turn what overflows to zeros: it gave each
    piece one probability from there on, learned nothing, and used to end as done.
    """
    settings = {"epochs": 100, "batch_size": 2, "learning_rate": 1e6, "clip_norm": clip}
    with pytest.raises(StageError) as raised:
        ran(
            "finetune", model(kind), rows(kind, tmp_path), tmp_path, **settings, precision=precision
        )
    told = str(raised.value)
    assert "at step 2, learning rate " in told and CURE in told
    assert "the loss is nan" in told or "its gradient is 0 everywhere" in told or "norm is" in told
    tell("numbers", "a learning rate of 1e6", "exit 1 at step 2: the loss, what to lower")


@pytest.mark.parametrize("rate", [1e30, 1e38, 1e300])
def test_rates_that_no_float_can_hold_stop_too(tmp_path: Path, rate: float) -> None:
    """AdamW's steps are the rate itself: weights are infinite after the first."""
    with pytest.raises(StageError, match="at step 2, learning rate"):
        ran(
            "finetune", pico_t5(), rows_of_text(tmp_path), tmp_path,
            epochs=9, batch_size=2, learning_rate=rate,
        )  # fmt: skip


def test_a_loss_of_nothing_is_no_divergence(tmp_path: Path) -> None:
    """A model that knows its rows has a loss whose gradient float32 rounds to 0: it goes on."""
    metrics = ran(
        "finetune", pico_classifier(), rows_of_labels(tmp_path), tmp_path,
        epochs=20, batch_size=2, learning_rate=100.0,
    )  # fmt: skip
    assert math.isfinite(metrics["validation_loss"])


def test_a_model_of_zeros_is_told_to_learn_nothing(tmp_path: Path, tell: Tell) -> None:
    """All of it pruned: no weight decides anything, and no step changes that."""
    checkpoint = pico_t5()
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.zero_()
    with pytest.raises(StageError, match=r"the loss is 5\.717 and its gradient is 0 everywhere"):
        ran("finetune", checkpoint, rows_of_text(tmp_path), tmp_path, epochs=1)
    assert math.isclose(math.log(304), 5.717, abs_tol=1e-3)
    tell("numbers", "training of a model that is all zero", "exit 1: nothing to learn with")


def test_a_validation_loss_that_overflows_ends_the_training(tmp_path: Path) -> None:
    """After the last step, too: it used to be a NaN in `metrics.json`, and the stage done."""
    import torch.nn as nn

    from compressor.losses import LabelLoss
    from compressor.progress import Progress
    from compressor.training import Training

    class Overflow(nn.Module):
        def __init__(self, loss: nn.Module) -> None:
            super().__init__()
            self.loss = loss

        def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.loss(batch) * torch.inf

    from rich.console import Console

    checkpoint = pico_t5()
    data = rows_of_text(tmp_path)
    examples = checkpoint.examples(data.load("train"), data)
    training = Training(
        loss=LabelLoss(checkpoint.model), measure=Overflow(LabelLoss(checkpoint.model)),
        model=checkpoint.model, train=examples, validation=examples, masks={}, pad_id=0, seed=0,
        settings=Hyperparameters(epochs=1), resume=tmp_path / "resume",
        progress=Progress(Console(quiet=True), quiet=True),
    )  # fmt: skip
    with pytest.raises(
        StageError, match="the validation loss is inf after step 1; the usual cures"
    ):
        training.run()
    # Else the same command would go on behind the epoch, and end as done.
    assert not (tmp_path / "resume").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 10**9}, {"warmup_steps": 2}, {"clip_norm": 1e-300}, {"betas": [0.0, 0.0]},
        {"batch_size": 10**9}, {"weight_decay": 0.5}, {"micro_batch_size": 1},
    ],
    ids=str,
)  # fmt: skip
def test_extreme_settings_that_mean_something_train(
    tmp_path: Path, tell: Tell, settings: dict[str, Any]
) -> None:
    """Warm-up longer than the training, a batch larger than the data, and the like."""
    metrics = ran("finetune", pico_t5(), rows_of_text(tmp_path), tmp_path, epochs=2, **settings)
    assert metrics["steps"] == 2 and math.isfinite(metrics["validation_loss"])
    tell("numbers", "extreme warm-up, clipping, batch sizes", "trained")


def test_a_decay_that_blows_weights_up_is_told_when_planned() -> None:
    """AdamW takes rate x decay of each weight away in a step: 1 and more turns their signs."""
    told: list[str] = []
    settings = Hyperparameters(learning_rate=1e-3, weight_decay=2000.0)
    settings.check_decay(lambda path, message: told.append(f"{path}: {message}"))
    assert told == [
        "weight_decay: each step would take 2 of every weight away (learning_rate x weight_decay); "
        "expected less than 1"
    ]
    Hyperparameters(learning_rate=1e-3, weight_decay=999.0).check_decay(pytest.fail)
