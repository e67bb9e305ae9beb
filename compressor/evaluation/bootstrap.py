"""The bootstrap over test rows: intervals of a mean, and of a difference of two models' scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]

_CELLS = 2**21
"""Values drawn at a time: 16 MiB of indices and 16 MiB of values, whatever the number of rows."""
RESAMPLES = 2000
"""Of a paired test: the least p-value is 2 / 2001."""


def resampled_means(rows: Scores, *, resamples: int, seed: int) -> Scores:
    """Average as many rows, drawn with replacement, `resamples` times.

    `rows` is [N] or [N, K]; the result [resamples] or [resamples, K]. All columns of a resample are
    means over the same rows. The same arguments give the same draws.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    means = np.empty((resamples, *rows.shape[1:]))
    block = max(1, _CELLS // rows.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        drawn = random.integers(len(rows), size=(count, len(rows)))
        means[start : start + count] = rows[drawn].mean(1)
    return means


def bootstrap_interval(
    values: Sequence[float] | Scores, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of `values`, one value a row.

    The spread over test rows alone: not over training seeds. The same arguments give the same
    interval. Raises ValueError for no values.
    """
    import numpy as np

    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1 or rows.size == 0:
        raise ValueError(f"expected a list of at least one value, got the shape {rows.shape}")
    return _compute_interval(resampled_means(rows, resamples=resamples, seed=seed), level)


def take_first(means: Scores) -> Scores:
    """Give the means [R] of a score that is the mean of its rows' [R, 1]."""
    return means[:, 0]


@dataclass(frozen=True)
class Measure:
    """One score, row by row."""

    rows: Scores
    """[N, K]: what the score is computed from."""
    score: Callable[[Scores], Scores]
    """Means over N rows [R, K] → a score each [R]."""

    @property
    def value(self) -> float:
        return float(self.score(self.rows.mean(0, keepdims=True))[0])

    @property
    def row_scores(self) -> list[float]:
        """Each row's score by itself."""
        alone = self.rows if self.score is take_first else self.rows / len(self.rows)
        return [float(value) for value in self.score(alone)]

    def interval(
        self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
    ) -> tuple[float, float]:
        """Percentile bootstrap interval of the score: `bootstrap_interval`, but of any score."""
        drawn = self.score(resampled_means(self.rows, resamples=resamples, seed=seed))
        return _compute_interval(drawn, level)


def _compute_interval(drawn: Scores, level: float) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two models' scores on the same rows."""

    before: float
    after: float
    low: float
    """The interval of `after - before`: 95 %, percentiles of the resamples."""
    high: float
    p: float
    """Two-sided, in (0, 1]."""
    rows: int

    @property
    def difference(self) -> float:
        return self.after - self.before


def paired_difference(
    before: Scores,
    after: Scores,
    score: Callable[[Scores], Scores],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> PairedDifference:
    """Paired bootstrap test (Koehn, "Statistical Significance Tests for Machine Translation
    Evaluation", 2004) of two models that saw the same rows.

    `before` and `after` are [N, K]: a line for each row, in the same order. `score` turns means
    over rows [R, K] into a score each [R], so that ratios of sums, such as a micro F1, are taken
    of the whole resample. Both models are scored on the same resamples; the p-value is twice the
    share in which the one that is ahead is not, ties counted against it, with one resample added
    that is (so it is never 0), and 1 at most. It tells of other test rows, not of other seeds.
    """
    import numpy as np

    columns = before.shape[1]
    both = np.concatenate([before, after], axis=1)
    means = resampled_means(both, resamples=resamples, seed=seed)
    drawn = score(means[:, columns:]) - score(means[:, :columns])
    whole = both.mean(0, keepdims=True)
    worse = min((drawn <= 0).sum(), (drawn >= 0).sum())
    low, high = _compute_interval(drawn, 0.95)
    return PairedDifference(
        before=float(score(whole[:, :columns])[0]),
        after=float(score(whole[:, columns:])[0]),
        low=low,
        high=high,
        p=min(1.0, 2 * float(worse + 1) / (resamples + 1)),
        rows=len(both),
    )
