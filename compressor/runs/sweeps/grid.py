"""Plan every point of a multirun, run what is missing, and say what came out.

Points share one store, so that what they have in common runs once, whichever launcher runs them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

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
from compressor.evaluation.metric_names import TEXT_SCORES
from compressor.recipe.compose import ComposedRecipe, Composer
from compressor.recipe.hydra import parse_override
from compressor.reports.tables import Column, fill_columns, print_columns
from compressor.runs.runner import say_collecting
from compressor.runs.sweeps.folder import SweepFolder, identify_sweep
from compressor.runs.sweeps.launch import open_launcher, read_swept
from compressor.runs.sweeps.page import write_csv, write_page
from compressor.runs.sweeps.points import Point, expand_product, validation_order
from compressor.runs.sweeps.shared_stages import PlannedPoint, SharedStages, print_tree
from compressor.runs.sweeps.state import PointStatus, Sweep

WRONG_POINTS = 3
"""So many are reported; a sweep is then refused without a look at its other points."""
POLL_SECONDS = 2.0
"""Between two looks at the points' folders."""
PAGE, SPREADSHEET = "sweep.html", "sweep.csv"
SHOWN = (
    *("parameters", "nonzero_ratio", "bytes", *TEXT_SCORES),
    *("micro_f1", "entity_f1", "latency_p50_ms"),
)
"""The numbers of a point that its table has, as a run's table writes them."""


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
    settings: tuple[str, ...]
    """The overrides of `hydra`: which launcher, and how."""
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
    def command(self) -> str:
        """The command that asked for it, without secrets."""
        return public_command(self.recipe, "-m", *self.overrides)

    @property
    def points(self) -> list[Point]:
        return [planned.point for planned in self.shared.planned]

    @property
    def digests(self) -> dict[str, str]:
        """Name of each point → a digest of its values as it was planned."""
        values = (digest(composed.values) for composed in self.composed)
        return dict(zip((point.name for point in self.points), values, strict=True))

    @property
    def counts(self) -> tuple[int, int]:
        return self.shared.distinct, self.shared.naive


def plan_grid(recipe: str, overrides: Sequence[str], *, reachable: bool) -> Grid:
    """Compose and plan every point, so that a wrong value is found before anything is trained.

    `reachable`: whether what a network cannot reach is an error, too. Raises as `plan_points`.
    """
    settings, rest = split_overrides(recipe, overrides)
    planned = plan_points(recipe, expand_product(rest), reachable=reachable)
    return Grid(recipe, tuple(overrides), tuple(settings), *planned)


def plan_points(
    recipe: str, points: Iterable[Point], *, reachable: bool
) -> tuple[tuple[ComposedRecipe, ...], SharedStages, tuple[Problem, ...]]:
    """Compose and plan each point: its recipe, all their stages, what is worth a warning.

    Raises RecipeError with the problems of the points that are wrong, or of the first WRONG_POINTS.
    """
    problems: list[Problem] = []
    warnings: list[Problem] = []
    points, composer, wrong = list(points), Composer(recipe), 0
    plans: dict[int, tuple[ComposedRecipe, PlannedPoint]] = {}
    for tried, index in enumerate(validation_order(points), 1):
        try:
            composed = composer.compose(points[index].overrides)
            stages = plan(composed, Store.of(composed.recipe.outputs))
            if reachable:
                stages.require_reachable()
        except RecipeError as error:
            problems, wrong = [*problems, *error.problems], wrong + 1
            if wrong < WRONG_POINTS or tried == len(points):
                continue
            left = f"{len(points) - tried:,} points were not looked at: {wrong} are wrong"
            raise RecipeError(list(dict.fromkeys([*problems, Problem("", left)]))) from error
        warnings += [*stages.warnings, *stages.unreached]
        plans[index] = composed, PlannedPoint.of(points[index], stages)
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    if len({composed.recipe.outputs for composed, _ in plans.values()}) > 1:
        raise RecipeError("outputs: points share one store; it cannot differ between them")
    every, planned = zip(*(plans[index] for index in range(len(points))), strict=True)
    return every, SharedStages(list(planned)), tuple(dict.fromkeys(warnings))


def split_overrides(recipe: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off the overrides of `hydra`; the rest begins with what the recipe itself sweeps."""
    keys = {text: _read_key(text) for text in overrides}
    settings = [text for text in overrides if keys[text].startswith(("hydra.", "hydra/"))]
    rest = [text for text in overrides if text not in settings]
    swept = [p for p in read_swept(recipe, overrides) if _read_key(p) not in keys.values()]
    return settings, swept + rest


def _read_key(text: str) -> str:
    override = parse_override(text)
    return text if override is None else override.key_or_group


def print_grid_plan(recipe: str, overrides: Sequence[str], console: Console) -> tuple[Problem, ...]:
    """Print what a multirun would run; returns what is worth a warning."""
    grid = plan_grid(recipe, overrides, reachable=False)
    print_tree(grid.shared, StageTimings.read(grid.store), console)
    return grid.warnings


def run_grid(recipe: str, overrides: Sequence[str], console: Console, *, quiet: bool) -> int:
    """Run every point that is missing or failed; 0 if all succeeded, 1 if any failed.

    Raises RecipeError before anything runs where a point is wrong.
    """
    grid = plan_grid(recipe, overrides, reachable=True)
    base, trouble = grid.base.recipe, None
    request = identify_sweep(grid.composed)
    folder = SweepFolder.open(expand_home(base.outputs), base.name, request)
    waiting = f"another process runs this sweep, in {folder.path}; waiting for it"
    with folder.lock(grid.store, lambda: console.say(waiting)):
        missing = prepare_missing(grid, folder)
        done, first = len(grid.points) - len(missing), grid.points[0].overrides
        if done and missing:
            console.say(f"{done} of {len(grid.points)} points are done; {len(missing)} to run")
        with (
            open_launcher(
                *(recipe, first, grid.settings, folder.path, grid.base),
                quiet=quiet,
                digests=grid.digests,
            ) as launcher,
            live_page(grid, folder, console, here=launcher.here or not missing),
        ):
            try:
                if missing:
                    launcher.run(missing)
            except StageError as error:
                trouble = error
        if trouble is None:  # each point's own folder names what it counts on
            folder.update(keys=[])
    code = print_points(read_sweep(grid, folder), folder, console)
    if trouble is not None:
        raise trouble
    return code


def prepare_missing(grid: Grid, folder: SweepFolder) -> list[Point]:
    """List the points without a result that is what they would make now; note all in `sweep.json`.

    What such points left is removed.
    """
    before = folder.read()["points"]
    now = {
        planned.point.name: describe_point(planned.point, len(planned.steps))
        | {"planned": digest([step.key for step in planned.steps])}
        for planned in grid.shared.planned
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
            command=grid.command,
            points=now,
            distinct=grid.shared.distinct,
            naive=grid.shared.naive,
            keys=sorted(grid.shared.users),  # of points to come, which have no folder yet
        )
    return missing


def describe_point(point: Point, stages: int) -> dict[str, Any]:
    """Describe a point for `sweep.json`."""
    about = {"differs": dict(point.differs), "overrides": list(point.overrides)}
    return about | {"stages": stages}


@contextmanager
def live_page(grid: Points, folder: SweepFolder, console: Console, *, here: bool) -> Iterator[None]:
    """Keep the sweep's page and table up to date until the sweep has ended.

    Where points do not run `here`, say what became of each.
    """
    ended, unwritten = threading.Event(), set[str]()
    over = {"done", "failed", "pruned"}
    last: Sweep | None = None
    said = {p.name for p in read_sweep(grid, folder).points if p.state in {"done", "pruned"}}

    def update(*, running: bool) -> None:
        nonlocal last
        sweep = read_sweep(grid, folder, running=running)
        for point in sweep.points:
            if point.state in over and not here and point.name not in said:
                said.add(point.name)
                console.say(f"{point.name}: {describe_status(point)}")
        if sweep == last:
            return
        last = sweep
        for name, write in ((PAGE, write_page), (SPREADSHEET, write_csv)):
            try:
                write(folder.path / name, sweep)
            except OSError as error:  # the points go on: a page can be had afterwards
                if name not in unwritten:
                    reason = failures.explain_error(error) or error
                    print_warning(f"cannot write {folder.path / name}: {reason}")
                unwritten.add(name)

    def follow() -> None:
        while not ended.wait(POLL_SECONDS):
            update(running=True)

    follower = threading.Thread(target=follow, daemon=True)
    update(running=True)
    follower.start()
    try:
        yield
    finally:
        ended.set()
        follower.join()
        update(running=False)


def read_sweep(grid: Points, folder: SweepFolder, *, running: bool = False) -> Sweep:
    """Read how far a sweep is from its folder."""
    recipe = grid.base.recipe
    goals = recipe.objective.goals if recipe.objective is not None else ()
    sweep = folder.read_sweep(recipe.name, recipe.description, grid.points, goals)
    return replace(sweep, running=running, counts=grid.counts)


def describe_status(point: PointStatus) -> str:
    """Describe in a line what became of a point."""
    if point.error is not None:
        return f"failed: {point.error}"
    if point.pruned is not None:
        return f"stopped early: {point.pruned}"
    shown = (*TEXT_SCORES, "micro_f1", "entity_f1", "nonzero_ratio")
    facts = [f"{k} {point.metrics[k]:.4f}" for k in shown if k in point.metrics]
    cached = f"{point.cached}/{point.stages} cached"
    return f"{point.state} in {point.seconds:.1f} s, {cached}  {'  '.join(facts)}"


def print_points(sweep: Sweep, folder: SweepFolder, console: Console) -> int:
    """Print the table of points; 0 if all are done, else 1."""
    points = sweep.points
    goals = [path for path, _ in sweep.objectives if "." in path]
    named = {path.rpartition(".")[2] for path in goals}
    columns = [
        Column(heading, cells)
        for key, heading, cells in fill_columns([point.metrics for point in points])
        if key in SHOWN and key not in named
    ]
    for path in goals:
        values = [point.metrics.get(path) for point in points]
        columns.append(Column(path, ["" if v is None else f"{v:.4g}" for v in values]))
    columns += [
        Column("cached", [f"{p.cached}/{p.stages}" if p.stages else "" for p in points]),
        Column("seconds", [f"{point.seconds:.1f}" for point in points]),
    ]
    if sweep.list_compared():
        columns.append(Column("front", ["●" if on else "" for on in sweep.mark_front()], "left"))
    print_columns(Column("point", [p.name for p in points], "left", widest=40), columns, console)
    if goals_text := ", ".join(f"{path} ({aim[:3]}.)" for path, aim in sweep.list_compared()):
        console.say(f"● on the Pareto front of {goals_text}")
    for point in (point for point in points if point.state != "done"):
        has_ended = point.error or point.pruned
        console.say(f"{point.name}: {describe_status(point) if has_ended else 'did not end'}")
    console.say(f"sweep: {folder.path}")
    console.say(f"page: {folder.path / PAGE}")
    return 0 if all(point.state in {"done", "pruned"} for point in points) else 1
