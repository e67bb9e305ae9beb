"""Stop a trial whose validation loss is worse than that of most trials before it.

Optuna's pruners know studies of one goal, and compare all that a trial reports. So the search's
journal has a study for each stage that trains, with the validation loss as its only goal.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from compressor.core.errors import EarlyStop
from compressor.recipe.objective import StopEarly
from compressor.runs.search.study import open_journal

POINT, REASON = "point", "reason"


class EpochWatch:
    """Hears a point's events, and raises EarlyStop after an epoch that is worse than most were."""

    def __init__(self, journal: Path, settings: StopEarly, point: str) -> None:
        self.journal, self.settings, self.point = journal, settings, point
        self._stage = ""
        self._losses: StageLosses | None = None

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "stage_started":
            self._stage, self._losses = values["name"], None
        elif kind == "epoch":
            self._hear([values["validation_loss"]])
        elif kind == "resumed":
            self._hear(values["validation_losses"])
        elif kind == "stage_ended":
            if values["cached"]:  # made by another trial, but as bad as it is
                self._hear(values.get("validation_losses", ()))
            self._end(TrialState.COMPLETE)
        elif kind == "stage_failed":
            self._end(TrialState.FAIL)

    def _hear(self, losses: Sequence[float]) -> None:
        if losses and self._losses is None:
            self._losses = StageLosses(self.journal, self.settings, self._stage, self.point)
        for loss in losses:
            assert self._losses is not None
            self._losses.add(loss)

    def _end(self, state: TrialState) -> None:
        if self._losses is not None:
            self._losses.end(state)
        self._losses = None


class StageLosses:
    """The validation losses of one stage of one point, among those of other points.

    A point that ended this stage before it was killed, and runs again, counts once.
    """

    def __init__(self, journal: Path, settings: StopEarly, stage: str, point: str) -> None:
        self.stage, self.settings = stage, settings
        pruner = optuna.pruners.PercentilePruner(
            settings.percentile,
            n_startup_trials=settings.after_trials,
            n_warmup_steps=settings.after_epochs,
        )
        self._study = optuna.create_study(
            study_name=f"validation loss of {stage}",
            storage=open_journal(journal),
            sampler=optuna.samplers.RandomSampler(),
            pruner=pruner,
            direction="minimize",
            load_if_exists=True,
        )
        self._values: list[float] = []
        before = self._study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        earlier = [trial for trial in before if trial.user_attrs.get(POINT) == point]
        if earlier and earlier[-1].state == TrialState.PRUNED:
            raise EarlyStop(earlier[-1].user_attrs[REASON])
        self._trial = None if earlier else self._study.ask()
        if self._trial is not None:
            self._trial.set_user_attr(POINT, point)

    def add(self, loss: float) -> None:
        """Take the loss of one more epoch. Raises EarlyStop."""
        if self._trial is None:
            return
        self._values.append(loss)
        epoch = len(self._values)
        self._trial.report(loss, epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where no loss is a number
            stop = self._trial.should_prune()
        if stop:
            percentile = self.settings.percentile
            limit = "median" if percentile == 50 else f"percentile {percentile:g}"
            reason = (
                f"after epoch {epoch} of {self.stage!r} the best validation loss, "
                f"{min(self._values):.4g}, is above the {limit} of the trials before"
            )
            self._trial.set_user_attr(REASON, reason)
            self._study.tell(self._trial, state=TrialState.PRUNED)
            raise EarlyStop(reason)

    def end(self, state: TrialState) -> None:
        """Note that the stage has ended."""
        if self._trial is None:
            return
        if state == TrialState.COMPLETE and math.isfinite(self._values[-1]):
            self._study.tell(self._trial, self._values[-1])
        else:
            self._study.tell(self._trial, state=TrialState.FAIL)
