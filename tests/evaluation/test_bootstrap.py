"""The paired bootstrap test beside a direct implementation. An interval of one mean: test_rouge."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.evaluation import bootstrap
from compressor.evaluation.bootstrap import paired_difference, resampled_means


def _mean(means: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return means[:, 0]


def _f1(means: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return 2 * means[:, 0] / means[:, 1]


def test_it_is_what_a_loop_over_resamples_gives() -> None:
    """Of means, and of a ratio of sums as a micro F1 is one: the same draws, counted one by one."""
    random = np.random.default_rng(3)
    before = np.stack([random.integers(0, 3, 40), random.integers(3, 6, 40)], axis=1).astype(float)
    after = before + np.stack([random.integers(0, 2, 40), np.zeros(40)], axis=1)
    after[:9] = before[:9] - [1, 0]
    for score in (_mean, _f1):
        paired = paired_difference(before, after, score, resamples=300, seed=7)
        draws, differences = np.random.default_rng(7), []
        for _ in range(300):
            rows = draws.integers(40, size=40)
            one, other = (t[rows].sum(0, keepdims=True) for t in (before, after))
            scale = 1 / 40 if score is _mean else 1.0
            differences.append(float(score(other * scale)[0] - score(one * scale)[0]))
        losses = sum(difference <= 1e-12 for difference in differences)
        assert 0 < losses < 150
        assert paired.p == pytest.approx(2 * (losses + 1) / 301)
        assert (paired.low, paired.high) == pytest.approx(
            tuple(np.quantile(differences, [0.025, 0.975]))
        )
        sums = before.sum(0, keepdims=True), after.sum(0, keepdims=True)
        assert paired.difference == pytest.approx(float(score(sums[1])[0] - score(sums[0])[0])
                                                 / (40 if score is _mean else 1))  # fmt: skip


def test_the_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch) -> None:
    """Four resamples at a time, the last block with fewer."""
    rows = np.random.default_rng(0).random((5, 2))
    whole = resampled_means(rows, resamples=11, seed=3)
    monkeypatch.setattr(bootstrap, "_CELLS", 4 * rows.size)
    assert np.array_equal(resampled_means(rows, resamples=11, seed=3), whole)
    assert not np.array_equal(resampled_means(rows, resamples=11, seed=4), whole)


@pytest.mark.parametrize(("shift", "p"), [(0.01, 2 / 2001), (-0.01, 2 / 2001), (0.0, 1.0)])
def test_a_constant_difference_is_as_sure_as_resamples_allow(shift: float, p: float) -> None:
    """The least p-value, whichever is ahead, and 1 of equal rows: as noisy as they may be."""
    rows = np.random.default_rng(0).random((12, 1))
    paired = paired_difference(rows, rows + shift, _mean)
    assert paired.p == p
    assert (paired.low, paired.difference, paired.high) == pytest.approx((shift,) * 3)


def test_pairing_sees_what_two_intervals_do_not() -> None:
    """Rows differ far more from each other than the models do on any of them."""
    random = np.random.default_rng(1)
    rows = random.random((100, 1))
    after = rows + 0.02 + random.normal(0, 0.03, (100, 1))
    paired = paired_difference(rows, after, _mean)
    shuffled = paired_difference(rows, random.permutation(after), _mean)
    assert paired.p < 0.01 < 0.2 < shuffled.p


def test_false_alarms_are_as_rare_as_the_level_says() -> None:
    """Where there is no difference, p < 0.05 comes up in about one of 20 tests."""
    random = np.random.default_rng(2)
    alarms = 0
    for seed in range(400):
        before, after = random.normal(size=(2, 60, 1))
        alarms += paired_difference(before, after, _mean, resamples=200, seed=seed).p < 0.05
    assert 8 <= alarms <= 36  # 20 expected; the bootstrap is slightly too sure on 60 rows
