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
from compressor.core.numbers import duration
from compressor.core.packages import installing
from compressor.engine.keys import digest
from compressor.engine.store.store import Store
from compressor.engine.store.timings import StageTimings
from compressor.recipe.compose import ComposedRecipe
from compressor.recipe.objective import Objective, Search
from compressor.runs.search.space import Space, space_of
from compressor.runs.sweeps.grid import divided, plan_points
from compressor.runs.sweeps.points import Point
from compressor.runs.sweeps.shared_stages import Planned, SharedStages, Step


@dataclass(frozen=True)
class PlannedSearch:
    """A search whose space was tried at both ends of each interval and at each choice."""

    recipe: str
    overrides: tuple[str, ...]
    """As they were given."""
    settings: tuple[str, ...]
    """Overrides of `hydra`: which launcher, and how."""
    space: Space
    base: ComposedRecipe
    """The recipe in the middle of the space."""
    shared: SharedStages
    """What the tried points would run; the first one is the middle."""
    warnings: tuple[Problem, ...]

    @property
    def search(self) -> Search:
        assert self.base.recipe.search is not None
        return self.base.recipe.search

    @property
    def objective(self) -> Objective:
        assert self.base.recipe.objective is not None, "planning refuses a search without one"
        return self.base.recipe.objective

    @property
    def store(self) -> Store:
        return Store.of(self.base.recipe.outputs)

    @property
    def middle(self) -> Planned:
        return self.shared.planned[0]

    @property
    def steps(self) -> tuple[list[Step], list[Step]]:
        """(the stages that are the same in all trials, the others), as in the middle."""
        everyone = len(self.shared.planned)
        same = [step for step in self.middle.steps if self.shared.users[step.key] == everyone]
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


def planned_search(recipe: str, overrides: Sequence[str], *, reachable: bool) -> PlannedSearch:
    """Plan the middle of the space, and around it both ends of each interval and each choice.

    `reachable`: whether something on a network that cannot be reached is an error too.
    Raises RecipeError with the problems of all of them.
    """
    settings, own = divided(recipe, overrides)
    space = space_of(own)
    probes = [
        Point(",".join(f"{k}={v}" for k, v in values.items()), space.at(values), values)
        for values in space.probes
    ]
    composed, shared, warnings = plan_points(recipe, probes, reachable=reachable)
    return PlannedSearch(
        recipe, tuple(overrides), tuple(settings), space, composed[0], shared, warnings
    )


def require_optuna() -> None:
    """Raise RecipeError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise RecipeError(f"search: Optuna is not installed: {installing('search')}")


def print_search_plan(
    recipe: str, overrides: Sequence[str], console: Console
) -> tuple[Problem, ...]:
    """Print the space, and what a trial would run; returns what is worth a warning."""
    asked = planned_search(recipe, overrides, reachable=False)
    shown = Table("key", "values", header_style="bold")
    for key, values in asked.space.describe().items():
        shown.add_row(Text(key), Text(values))
    console.print(shown)
    search = asked.search
    goals = ", ".join(f"{goal.direction} {goal.path}" for goal in asked.objective.goals)
    console.say(f"{search.trials} trials by {search.sampler}, {search.at_once} at once: {goals}")
    if search.stop_early is not None:
        early = search.stop_early
        console.say(
            f"stopped early: a trial whose validation loss is above percentile {early.percentile:g}"
            f", from {early.after_trials} trials and {early.after_epochs} epochs of a stage on",
        )
    _print_steps(asked, StageTimings.read(asked.store), console)
    return asked.warnings


def _print_steps(asked: PlannedSearch, timings: StageTimings, console: Console) -> None:
    """The stages that run once, those that run in each trial, and their time where it is known."""
    shared, own = asked.steps
    to_run = [step for step in shared if not step.cached]
    for title, steps, costs in (
        ("shared by all trials", shared, to_run),
        ("in each trial", own, own),
    ):
        names = " → ".join(step.name for step in steps) or "nothing"
        seconds = _seconds(costs, timings)
        known = "cached" if not costs else duration(seconds) if seconds else "time unknown"
        console.say(f"{title}: {names}  ({known})" if steps else f"{title}: {names}")
    if unknown := [s.name for s in (*to_run, *own) if timings.seconds(s) is None]:
        what = f"no recorded time of {', '.join(unknown)}"
        console.say(f"{what}, which counts as nothing: run one trial, and it is known")
    total = _seconds(to_run, timings) + asked.search.trials * _seconds(own, timings)
    if total:
        console.say(f"at most {duration(total)} in all, one trial after another")


def _seconds(steps: Sequence[Step], timings: StageTimings) -> float:
    """What steps took before; one that was never timed counts as nothing."""
    return sum(timings.seconds(step) or 0.0 for step in steps)
