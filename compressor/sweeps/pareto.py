"""Which of several points are not dominated, and in which direction a metric is better.

Nothing here knows of sweeps, runs or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compressor.objective import Direction

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
