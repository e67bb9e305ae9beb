"""The stages that points share: how many are distinct, and what they cost, before they run."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.markup import escape
from rich.table import Table
from rich.tree import Tree

from compressor.core import machine
from compressor.core.console import Console
from compressor.core.numbers import duration
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
class Planned:
    """A point and its stages, in their order."""

    point: Point
    steps: tuple[Step, ...]

    @classmethod
    def of(cls, point: Point, plan: Plan) -> Planned:
        """What stays of a plan; a part that cannot be reached has a key of its own here."""
        steps = [
            Step(node.name, node.kind, node.key or f"{point.name}/{node.name}", node.cached)
            for node in plan.nodes
        ]
        return cls(point, tuple(steps))


@dataclass(frozen=True)
class SharedStages:
    """What a sweep would run."""

    planned: Sequence[Planned]

    @cached_property
    def users(self) -> Mapping[str, int]:
        """Key → how many points have that stage."""
        found: dict[str, int] = {}
        for each in self.planned:
            for step in each.steps:
                found[step.key] = found.get(step.key, 0) + 1
        return found

    @property
    def naive(self) -> int:
        """Stages that the points would run if each ran alone."""
        return sum(len(each.steps) for each in self.planned)

    @property
    def distinct(self) -> int:
        return len(self.users)

    @property
    def to_run(self) -> list[Step]:
        """Each distinct stage that the store lacks, once."""
        steps = {step.key: step for each in self.planned for step in each.steps}
        return [step for step in steps.values() if not step.cached]

    def seconds(self, timings: StageTimings, at_once: int) -> float:
        """Time to the end with `at_once` points at a time, in their order, each on a machine as
        fast as those that made the store. A point that needs what another makes waits for it. A
        stage that was never timed counts as nothing.
        """
        ready: dict[str, float] = {}  # key → when it is there
        free = [0.0] * max(1, at_once)
        for each in self.planned:
            now = heapq.heappop(free)
            for step in each.steps:
                if step.cached:
                    continue
                if step.key not in ready:
                    ready[step.key] = now + (timings.seconds(step) or 0.0)
                now = max(now, ready[step.key])
            heapq.heappush(free, now)
        return max(free)


def print_tree(shared: SharedStages, timings: StageTimings, console: Console) -> None:
    """The tree, the counts, and the time that each number of points at once would take."""
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
        what = f"no recorded time of {', '.join(unknown)}"
        console.print(f"{what}: run one point, and it is known", highlight=False, markup=False)


def _grow(above: Tree, planned: Sequence[Planned], depth: int, timings: StageTimings) -> None:
    """Add the stages from `depth` on: a branch for each, joined while all points have the same."""
    branches: dict[str, list[Planned]] = {}
    for each in planned:
        if depth < len(each.steps):
            branches.setdefault(each.steps[depth].key, []).append(each)
    for same in branches.values():
        end = depth + 1
        while all(len(each.steps) > end for each in same) and (
            len({each.steps[end].key for each in same}) == 1
        ):
            end += 1
        steps = same[0].steps[depth:end]
        names = [
            f"[dim]{escape(step.name)}[/dim]" if step.cached else escape(step.name)
            for step in steps
        ]
        if len(names) > LONGEST_CHAIN:
            names[2:-1] = [f"… {len(names) - 3} more …"]
        text = " → ".join(names)
        seconds = [timings.seconds(step) for step in steps if not step.cached]
        cost = "cached" if not seconds else _time(seconds)
        whose = same[0].point.name if len(same) == 1 else f"{len(same)} points"
        branch = above.add(f"[bold]{escape(whose)}[/bold]: {text}  [dim]{cost}[/dim]")
        _grow(branch, same, end, timings)


def _time(seconds: Sequence[float | None]) -> str:
    known = [each for each in seconds if each is not None]
    if not known:
        return "time unknown"
    return f"{'≥' if len(known) < len(seconds) else '≈'} {duration(sum(known))}"


def _print_times(shared: SharedStages, timings: StageTimings, console: Console) -> None:
    """What each launcher would take. Points at once on one machine share its cores."""
    count, cores = len(shared.planned), machine.count_cores()
    shown = Table("points at once", "time", "launcher", header_style="bold")
    choices = [
        (1, "the default, one after another"),
        (min(count, cores), f"hydra/launcher=processes (at best: they share {cores} cores)"),
        (count, "hydra/launcher=slurm or ray_local, a machine for each"),
    ]
    for number, (at_once, launcher) in enumerate(choices):
        if number == 0 or at_once > 1:
            shown.add_row(str(at_once), duration(shared.seconds(timings, at_once)), launcher)
    console.print(shown)
