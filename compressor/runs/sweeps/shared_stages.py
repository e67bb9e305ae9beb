"""The stages that points share: how many are distinct, and what they cost, before they run."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from compressor.core import machine
from compressor.core.console import Console
from compressor.core.numbers import format_duration
from compressor.engine.plan import Plan
from compressor.engine.store.timings import StageTimings
from compressor.runs.sweeps.points import Point

LONGEST_CHAIN = 5
"""Stages of a branch that are all named."""


@dataclass(frozen=True)
class Step:
    """A stage of a point, as it was planned."""

    name: str
    kind: str
    key: str
    cached: bool


@dataclass(frozen=True)
class PlannedPoint:
    """A point and its stages, in their order."""

    point: Point
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, point: Point, plan: Plan) -> PlannedPoint:
        """Keep what counts of a plan; a part that cannot be reached gets a key of its own."""
        steps = [
            Step(node.name, node.kind, node.key or f"{point.name}/{node.name}", node.cached)
            for node in plan.nodes
        ]
        return cls(point, tuple(steps))


@dataclass(frozen=True)
class SharedStages:
    """What a sweep would run."""

    planned: Sequence[PlannedPoint]

    @cached_property
    def users(self) -> Counter[str]:
        """Key → how many points have that stage."""
        return Counter(step.key for planned in self.planned for step in planned.steps)

    @property
    def naive(self) -> int:
        """Stages that the points would run if each ran alone."""
        return self.users.total()

    @property
    def distinct(self) -> int:
        return len(self.users)

    @property
    def to_run(self) -> list[Step]:
        """Each distinct stage that the store lacks, once."""
        steps = {step.key: step for planned in self.planned for step in planned.steps}
        return [step for step in steps.values() if not step.cached]

    def estimate_seconds(self, timings: StageTimings, at_once: int) -> float:
        """Estimate the time to the end with `at_once` points at a time, in their order.

        Each runs on a machine as fast as those that made the store, and waits for what another
        makes. A stage that was never timed counts as nothing.
        """
        ready: dict[str, float] = {}  # key → when it is there
        free = [0.0] * max(1, at_once)
        for planned in self.planned:
            now = heapq.heappop(free)
            for step in planned.steps:
                if step.cached:
                    continue
                if step.key not in ready:
                    ready[step.key] = now + (timings.seconds(step) or 0.0)
                now = max(now, ready[step.key])
            heapq.heappush(free, now)
        return max(free)


def print_tree(shared: SharedStages, timings: StageTimings, console: Console) -> None:
    """Print the tree, the counts, and the time that each number of points at once would take."""
    root = Tree(f"{len(shared.planned)} points", hide_root=False)
    _grow(root, list(shared.planned), 0, timings)
    console.print(root)
    to_run = shared.to_run
    console.print(
        f"{shared.distinct} distinct stages instead of {shared.naive}; "
        f"{len(to_run)} to run, {shared.distinct - len(to_run)} in the store",
        highlight=False,
    )
    unknown = sorted({step.name for step in to_run if timings.seconds(step) is None})
    if to_run and len(unknown) < len({step.name for step in to_run}):
        _print_times(shared, timings, console)
    if unknown:
        text = f"no recorded time of {', '.join(unknown)}: run one point, and it is known"
        console.print(text, highlight=False, markup=False)


def _grow(above: Tree, points: Sequence[PlannedPoint], depth: int, timings: StageTimings) -> None:
    """Add the stages from `depth` on: a branch for each, joined while all points have the same."""
    branches: dict[str, list[PlannedPoint]] = {}
    for planned in points:
        if depth < len(planned.steps):
            branches.setdefault(planned.steps[depth].key, []).append(planned)
    for same in branches.values():
        end = depth + 1
        while all(len(planned.steps) > end for planned in same) and (
            len({planned.steps[end].key for planned in same}) == 1
        ):
            end += 1
        label = _describe_branch(same[0].steps[depth:end], timings)
        who = same[0].point.name if len(same) == 1 else f"{len(same)} points"
        _grow(above.add(f"[bold]{escape(who)}[/bold]: {label}"), same, end, timings)


def _describe_branch(steps: Sequence[Step], timings: StageTimings) -> str:
    names = [f"[dim]{escape(s.name)}[/dim]" if s.cached else escape(s.name) for s in steps]
    if len(names) > LONGEST_CHAIN:
        names[2:-1] = [f"… {len(names) - 3} more …"]
    seconds = [timings.seconds(step) for step in steps if not step.cached]
    return f"{' → '.join(names)}  [dim]{_describe_time(seconds)}[/dim]"


def _describe_time(seconds: Sequence[float | None]) -> str:
    if not seconds:
        return "cached"
    known = [value for value in seconds if value is not None]
    if not known:
        return "time unknown"
    return f"{'≥' if len(known) < len(seconds) else '≈'} {format_duration(sum(known))}"


def _print_times(shared: SharedStages, timings: StageTimings, console: Console) -> None:
    """Print what each launcher would take. Points at once on one machine share its cores."""
    count, cores = len(shared.planned), machine.count_cores()
    shown = Table("points at once", "time", "launcher", header_style="bold")
    choices = [
        (1, "the default, one after another"),
        (min(count, cores), f"hydra/launcher=processes (at best: they share {cores} cores)"),
        (count, "hydra/launcher=slurm or ray_local, a machine for each"),
    ]
    for number, (at_once, launcher) in enumerate(choices):
        if number == 0 or at_once > 1:
            seconds = format_duration(shared.estimate_seconds(timings, at_once))
            shown.add_row(str(at_once), seconds, launcher)
    console.print(shown)
