"""A search before it begins: its space, all that is wrong with it, and what its trials share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.errors import Problem, RecipeError
from compressor.core.numbers import format_duration
from compressor.core.packages import suggest_install
from compressor.engine.keys import digest
from compressor.engine.store.timings import StageTimings
from compressor.recipe.objective import Objective, Search
from compressor.runs.search.space import Space, read_space
from compressor.runs.sweeps.grid import Grid, plan_points, split_overrides
from compressor.runs.sweeps.points import Point
from compressor.runs.sweeps.shared_stages import PlannedPoint, Step


@dataclass(frozen=True)
class PlannedSearch(Grid):
    """A search, and the points that were tried: the middle of its space, then around it both ends
    of each interval and each choice.
    """

    space: Space

    @property
    def search(self) -> Search:
        assert self.base.recipe.search is not None
        return self.base.recipe.search

    @property
    def objective(self) -> Objective:
        assert self.base.recipe.objective is not None, "planning refuses a search without one"
        return self.base.recipe.objective

    @property
    def middle(self) -> PlannedPoint:
        return self.shared.planned[0]

    @property
    def steps(self) -> tuple[list[Step], list[Step]]:
        """(the stages that are the same in all trials, the others), as in the middle."""
        every, users = len(self.shared.planned), self.shared.users
        same = [step for step in self.middle.steps if users[step.key] == every]
        return same, [step for step in self.middle.steps if step not in same]

    @property
    def identity(self) -> Any:
        """What decides its trials, in their order. More trials are the same search, continued."""
        free = {"outputs", "launch", "search"}
        return {
            "recipe": {k: v for k, v in self.base.values.items() if k not in free},
            "search": self.search.model_dump(mode="json", exclude={"trials", "at_once"}),
            "space": self.space.describe(),
            "keys": digest([step.key for step in self.middle.steps]),
        }


def plan_search(recipe: str, overrides: Sequence[str], *, reachable: bool) -> PlannedSearch:
    """Plan the middle of the space, and around it both ends of each interval and each choice.

    `reachable`: whether what a network cannot reach is an error, too. Raises RecipeError with all.
    """
    settings, rest = split_overrides(recipe, overrides)
    space = read_space(rest)
    probes = [
        Point(",".join(f"{k}={v}" for k, v in values.items()), space.at(values), values)
        for values in space.probes
    ]
    planned = plan_points(recipe, probes, reachable=reachable)
    return PlannedSearch(recipe, tuple(overrides), tuple(settings), *planned, space)


def require_optuna() -> None:
    """Raise RecipeError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise RecipeError(f"search: Optuna is not installed: {suggest_install('search')}")


def print_search_plan(
    recipe: str, overrides: Sequence[str], console: Console
) -> tuple[Problem, ...]:
    """Print the space, and what a trial would run; returns what is worth a warning."""
    planned = plan_search(recipe, overrides, reachable=False)
    table = Table("key", "values", header_style="bold")
    for key, values in planned.space.describe().items():
        table.add_row(Text(key), Text(values))
    console.print(table)
    search = planned.search
    goals = ", ".join(f"{goal.direction} {goal.path}" for goal in planned.objective.goals)
    console.say(f"{search.trials} trials by {search.sampler}, {search.at_once} at once: {goals}")
    if (early := search.stop_early) is not None:
        since = f"{early.after_trials} trials and {early.after_epochs} epochs of a stage"
        limit = f"a trial whose validation loss is above percentile {early.percentile:g}"
        console.say(f"stopped early: {limit}, from {since} on")
    _print_steps(planned, StageTimings.read(planned.store), console)
    return planned.warnings


def _print_steps(planned: PlannedSearch, timings: StageTimings, console: Console) -> None:
    """Print the stages that run once, those that run in each trial, and their recorded times."""
    shared, repeated = planned.steps
    to_run = [step for step in shared if not step.cached]
    once, per_trial = (
        sum(timings.seconds(s) or 0.0 for s in steps) for steps in (to_run, repeated)
    )
    for title, steps, costs, seconds in (
        ("shared by all trials", shared, to_run, once),
        ("in each trial", repeated, repeated, per_trial),
    ):
        names = " → ".join(step.name for step in steps) or "nothing"
        time = "cached" if not costs else format_duration(seconds) if seconds else "time unknown"
        console.say(f"{title}: {names}  ({time})" if steps else f"{title}: {names}")
    if unknown := [s.name for s in (*to_run, *repeated) if timings.seconds(s) is None]:
        text = f"no recorded time of {', '.join(unknown)}, which counts as nothing"
        console.say(f"{text}: run one trial, and it is known")
    if total := once + planned.search.trials * per_trial:
        console.say(f"at most {format_duration(total)} in all, one trial after another")
