"""A multirun from command to table: plan every point, run what is missing, tell what came out.

Points share one store, so that what they have in common runs once, whichever launcher runs them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from compressor.core import failures
from compressor.core.console import Console
from compressor.core.errors import Problem, RecipeError, StageError
from compressor.core.files import expand_home
from compressor.core.printing import print_warning
from compressor.core.redaction import public_command
from compressor.engine.keys import digest
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.engine.store.timings import StageTimings
from compressor.recipe.compose import ComposedRecipe, Composer
from compressor.recipe.hydra import parse_override
from compressor.recipe.objective import Direction
from compressor.reports.tables import COLUMNS, Column, print_columns
from compressor.runs.runner import say_collecting
from compressor.runs.sweeps.folder import SweepFolder, asked
from compressor.runs.sweeps.launch import Launched, launched, swept_in_recipe
from compressor.runs.sweeps.page import write_csv, write_page
from compressor.runs.sweeps.points import Point, spanned, telling
from compressor.runs.sweeps.shared_stages import Planned, SharedStages, print_tree
from compressor.runs.sweeps.state import Standing, Sweep

WRONG_POINTS = 3
"""So many are told; a sweep is then refused without a look at its other points."""

POLL_SECONDS = 2.0
"""Between two looks at the points' folders."""

PAGE, SPREADSHEET = "sweep.html", "sweep.csv"

QUALITIES, SIZES, TIMES = ("rougeLsum", "micro_f1"), ("bytes", "nonzero_ratio"), ("latency_p50_ms",)
"""What points are compared by where the recipe has no objective: of these, what was measured."""


class Points(Protocol):
    """Points that are run, or have been; of a search, those that were drawn so far."""

    @property
    def base(self) -> ComposedRecipe: ...

    @property
    def points(self) -> Sequence[Point]: ...

    @property
    def counts(self) -> tuple[int, int] | None:
        """(distinct stages, stages of all points), where they are known before the points run."""


@dataclass(frozen=True)
class Grid:
    """A planned sweep over values that can be counted."""

    recipe: str
    overrides: tuple[str, ...]
    """As they were given."""
    settings: tuple[str, ...]
    """Overrides of `hydra`: which launcher, and how."""
    composed: tuple[ComposedRecipe, ...]
    shared: SharedStages
    warnings: tuple[Problem, ...]

    @property
    def base(self) -> ComposedRecipe:
        return self.composed[0]

    @property
    def store(self) -> Store:
        return Store.of(self.base.recipe.outputs)

    @property
    def points(self) -> list[Point]:
        return [each.point for each in self.shared.planned]

    @property
    def digests(self) -> dict[str, str]:
        """Of each point by name: what its values were when it was planned."""
        names = [point.name for point in self.points]
        return dict(zip(names, (digest(each.values) for each in self.composed), strict=True))

    @property
    def counts(self) -> tuple[int, int]:
        return self.shared.distinct, self.shared.naive


def planned(recipe: str, overrides: Sequence[str], *, reachable: bool) -> Grid:
    """Compose and plan every point, so that a wrong value is told before anything is trained.

    `reachable`: whether something on a network that cannot be reached is an error too.
    Raises RecipeError with the problems of the points that are wrong, or of the first WRONG_POINTS.
    """
    settings, own = divided(recipe, overrides)
    composed, shared, warnings = plan_points(recipe, spanned(own), reachable=reachable)
    return Grid(recipe, tuple(overrides), tuple(settings), composed, shared, warnings)


def plan_points(
    recipe: str, points: Iterable[Point], *, reachable: bool
) -> tuple[tuple[ComposedRecipe, ...], SharedStages, tuple[Problem, ...]]:
    """Compose and plan each point: its recipe, all their stages, what is worth a warning.

    Raises RecipeError with the problems of the points that are wrong, or of the first WRONG_POINTS.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    every, composer, wrong = list(points), Composer(recipe), 0
    found_at: dict[int, tuple[ComposedRecipe, Planned]] = {}
    for looked, place in enumerate(telling(every), 1):
        point = every[place]
        try:
            each = composer.compose(point.overrides)
            found = plan(each, Store.of(each.recipe.outputs))
            if reachable:
                found.require_reachable()
        except RecipeError as error:
            problems += error.problems
            wrong += 1
            if wrong == WRONG_POINTS and looked < len(every):
                left = f"{len(every) - looked:,} points were not looked at: {wrong} are wrong"
                problems.append(Problem("", left))
                break
            continue
        warnings += [*found.warnings, *found.unreached]
        found_at[place] = each, Planned.of(point, found)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    if len({each.recipe.outputs for each, _ in found_at.values()}) > 1:
        raise RecipeError("outputs: points share one store; it cannot differ between them")
    composed, steps = zip(*(found_at[place] for place in range(len(every))), strict=True)
    return composed, SharedStages(list(steps)), tuple(dict.fromkeys(warnings))


def divided(recipe: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """(overrides of `hydra`, those of points), the second with what the recipe itself sweeps."""
    settings = [item for item in overrides if _is_hydras(item)]
    own = [item for item in overrides if item not in settings]
    set_here = {_key(item) for item in own}
    own = [p for p in swept_in_recipe(recipe, overrides) if _key(p) not in set_here] + own
    return settings, own


def _is_hydras(override: str) -> bool:
    return _key(override).startswith(("hydra.", "hydra/"))


def _key(override: str) -> str:
    found = parse_override(override)
    return override if found is None else found.key_or_group


def print_plan(recipe: str, overrides: Sequence[str], console: Console) -> tuple[Problem, ...]:
    """Print what a multirun would run; returns what is worth a warning."""
    grid = planned(recipe, overrides, reachable=False)
    print_tree(grid.shared, StageTimings.read(grid.store), console)
    return grid.warnings


def multirun(recipe: str, overrides: Sequence[str], console: Console, *, quiet: bool) -> int:
    """Run every point that is missing or failed; 0 if all succeeded, 1 if any failed.

    Raises RecipeError before anything runs where a point is wrong.
    """
    grid = planned(recipe, overrides, reachable=True)
    base, store = grid.base.recipe, grid.store
    outputs = expand_home(base.outputs)
    folder = SweepFolder.open(outputs, base.name, asked(grid.composed))
    say = f"another process runs this sweep, in {folder.path}; waiting for it"
    with folder.alone(store, lambda: console.say(say)):
        missing = _missing(grid, folder)
        done = len(grid.points) - len(missing)
        if done and missing:
            console.say(f"{done} of {len(grid.points)} points are done; {len(missing)} to run")
        trouble = None
        first = grid.points[0].overrides
        with (
            launched(
                recipe,
                first,
                grid.settings,
                folder.path,
                grid.base,
                quiet=quiet,
                planned=grid.digests,
            ) as launcher,
            watched(grid, folder, console, here=launcher.here or not missing),
        ):
            trouble = _run(launcher, missing)
        if trouble is None:  # each point's own folder names what it counts on
            folder.update(keys=[])
    code = print_points(state(grid, folder), folder, console)
    if trouble is not None:
        raise StageError(trouble)
    return code


def _run(launcher: Launched, missing: Sequence[Point]) -> str | None:
    """Run points; why the launcher could not, where it could not."""
    try:
        if missing:
            launcher.run(missing)
    except StageError as error:
        return str(error)
    return None


def _missing(grid: Grid, folder: SweepFolder) -> list[Point]:
    """The points without a result that is what they would make now; notes all in `sweep.json`."""
    about = folder.about()
    before = about["points"]
    now = {
        each.point.name: {
            "differs": dict(each.point.differs),
            "overrides": list(each.point.overrides),
            "planned": digest([step.key for step in each.steps]),
            "stages": len(each.steps),
        }
        for each in grid.shared.planned
    }
    missing = [
        point
        for point in grid.points
        if before.get(point.name, {}).get("planned") != now[point.name]["planned"]
        or not folder.is_done(point.name, grid.store)
    ]
    # Before the new plan is noted: killed in between, an old result must not pass for the new one.
    for point in missing:
        folder.forget(point.name)
    with grid.store.hold_off_gc(say_collecting):
        folder.update(
            command=public_command(grid.recipe, "-m", *grid.overrides),
            points=now,
            distinct=grid.shared.distinct,
            naive=grid.shared.naive,
            keys=sorted(grid.shared.users),  # of points to come, which have no folder yet
        )
    return missing


@contextmanager
def watched(grid: Points, folder: SweepFolder, console: Console, *, here: bool) -> Iterator[None]:
    """Keep the sweep's page and table as the points' folders are, until the sweep has ended.

    Where points do not run `here`, say what became of each.
    """
    ended = threading.Event()
    seen: Sweep | None = None
    unwritten: set[str] = set()
    told = {e.name for e in state(grid, folder).points if e.state in {"done", "pruned"}}

    def look(*, running: bool) -> None:
        nonlocal seen
        now = state(grid, folder, running=running)
        for each in now.points:
            over = each.state in {"done", "failed", "pruned"}
            if over and not here and each.name not in told:
                told.add(each.name)
                console.say(f"{each.name}: {summary(each)}")
        if now != seen:
            seen = now
            for name, write in ((PAGE, write_page), (SPREADSHEET, write_csv)):
                try:
                    write(folder.path / name, now)
                except OSError as error:  # the points go on: a page can be had afterwards
                    if name not in unwritten:
                        reason = failures.explain_error(error) or error
                        print_warning(f"cannot write {folder.path / name}: {reason}")
                    unwritten.add(name)

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            look(running=True)

    follower = threading.Thread(target=follow, daemon=True)
    look(running=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        look(running=False)


def state(grid: Points, folder: SweepFolder, *, running: bool = False) -> Sweep:
    """The sweep as its folder is now."""
    recipe, about = grid.base.recipe, folder.about()
    goals = recipe.objective.goals if recipe.objective is not None else ()
    distinct, naive = grid.counts or (None, None)
    points = [folder.standing(point, goals) for point in grid.points]
    return Sweep(
        recipe.name,
        points,
        [(goal.path, goal.direction) for goal in goals] or trade_off(points),
        description=recipe.description,
        command=about["command"],
        started=datetime.fromisoformat(about["started"]),
        running=running,
        distinct_stages=distinct,
        naive_stages=naive,
    )


def trade_off(points: Sequence[Standing]) -> list[tuple[str, Direction]]:
    """Quality, size and latency. Where the bytes of all are the same, as those of pruned weights
    are, the size that tells points apart is the share of weights that are not zero.
    """
    bytes_of_all = {each.metrics["bytes"] for each in points if "bytes" in each.metrics}
    size = SIZES[len(bytes_of_all) == 1 < len(points)]
    up: list[tuple[str, Direction]] = [(name, "maximize") for name in QUALITIES]
    return [*up, *((name, "minimize") for name in (size, *TIMES))]


def summary(standing: Standing) -> str:
    """What a person hears of a point that has ended."""
    if standing.error is not None:
        return f"failed: {standing.error}"
    if standing.pruned is not None:
        return f"stopped early: {standing.pruned}"
    shown = ("rougeLsum", "micro_f1", "nonzero_ratio")
    facts = [f"{k} {standing.metrics[k]:.4f}" for k in shown if k in standing.metrics]
    cached = f"{standing.cached}/{standing.stages} cached"
    return f"{standing.state} in {standing.seconds:.1f} s, {cached}  {'  '.join(facts)}"


SHOWN = ("parameters", "nonzero_ratio", "bytes", "rougeLsum", "micro_f1", "latency_p50_ms")
"""The numbers of a point that its table has, as a run's table writes them."""


def print_points(sweep: Sweep, folder: SweepFolder, console: Console) -> int:
    """Print the table of points; 0 if all are done, else 1."""
    rows = sweep.points
    goals = [path for path, _ in sweep.objectives if "." in path]
    named = {path.rpartition(".")[2] for path in goals}
    columns = [
        Column(heading, [write(r.metrics[key]) if key in r.metrics else "" for r in rows])
        for key, heading, write in COLUMNS
        if key in SHOWN and key not in named and any(key in row.metrics for row in rows)
    ]
    for path in goals:
        values = [row.metrics.get(path) for row in rows]
        columns.append(Column(path, ["" if v is None else f"{v:.4g}" for v in values]))
    columns += [
        Column("cached", [f"{row.cached}/{row.stages}" if row.stages else "" for row in rows]),
        Column("seconds", [f"{row.seconds:.1f}" for row in rows]),
    ]
    if sweep.compared():
        columns.append(Column("front", ["●" if on else "" for on in sweep.on_front()], "left"))
    print_columns(Column("point", [r.name for r in rows], "left", widest=40), columns, console)
    if aims := ", ".join(f"{path} ({aim[:3]}.)" for path, aim in sweep.compared()):
        console.say(f"● on the Pareto front of {aims}")
    for row in rows:
        if row.state != "done":
            ended = row.error or row.pruned
            console.say(f"{row.name}: {summary(row) if ended else 'did not end'}")
    console.say(f"sweep: {folder.path}")
    console.say(f"page: {folder.path / PAGE}")
    return 0 if all(row.state in {"done", "pruned"} for row in rows) else 1
