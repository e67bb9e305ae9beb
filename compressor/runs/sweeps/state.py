"""What is known of a sweep at one moment: its points, and what it was asked for. No files here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from compressor.recipe.objective import Direction

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


_MINIMIZE = re.compile(
    r"(^|[_.])(parameters|nonzero|nonzero_ratio|bytes|ms|seconds|loss|perplexity|joules)(_|$)"
)

_MAXIMIZE = re.compile(
    r"(^|\.)(rouge|retention$|speedup$|accuracy|exact_match)|(^|[_.])(f1|auc|precision|recall)(_|$)"
    r"|_per_second$"
)

_BLOCK = 256
"""Rows that are compared with all others at a time: of 1,000, 256 kB for each of two tables."""


def front(rows: Sequence[Sequence[float | None]], directions: Sequence[Direction]) -> list[bool]:
    """Whether each row is on the Pareto front: no other row dominates it.

    A row dominates another if it is at least as good in every value and better in one, so equal
    rows stay together. A row that lacks a value (None or NaN) is not compared: it is not on the
    front and dominates nothing. Time O(n²), memory O(n).
    """
    import numpy as np

    width = len(directions)
    if any(len(row) != width for row in rows):
        raise ValueError(f"front: each row needs {width} values, one for each direction")
    if not rows or not width:
        return [False] * len(rows)
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    values = signs * np.array(
        [[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64
    )
    # NaN compares as neither ≥ nor >, so that a row that lacks a value dominates nothing.
    marks: list[bool] = []
    for start in range(0, len(rows), _BLOCK):
        some = values[start : start + _BLOCK]
        as_good = np.ones((len(some), len(rows)), dtype=bool)
        one_better = np.zeros_like(as_good)
        for own, every in zip(some.T, values.T, strict=True):
            as_good &= every >= own[:, None]
            one_better |= every > own[:, None]
        dominated = (as_good & one_better).any(axis=1)
        marks += (~dominated & ~np.isnan(some).any(axis=1)).tolist()
    return marks


def better(metric: str) -> Direction | None:
    """Which way a metric is better, told from its name; None where neither is (`gen_len`)."""
    if _MAXIMIZE.search(metric):
        return "maximize"
    return "minimize" if _MINIMIZE.search(metric) else None
