"""Amounts from curves: the total is exact, and no other split predicts less loss."""

from __future__ import annotations

import itertools

import pytest

from compressor.sparsity.allocate import Curve, allocate


def predicted(curves: dict[str, Curve], counts: dict[str, int]) -> float:
    return sum(c.loss(counts[n] / c.left, 0.0) for n, c in curves.items())


def test_what_costs_nothing_goes_first() -> None:
    """A flat group gives all it can, the steep one the rest."""
    curves = {
        "flat": Curve(1000, [0.5, 0.9], [1.0, 1.0]),
        "steep": Curve(1000, [0.5, 0.9], [2.0, 5.0]),
    }
    assert allocate(curves, 1.0, 1000) == {"flat": 900, "steep": 100}


def test_no_split_of_a_fine_grid_is_better() -> None:
    """Curves that are not convex, nor monotone, against all splits in steps of 1 %."""
    curves = {
        "a": Curve(300, [0.3, 0.6, 0.9], [0.5, 0.6, 3.0]),
        "b": Curve(500, [0.3, 0.6, 0.9], [0.2, 1.5, 1.6]),
        "c": Curve(200, [0.3, 0.6, 0.9], [-0.1, 0.4, 0.5]),
    }
    total = 500
    counts = allocate(curves, 0.0, total)
    assert sum(counts.values()) == total
    best = min(
        predicted(curves, {"a": a, "b": b, "c": total - a - b})
        for a, b in itertools.product(range(0, 271, 5), range(0, 451, 5))
        if 0 <= total - a - b <= 180
    )
    assert predicted(curves, counts) <= best + 1e-3


@pytest.mark.parametrize("total", [0, 1, 7, 2699, 2700])
def test_the_total_is_exact(total: int) -> None:
    """Up to the last entry that the curves allow."""
    curves = {name: Curve(1000, [0.9], [1.0]) for name in "abc"}
    counts = allocate(curves, 0.0, total)
    assert sum(counts.values()) == total
    assert max(counts.values()) <= 900


def test_more_than_the_curves_reach_is_refused() -> None:
    """Nothing is known beyond the last measured amount."""
    with pytest.raises(ValueError, match="901 entries must go, and 900 can"):
        allocate({"a": Curve(1000, [0.9], [1.0])}, 0.0, 901)
