"""What a training remembers of itself, beside its tensors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config

from compressor.data.examples import Examples
from compressor.models.loading import build_model
from compressor.training.checkpoints import History, downsample_losses, last_checkpoint
from tests.harness.models import T5
from tests.harness.training import make_training

NAME = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
STEPS = 12


def test_a_curve_has_each_step_or_means_of_equally_many() -> None:
    """Counted from 1; seven steps in at most three points: 3 + 3 + 1, each at its last step. Of any
    training at most 200, the last at its end.
    """
    assert downsample_losses([4.0, 2.0, 1.0], most=3) == [(1, 4.0), (2, 2.0), (3, 1.0)]
    assert downsample_losses([]) == []
    seven = [3.0, 2.0, 1.0, 6.0, 6.0, 6.0, 9.0]
    assert downsample_losses(seven, most=3) == [(3, 2.0), (6, 6.0), (7, 9.0)]
    for steps in (199, 200, 201, 399, 400, 401, 12_345):
        curve = downsample_losses([1.5] * steps)
        assert len(curve) <= 200 and curve[-1] == (steps, 1.5)


def test_what_a_history_tells() -> None:
    """Validation losses at the ends of epochs: of ten steps each, ended by `max_steps` at 25. The
    loss is the mean of the last twentieth: of 40 steps two, of 5 the last.
    """
    history = History(step=25, losses=[1.0] * 25, validation_losses=[3.0, 2.0, 1.5])
    history.steps_per_epoch = 10
    assert history.summarize()["validation_curve"] == [[10, 3.0], [20, 2.0], [25, 1.5]]
    assert History(losses=[9.0] * 38 + [1.0, 2.0]).summarize()["train_loss"] == 1.5
    assert History(losses=[9.0] * 4 + [1.0]).summarize()["train_loss"] == 1.0


def train(
    resume: Path,
    stop_at: int | None = None,
    *,
    gradual: bool = True,
    rows: int = 24,
    seed: int = 7,
    drawn_before: int = 0,
    **settings: Any,
) -> tuple[History, dict[str, torch.Tensor]]:
    """A pico T5 with dropout, trained with checkpoints after every step; where `gradual`, each of
    the first eight steps masks four more entries. `stop_at`: Ctrl-C in the step after this one.
    """
    torch.manual_seed(1)
    model = build_model(T5Config(**T5, decoder_start_token_id=0), "seq2seq_lm")
    torch.rand(drawn_before)
    chance = random.Random(0)
    ids = [[chance.randrange(3, 50) for _ in range(9)] + [1] for _ in range(rows)]
    masks: dict[str, torch.Tensor] = {}

    def after_step(done: int, total: int, whole: Any) -> None:
        if done - 1 == stop_at:
            raise KeyboardInterrupt
        mask = masks.setdefault(NAME, torch.ones(24, 16, dtype=torch.bool))
        if done <= 8:
            mask.view(-1)[4 * done - 4 : 4 * done] = False

    usual = {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "checkpoint_seconds": 0.0}
    targets = [row[:4] for row in ids]
    history = make_training(
        model, Examples(ids, targets), resume, usual | settings,
        validation=Examples(ids[:4], targets[:4]), masks=masks, seed=seed,
        after_step=after_step if gradual else None,
    ).run()  # fmt: skip
    return history, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints may take all of the time."""
    monkeypatch.setattr("compressor.training.loop.OWN_CHECKPOINT_SHARE", 1e9)


@pytest.mark.usefixtures("every_step")
def test_a_training_that_was_stopped_twice_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Weights, averages of gradients, dropout's numbers, masks and losses, past a tenth step."""
    history, weights = train(tmp_path / "undisturbed")
    for stop in (3, 10):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped", stop)
        last = last_checkpoint(tmp_path / "stopped")
        assert last is not None and last.name == f"step-{stop}"
    again, same = train(tmp_path / "stopped")
    assert again.resumed == 2 and history.resumed == 0
    assert again.losses == history.losses and len(again.losses) == STEPS
    assert again.validation_losses == history.validation_losses
    assert all(torch.equal(same[name], weight) for name, weight in weights.items())
    assert int((weights[NAME] == 0).sum()) == 32
    assert again.samples == history.samples == 48
    told = again.summarize()
    assert told["samples_per_second"] == pytest.approx(48 / again.seconds)
    assert told["train_loss"] == again.losses[-1]


def test_a_training_draws_from_its_own_seed_alone(tmp_path: Path) -> None:
    """Whatever was drawn before it; and another seed gives other losses, of dropout too."""
    first, _ = train(tmp_path / "1", gradual=False, max_steps=2)
    second, _ = train(tmp_path / "2", gradual=False, max_steps=2, drawn_before=3)
    assert first.losses == second.losses
    seventh, _ = train(tmp_path / "3", gradual=False, rows=1)
    eighth, _ = train(tmp_path / "4", gradual=False, rows=1, seed=8)
    assert seventh.losses[0] != pytest.approx(eighth.losses[0], abs=1e-4)


def test_the_validation_loss_is_without_dropout(tmp_path: Path) -> None:
    """At a learning rate that changes nothing it is the same after each epoch, in every bit."""
    history, _ = train(tmp_path, gradual=False, learning_rate=1e-30)
    first, second = history.validation_losses
    assert first == second
    assert len(set(history.losses)) == STEPS
