"""Hold what is known of a sweep at one moment: its points and their goals. Touches no files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from compressor.evaluation.metric_names import LESS_IS_BETTER, TEXT_SCORES
from compressor.recipe.objective import Direction

State = Literal["waiting", "running", "done", "failed", "pruned"]
_MINIMIZE = re.compile(
    r"(^|[_.])(parameters|nonzero|nonzero_ratio|bytes|ms|seconds|loss|perplexity|joules)(_|$)"
)
_MAXIMIZE = re.compile(
    r"(^|\.)(rouge|retention$|speedup$|accuracy|exact_match)|(^|[_.])(f1|auc|precision|recall)(_|$)"
    r"|_per_second$"
)
_BLOCK = 256
"""Rows that are compared with all others at a time: of 1,000, 256 kB for each of two tables."""


@dataclass(frozen=True)
class PointStatus:
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

    def read_metric(self, metric: str) -> float | None:
        """Read a metric, or None where it is missing or not a finite number."""
        value = self.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Sweep:
    """Several runs of a recipe that differ in some overrides."""

    recipe: str
    points: Sequence[PointStatus]
    objectives: Sequence[tuple[str, Direction]] = ()
    """Metrics that the points are compared by."""
    description: str = ""
    command: str = ""
    started: datetime | None = None
    running: bool = False
    counts: tuple[int, int] | None = None
    """(distinct stages, stages of all points), where they are known."""

    def list_keys(self) -> list[str]:
        """List every key that differs between points, in the order in which they appear."""
        return list(dict.fromkeys(key for point in self.points for key in point.differs))

    def list_metrics(self) -> list[str]:
        """List every metric of any point: the objectives first, then as they appear."""
        named = dict.fromkeys(metric for point in self.points for metric in point.metrics)
        goals = [metric for metric, _ in self.objectives if metric in named]
        return list(dict.fromkeys([*goals, *named]))

    def list_compared(self) -> list[tuple[str, Direction]]:
        """List the objectives that at least one done point has a value for."""
        done = [point for point in self.points if point.state == "done"]
        return [
            (metric, direction)
            for metric, direction in self.objectives
            if any(point.read_metric(metric) is not None for point in done)
        ]

    def mark_front(self) -> list[bool]:
        """Mark each point that is done and on the Pareto front of what is compared."""
        goals = self.list_compared()
        rows = [
            [point.read_metric(metric) if point.state == "done" else None for metric, _ in goals]
            for point in self.points
        ]
        return find_front(rows, [direction for _, direction in goals])


def find_front(
    rows: Sequence[Sequence[float | None]], directions: Sequence[Direction]
) -> list[bool]:
    """Mark each row that is on the Pareto front: no other row dominates it.

    A row dominates another if it is at least as good in every value and better in one, so equal
    rows stay together. One that lacks a value (None or NaN) is not on the front and dominates
    nothing. Time O(n²), memory O(n).
    """
    import numpy as np

    width = len(directions)
    if any(len(row) != width for row in rows):
        raise ValueError(f"each row needs {width} values, one for each direction")
    if not rows or not width:
        return [False] * len(rows)
    signs = np.array([1.0 if direction == "maximize" else -1.0 for direction in directions])
    values = signs * np.array(
        [[np.nan if value is None else value for value in row] for row in rows], dtype=np.float64
    )
    # NaN compares as neither ≥ nor >, so that a row that lacks a value dominates nothing.
    marks: list[bool] = []
    for start in range(0, len(rows), _BLOCK):
        block = values[start : start + _BLOCK]
        as_good = np.ones((len(block), len(rows)), dtype=bool)
        one_better = np.zeros_like(as_good)
        for column, all_rows in zip(block.T, values.T, strict=True):
            as_good &= all_rows >= column[:, None]
            one_better |= all_rows > column[:, None]
        dominated = (as_good & one_better).any(axis=1)
        marks += (~dominated & ~np.isnan(block).any(axis=1)).tolist()
    return marks


def choose_objectives(points: Sequence[PointStatus]) -> list[tuple[str, Direction]]:
    """Choose what points are compared by: quality, size and latency.

    Pruned weights take the same bytes: points are then told apart by the share that is not zero.
    """
    bytes_of_all = {point.metrics["bytes"] for point in points if "bytes" in point.metrics}
    size = "nonzero_ratio" if len(bytes_of_all) == 1 < len(points) else "bytes"
    names = [name for point in points for name in point.metrics]  # a recipe's first metric first
    score = next((name for name in names if name in TEXT_SCORES), TEXT_SCORES[0])
    aim: Direction = "minimize" if score in LESS_IS_BETTER else "maximize"
    of_labels = "entity_f1" if "entity_f1" in names else "micro_f1"
    smaller: list[tuple[str, Direction]] = [(n, "minimize") for n in (size, "latency_p50_ms")]
    return [(score, aim), (of_labels, "maximize"), *smaller]


def guess_direction(metric: str) -> Direction | None:
    """Guess from a metric's name which way is better; None where neither is (`gen_len`)."""
    name = metric.rpartition(".")[2]
    if name in LESS_IS_BETTER:
        return "minimize"
    if name in TEXT_SCORES:
        return "maximize"
    if _MAXIMIZE.search(metric):
        return "maximize"
    return "minimize" if _MINIMIZE.search(metric) else None
