"""What is known of a sweep at one moment: its points, and what it was asked for. No files here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from compressor.objective import Direction
from compressor.sweeps.pareto import front

State = Literal["waiting", "running", "done", "failed", "pruned"]


@dataclass(frozen=True)
class Standing:
    """How far one run of a sweep is."""

    name: str
    """Its folder, relative to the sweep's."""
    differs: Mapping[str, str]
    """Key of the recipe → the text of its value here."""
    state: State = "waiting"
    """`pruned`: a search stopped it early."""
    stage: str | None = None
    """The stage that it is in, while it runs."""
    error: str | None = None
    cached: int = 0
    """How many of its stages came from the store."""
    stages: int = 0
    seconds: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the last model that was looked at, and those of the objective by their path."""
    pruned: str | None = None
    """Why it was stopped early."""

    def measured(self, metric: str) -> float | None:
        """The metric's value, or None where it is missing or not a finite number."""
        value = self.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Sweep:
    """Several runs of a recipe that differ in some overrides."""

    recipe: str
    points: Sequence[Standing]
    objectives: Sequence[tuple[str, Direction]] = ()
    """Metrics that the points are compared by."""
    description: str = ""
    command: str = ""
    started: datetime | None = None
    running: bool = False
    distinct_stages: int | None = None
    """How many stages there are to run, with each shared one counted once."""
    naive_stages: int | None = None
    """How many the points would run if each ran alone."""

    def keys(self) -> list[str]:
        """Every key that differs between points, in the order in which they appear."""
        return list(dict.fromkeys(key for point in self.points for key in point.differs))

    def metrics(self) -> list[str]:
        """Every metric of any point: the objectives first, then as they appear."""
        named = dict.fromkeys(metric for point in self.points for metric in point.metrics)
        asked = [metric for metric, _ in self.objectives if metric in named]
        return list(dict.fromkeys([*asked, *named]))

    def compared(self) -> list[tuple[str, Direction]]:
        """The objectives that at least one done point has a value for."""
        done = [point for point in self.points if point.state == "done"]
        return [
            (metric, direction)
            for metric, direction in self.objectives
            if any(point.measured(metric) is not None for point in done)
        ]

    def on_front(self) -> list[bool]:
        """For each point, whether it is done and on the Pareto front of `compared`."""
        compared = self.compared()
        rows = [
            [point.measured(metric) if point.state == "done" else None for metric, _ in compared]
            for point in self.points
        ]
        return front(rows, [direction for _, direction in compared])
