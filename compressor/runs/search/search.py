"""Run a search: draw points, launch them as those of a grid, hear their results, name the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.files import expand_home, write_json
from compressor.core.redaction import public_command
from compressor.engine.run_folder import OUTCOME
from compressor.recipe.compose import ComposedRecipe
from compressor.runs.search.plan import PlannedSearch, plan_search, require_optuna
from compressor.runs.sweeps.folder import SweepFolder
from compressor.runs.sweeps.grid import describe_point, live_page, print_points, read_sweep
from compressor.runs.sweeps.launch import PointLauncher, open_launcher
from compressor.runs.sweeps.points import Point, make_folder_name

if TYPE_CHECKING:
    from compressor.runs.search.study import Study, Trial


def run_search(recipe: str, overrides: Sequence[str], console: Console, *, quiet: bool) -> int:
    """Run trials until there are as many as asked for; 0 if none failed, 1 if any did.

    Goes on with a search that was killed. Raises RecipeError for a wrong space.
    """
    require_optuna()
    planned = plan_search(recipe, overrides, reachable=True)
    base = planned.base.recipe
    folder = SweepFolder.open(expand_home(base.outputs), base.name, planned.identity)
    waiting = f"another process runs this search, in {folder.path}; waiting for it"
    with folder.lock(planned.store, lambda: console.say(waiting)):
        return _run_trials(planned, folder, console, quiet=quiet)


def _run_trials(
    planned: PlannedSearch, folder: SweepFolder, console: Console, *, quiet: bool
) -> int:
    from compressor.runs.search.early_stopping import EpochWatch
    from compressor.runs.search.study import JOURNAL, Study

    journal = (folder.path / JOURNAL).absolute()
    study = Study(journal, planned.search, planned.objective.goals, planned.space)
    trials, early = Trials(planned, folder, study), planned.search.stop_early
    first, trouble = planned.middle.point.overrides, None
    if done := [trial for trial in study.trials if trial.has_ended]:
        total = max(len(done), planned.search.trials)
        console.say(f"{len(done)} of {total} trials are done")
    with (
        open_launcher(
            *(planned.recipe, first, planned.settings, folder.path, planned.base),
            quiet=quiet,
            watch=None if early is None else partial(EpochWatch, journal, early),
        ) as launcher,
        live_page(trials, folder, console, here=launcher.here),
    ):
        while trouble is None and (drawn := study.draw()):
            trouble = trials.run(launcher, drawn)
            console.say(trials.describe_progress())
    code = print_points(read_sweep(trials, folder), folder, console)
    _print_best(trials, console)
    if trouble is not None:
        raise StageError(trouble)
    return code


class Trials:
    """The trials of a search as points of its folder, which `sweep.json` lists."""

    counts = None
    """What trials share is known when they were drawn."""

    def __init__(self, planned: PlannedSearch, folder: SweepFolder, study: Study) -> None:
        self.planned, self.folder, self.study = planned, folder, study
        self.points: list[Point] = [self._make_point(trial) for trial in study.trials]
        self._update_folder()

    @property
    def base(self) -> ComposedRecipe:
        return self.planned.base

    @property
    def best(self) -> list[Point]:
        """The best points, in the order of their trials."""
        best = self.study.best
        return [self._make_point(trial) for trial in self.study.trials if trial.number in best]

    def _make_point(self, trial: Trial) -> Point:
        space = self.planned.space
        overrides = space.at(space.write(trial.values))
        name = make_folder_name(f"{trial.number:03d},{space.make_title(trial.values)}", overrides)
        return Point(name, overrides, space.show(trial.values))

    def run(self, launcher: PointLauncher, drawn: Sequence[Trial]) -> str | None:
        """Run trials, and tell the study of their ends; returns why the launcher could not, if so.

        A trial that had ended when the search was killed before it heard of it, is not run again.
        """
        points = {trial.number: self._make_point(trial) for trial in drawn}
        self.points += [p for p in points.values() if p.name not in {q.name for q in self.points}]
        self._update_folder()
        missing = [p for p in points.values() if self.folder.record(p.name).outcome is None]
        trouble = None
        try:
            if missing:
                launcher.run(missing)
        except StageError as error:
            trouble = str(error)
        for number, point in points.items():
            outcome = self.folder.record(point.name).outcome
            if outcome is not None:
                self._tell_study(number, point, outcome)
            elif trouble is None:
                trouble = f"{point.name}: the launcher came back, but the trial did not end"
        self._update_folder()
        return trouble

    def _tell_study(self, number: int, point: Point, outcome: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        if outcome["error"] is not None:
            return self.study.tell(number, TrialState.FAIL)
        if outcome["pruned"] is not None:
            return self.study.tell(number, TrialState.PRUNED)
        goals = self._read_goals(point)
        values = [v for v in goals.values() if v is not None and math.isfinite(v)]
        if len(values) == len(goals):
            return self.study.tell(number, TrialState.COMPLETE, values)
        missing = [path for path, v in goals.items() if v is None or not math.isfinite(v)]
        error = f"its objective is no number: {', '.join(missing)}"
        write_json(self.folder.path / point.name / OUTCOME, outcome | {"error": error})
        return self.study.tell(number, TrialState.FAIL)

    def _read_goals(self, point: Point) -> dict[str, float | None]:
        """Read what a point that ended came to in each goal."""
        records = self.folder.read_records(point.name)
        return {goal.path: goal.find_value(records) for goal in self.planned.objective.goals}

    def _update_folder(self) -> None:
        """Bring `sweep.json` up to date."""
        planned, stages = self.planned, len(self.planned.middle.steps)
        self.folder.update(
            command=planned.command,
            points={point.name: describe_point(point, stages) for point in self.points},
            search={
                **planned.search.model_dump(mode="json"),
                "objective": {goal.path: goal.direction for goal in planned.objective.goals},
                "space": planned.space.describe(),
                "best": [point.name for point in self.best],
            },
        )

    def describe_progress(self) -> str:
        """Describe how many trials have ended, and the best so far."""
        ended, best = sum(trial.has_ended for trial in self.study.trials), self.best
        text = f"{ended} of {self.planned.search.trials} trials"
        if len(best) == 1:
            return f"{text}; best: {self.describe(best[0])}"
        return f"{text}; {len(best)} best" if best else text

    def describe(self, point: Point) -> str:
        """Describe a point with its goals."""
        values = self._read_goals(point).items()
        facts = (f"{path} {value:.6g}" for path, value in values if value is not None)
        return f"{point.name}  {'  '.join(facts)}"


def _print_best(trials: Trials, console: Console) -> None:
    """Print the best trials, and the command that runs each alone, which the store answers."""
    if not trials.best:
        console.say("no trial came to its end")
        return
    several = len(trials.planned.objective.goals) > 1
    console.say("best: none is better in one goal and as good in all" if several else "best:")
    for point in trials.best:
        console.say(f"  {trials.describe(point)}")
        console.say(f"    {public_command(trials.planned.recipe, *point.overrides)}")
