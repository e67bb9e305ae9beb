"""What a training remembers of itself, beside its tensors."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from itertools import pairwise

import pytest

from compressor.training_state import CURVE_POINTS, History, curve


def test_a_short_training_keeps_each_step() -> None:
    """No more steps than points: each step's own loss, counted from 1."""
    assert curve([4.0, 2.0, 1.0], most=3) == [(1, 4.0), (2, 2.0), (3, 1.0)]
    assert curve([]) == []


def test_a_long_training_keeps_means_of_equally_many_steps() -> None:
    """Seven steps in at most three points: 3 + 3 + 1, each at the last of its steps."""
    assert curve([3.0, 2.0, 1.0, 6.0, 6.0, 6.0, 9.0], most=3) == [(3, 2.0), (6, 6.0), (7, 9.0)]


@pytest.mark.parametrize("steps", [1, 199, 200, 201, 399, 400, 401, 12_345])
def test_a_curve_is_bounded_and_ends_with_the_training(steps: int) -> None:
    """At most 200 points, rising steps, and the mean over all steps is that of the losses."""
    losses = [random.Random(steps + n).uniform(1, 5) for n in range(steps)]
    found = curve(losses)
    ends = [0, *(step for step, _ in found)]
    assert len(found) <= CURVE_POINTS and ends == sorted(set(ends)) and ends[-1] == steps
    widths = [after - before for before, after in pairwise(ends)]
    total = sum(width * loss for width, (_, loss) in zip(widths, found, strict=True))
    assert total == pytest.approx(sum(losses))


def test_validation_losses_stand_at_the_ends_of_epochs() -> None:
    """Ten steps an epoch, ended by `max_steps` at 25: at 10, 20 and 25."""
    history = History(step=25, losses=[1.0] * 25, validation_losses=[3.0, 2.0, 1.5])
    history.steps_per_epoch = 10
    assert history.metrics()["validation_curve"] == [[10, 3.0], [20, 2.0], [25, 1.5]]


def test_a_checkpoint_from_before_goes_on() -> None:
    """Its file has no `steps_per_epoch`: it loads, and the training fills that in."""
    old = asdict(History(step=3, losses=[1.0, 2.0, 3.0]))
    del old["steps_per_epoch"]
    history = History(**json.loads(json.dumps(old)))
    assert history.steps_per_epoch == 0 and history.metrics()["train_losses"] == curve([1.0, 2, 3])
