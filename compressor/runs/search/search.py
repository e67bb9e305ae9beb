"""A search from command to table: draw points, launch them, hear their results, name the best.

What draws is `study`; where a trial runs decides the launcher, as for the points of a grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.files import expand_home, write_json
from compressor.core.redaction import public_command
from compressor.engine.run_folder import OUTCOME, read_metrics
from compressor.recipe.compose import ComposedRecipe
from compressor.runs.search.plan import PlannedSearch, planned_search, require_optuna
from compressor.runs.sweeps.folder import SweepFolder
from compressor.runs.sweeps.grid import print_points, state, watched
from compressor.runs.sweeps.launch import Launched, launched
from compressor.runs.sweeps.points import Point, folder_name

if TYPE_CHECKING:
    from compressor.runs.search.study import Study, Trial


def search(recipe: str, overrides: Sequence[str], console: Console, *, quiet: bool) -> int:
    """Run trials until there are as many as asked for; 0 if none failed, 1 if any did.

    The same command goes on with a search that was killed. Raises RecipeError before anything
    runs where the space has a value that is wrong.
    """
    require_optuna()
    asked = planned_search(recipe, overrides, reachable=True)
    base = asked.base.recipe
    folder = SweepFolder.open(expand_home(base.outputs), base.name, asked.identity)
    say = f"another process runs this search, in {folder.path}; waiting for it"
    with folder.alone(asked.store, lambda: console.say(say)):
        return _search(asked, folder, console, quiet=quiet)


def _search(asked: PlannedSearch, folder: SweepFolder, console: Console, *, quiet: bool) -> int:
    from compressor.runs.search.early_stopping import EpochWatch
    from compressor.runs.search.study import JOURNAL, Study

    journal = (folder.path / JOURNAL).absolute()
    study = Study(journal, asked.search, asked.objective.goals, asked.space)
    trials = Trials(asked, folder, study)
    stop = asked.search.stop_early
    watch = partial(EpochWatch, journal, stop) if stop is not None else None
    first, trouble = asked.middle.point.overrides, None
    if done := [trial for trial in study.trials if trial.ended]:
        total = max(len(done), asked.search.trials)
        console.say(f"{len(done)} of {total} trials are done")
    with (
        launched(
            *(asked.recipe, first, asked.settings, folder.path, asked.base),
            quiet=quiet,
            watch=watch,
        ) as launcher,
        watched(trials, folder, console, here=launcher.here),
    ):
        while trouble is None and (drawn := study.next()):
            trouble = trials.run(launcher, drawn)
            console.say(trials.progress())
    code = print_points(state(trials, folder), folder, console)
    _print_best(trials, console)
    if trouble is not None:
        raise StageError(trouble)
    return code


class Trials:
    """The trials of a search as points of its folder, which `sweep.json` tells of."""

    def __init__(self, asked: PlannedSearch, folder: SweepFolder, study: Study) -> None:
        self.asked, self.folder, self.study = asked, folder, study
        self.points: list[Point] = [self._point(trial) for trial in study.trials]
        self._note()

    @property
    def base(self) -> ComposedRecipe:
        return self.asked.base

    @property
    def counts(self) -> None:
        """What trials share is known when they were drawn."""

    @property
    def best(self) -> list[str]:
        """Names of the best points, in the order of their trials."""
        best = self.study.best
        return [self._point(trial).name for trial in self.study.trials if trial.number in best]

    def _point(self, trial: Trial) -> Point:
        space = self.asked.space
        overrides = space.at(space.texts(trial.values))
        name = folder_name(f"{trial.number:03d},{space.title(trial.values)}", overrides)
        return Point(name, overrides, space.shown(trial.values))

    def run(self, launcher: Launched, drawn: Sequence[Trial]) -> str | None:
        """Run trials, and tell the study of their ends; why the launcher could not, if so.

        A trial that had ended when the search was killed before it heard of it, is not run again.
        """
        points = {trial.number: self._point(trial) for trial in drawn}
        known = {point.name for point in self.points}
        self.points = [*self.points, *(p for p in points.values() if p.name not in known)]
        self._note()
        missing = [p for p in points.values() if self.folder.outcome(p.name) is None]
        trouble = None
        try:
            if missing:
                launcher.run(missing)
        except StageError as error:
            trouble = str(error)
        for number, point in points.items():
            outcome = self.folder.outcome(point.name)
            if outcome is not None:
                self._tell(number, point, outcome)
            elif trouble is None:
                trouble = f"{point.name}: the launcher came back, but the trial did not end"
        self._note()
        return trouble

    def _tell(self, number: int, point: Point, outcome: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        if outcome["error"] is not None:
            return self.study.tell(number, TrialState.FAIL)
        if outcome["pruned"] is not None:
            return self.study.tell(number, TrialState.PRUNED)
        found = self._values(point)
        lacking = [path for path, v in found.items() if v is None or not math.isfinite(v)]
        if lacking:
            error = f"its objective is no number: {', '.join(lacking)}"
            write_json(self.folder.point(point.name) / OUTCOME, outcome | {"error": error})
            return self.study.tell(number, TrialState.FAIL)
        values = [value for value in found.values() if value is not None]
        return self.study.tell(number, TrialState.COMPLETE, values)

    def _values(self, point: Point) -> dict[str, float | None]:
        """What a point that ended came to in each goal."""
        try:
            records = read_metrics(self.folder.point(point.name))
        except (OSError, json.JSONDecodeError):
            records = []
        return {goal.path: goal.find_value(records) for goal in self.asked.objective.goals}

    def _note(self) -> None:
        """Bring `sweep.json` up to date."""
        asked, search = self.asked, self.asked.search
        stages = len(asked.middle.steps)
        self.folder.update(
            command=public_command(asked.recipe, "-m", *asked.overrides),
            points={
                point.name: {
                    "differs": dict(point.differs),
                    "overrides": list(point.overrides),
                    "stages": stages,
                }
                for point in self.points
            },
            search={
                **search.model_dump(mode="json"),
                "objective": {goal.path: goal.direction for goal in asked.objective.goals},
                "space": asked.space.describe(),
                "best": self.best,
            },
        )

    def progress(self) -> str:
        """How many trials have ended, and the best so far."""
        ended = sum(trial.ended for trial in self.study.trials)
        text = f"{ended} of {self.asked.search.trials} trials"
        best = self.best
        if len(best) == 1:
            text += f"; best: {self.told(best[0])}"
        elif best:
            text += f"; {len(best)} best"
        return text

    def told(self, name: str) -> str:
        """A point with its goals."""
        point = next(point for point in self.points if point.name == name)
        values = self._values(point).items()
        facts = (f"{path} {value:.6g}" for path, value in values if value is not None)
        return f"{name}  {'  '.join(facts)}"


def _print_best(trials: Trials, console: Console) -> None:
    """Which trials are best, and the command that runs each alone, which the store answers."""
    best = trials.best
    if not best:
        console.say("no trial came to its end")
        return
    several = len(trials.asked.objective.goals) > 1
    console.say("best: none is better in one goal and as good in all" if several else "best:")
    by_name = {point.name: point for point in trials.points}
    for name in best:
        console.say(f"  {trials.told(name)}")
        console.say(f"    {public_command(trials.asked.recipe, *by_name[name].overrides)}")
