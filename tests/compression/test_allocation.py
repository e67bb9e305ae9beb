"""Amounts from curves: the total is exact, and no other split predicts less loss."""

from __future__ import annotations

import itertools

import pytest

from compressor.compression.allocation import Curve, allocate_counts


def predicted(curves: dict[str, Curve], counts: dict[str, int]) -> float:
    return sum(
        c.bound_losses(0.0).interpolate_loss(counts[n] / c.left, 0.0) for n, c in curves.items()
    )


def test_no_split_of_a_fine_grid_is_better() -> None:
    """Curves that are not convex, nor monotone, as they are bounded, against all splits in steps
    of 1 %.
    """
    curves = {
        "a": Curve(300, [0.3, 0.6, 0.9], [0.5, 0.6, 3.0]),
        "b": Curve(500, [0.3, 0.6, 0.9], [0.2, 1.5, 1.6]),
        "c": Curve(200, [0.3, 0.6, 0.9], [-0.1, 0.4, 0.5]),
    }
    total = 500
    counts = allocate_counts(curves, 0.0, total)
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
    counts = allocate_counts(curves, 0.0, total)
    assert sum(counts.values()) == total
    assert max(counts.values()) <= 900


def test_what_is_left_and_what_was_measured_are_the_limits() -> None:
    """Nothing is known beyond the last amount; a group of which nothing is left gives nothing."""
    with pytest.raises(ValueError, match="901 entries must go, and 900 can"):
        allocate_counts({"a": Curve(1000, [0.9], [1.0])}, 0.0, 901)
    curves = {"gone": Curve(0, [0.5], [1.0]), "left": Curve(10, [1.0], [2.0])}
    assert allocate_counts(curves, 1.0, 5) == {"gone": 0, "left": 5}


def test_between_measured_points_a_curve_is_a_line_that_begins_at_the_base() -> None:
    """By hand, of 100 entries each: 50 cost b 0.05 and the next 10 a 0.02; a alone would cost 0.14.
    Where 10 of d cost a tenth of 0.3, those of c that 50 precede cost more, 0.04.
    """
    bent, cheap = Curve(100, [0.5, 1.0], [1.1, 1.3]), Curve(100, [0.5, 1.0], [1.05, 9.0])
    assert allocate_counts({"a": bent, "b": cheap}, 1.0, 60) == {"a": 10, "b": 50}
    assert allocate_counts({"c": bent, "d": Curve(100, [1.0], [1.3])}, 1.0, 60) == {
        "c": 50,
        "d": 10,
    }


def test_nothing_is_won_by_a_dip() -> None:
    """A ruined group, whose loss falls again or stays, costs as much as what ruined it did."""
    dip, rises = Curve(100, [0.5, 0.9], [8.0, 2.0]), Curve(100, [0.5, 0.9], [1.5, 4.0])
    flat = Curve(100, [0.5, 0.9], [8.0, 8.0])
    assert dip.bound_losses(1.0).losses == pytest.approx([8.0, 8.0 + 0.4 * 14])
    assert Curve(9, [0.5, 1.0], [0.9, 1.2]).bound_losses(1.0).losses == pytest.approx([1.0, 1.3])
    for ruined in (dip, flat):
        counts = allocate_counts({"ruined": ruined, "rises": rises}, 1.0, 100)
        assert counts == {"ruined": 10, "rises": 90}
