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
    """Hears a point's events, and raises EarlyStop after an epoch that is worse than most were.

    A point that ended a stage before it was killed, and runs again, counts once.
    """

    def __init__(self, journal: Path, settings: StopEarly, point: str) -> None:
        self.journal, self.settings, self.point = journal, settings, point
        self._stage, self._has_begun = "", False
        self._trial: optuna.Trial | None = None
        self._values: list[float] = []

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "stage_started":
            self._stage, self._has_begun, self._trial, self._values = (
                values["name"],
                False,
                None,
                [],
            )
        elif kind == "epoch":
            self._hear([values["validation_loss"]])
        elif kind == "resumed":
            self._hear(values["validation_losses"])
        elif kind == "stage_ended":
            if values["cached"]:  # made by another trial, but as bad as it is
                self._hear(values.get("validation_losses", ()))
            self._end(failed=False)
        elif kind == "stage_failed":
            self._end(failed=True)

    def _hear(self, losses: Sequence[float]) -> None:
        if losses and not self._has_begun:
            self._has_begun, self._trial = True, self._begin()
        for loss in losses:
            if self._trial is not None:
                self._report(self._trial, loss)

    def _begin(self) -> optuna.Trial | None:
        """Begin a trial of this stage; None where the point had ended it. Raises EarlyStop."""
        study = optuna.create_study(
            study_name=f"validation loss of {self._stage}",
            storage=open_journal(self.journal),
            sampler=optuna.samplers.RandomSampler(),
            pruner=optuna.pruners.PercentilePruner(
                self.settings.percentile,
                n_startup_trials=self.settings.after_trials,
                n_warmup_steps=self.settings.after_epochs,
            ),
            direction="minimize",
            load_if_exists=True,
        )
        before = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        earlier = [trial for trial in before if trial.user_attrs.get(POINT) == self.point]
        if earlier:
            if earlier[-1].state == TrialState.PRUNED:
                raise EarlyStop(earlier[-1].user_attrs[REASON])
            return None
        trial = study.ask()
        trial.set_user_attr(POINT, self.point)
        return trial

    def _report(self, trial: optuna.Trial, loss: float) -> None:
        """Report the loss of one more epoch. Raises EarlyStop."""
        self._values.append(loss)
        epoch = len(self._values)
        trial.report(loss, epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, where no loss is a number
            stop = trial.should_prune()
        if stop:
            percentile = self.settings.percentile
            limit = "median" if percentile == 50 else f"percentile {percentile:g}"
            reason = (
                f"after epoch {epoch} of {self._stage!r} the best validation loss, "
                f"{min(self._values):.4g}, is above the {limit} of the trials before"
            )
            trial.set_user_attr(REASON, reason)
            trial.study.tell(trial, state=TrialState.PRUNED)
            raise EarlyStop(reason)

    def _end(self, *, failed: bool) -> None:
        """Note that the stage has ended."""
        if self._trial is None:
            return
        if not failed and math.isfinite(self._values[-1]):
            self._trial.study.tell(self._trial, self._values[-1])
        else:
            self._trial.study.tell(self._trial, state=TrialState.FAIL)
        self._trial = None
