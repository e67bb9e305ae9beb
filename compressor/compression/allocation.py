"""Allocate a total over groups so that the predicted loss grows least."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

CELLS = 2000
"""Parts that the total is cut into: a step is 0.05 % of what has to go."""


@dataclass(frozen=True)
class Curve:
    """Loss when one group alone is pruned: at `amounts` (ascending, of `left` entries)."""

    left: int
    amounts: Sequence[float]
    losses: Sequence[float]

    def bound_losses(self, base: float) -> Curve:
        """Give the curve whose slope, from `base` on, never falls: nothing is won by a dip in it.

        Where a loss falls with more pruned, or stays where a ruined model has it, the slope is the
        steepest before.
        """
        amounts, losses = [0.0, *self.amounts], [base, *self.losses]
        steepest, bounded = 0.0, [base]
        for index in range(1, len(amounts)):
            width = amounts[index] - amounts[index - 1]
            steepest = max(steepest, (losses[index] - losses[index - 1]) / width)
            bounded.append(bounded[-1] + steepest * width)
        return Curve(self.left, self.amounts, bounded[1:])

    def interpolate_loss(self, amount: float, base: float) -> float:
        """Interpolate linearly between the measured points, from (0, base) on."""
        amounts, losses = [0.0, *self.amounts], [base, *self.losses]
        amount = min(amount, amounts[-1])  # a rounding may be one step beyond
        index = bisect_left(amounts, amount)
        if index == 0:
            return base
        low, high = amounts[index - 1], amounts[index]
        share = (amount - low) / (high - low)
        return losses[index - 1] + share * (losses[index] - losses[index - 1])


def allocate_counts(curves: Mapping[str, Curve], base: float, total: int) -> dict[str, int]:
    """Choose counts that add up to `total` with the least sum of the curves' losses.

    Predicted loss is `base` plus what each group's curve adds by itself, its losses bounded so that
    no dip is worth anything. The minimum over a grid of cells of `total / CELLS` entries is exact
    (dynamic programming). Nothing is pruned beyond a curve's last amount.

    Raises ValueError where all curves together do not reach `total`.
    """
    rest = {name: curve.bound_losses(base) for name, curve in curves.items() if curve.left}
    if len(rest) < len(curves):  # a group of which nothing is left has no shares
        return dict.fromkeys(curves, 0) | allocate_counts(rest, base, total)
    curves = rest
    most = {name: int(curve.amounts[-1] * curve.left) for name, curve in curves.items()}
    if total > sum(most.values()):
        raise ValueError(f"{total} entries must go, and {sum(most.values())} can")
    if total <= 0:
        return dict.fromkeys(curves, 0)
    cell = total / CELLS
    best = np.full(CELLS + 1, np.inf)  # of the groups so far: cells → the least that they cost
    best[0] = 0.0
    choices: list[list[int]] = []
    for name, curve in curves.items():
        cells = min(CELLS, int(most[name] / cell))
        added = [
            curve.interpolate_loss(k * cell / curve.left, base) - base for k in range(cells + 1)
        ]
        reached = np.concatenate([np.full(cells, np.inf), best])
        costs = sliding_window_view(reached, cells + 1)[:, ::-1] + added  # [all cells, its own]
        best = costs.min(1)
        choices.append(costs.argmin(1).tolist())
    counts, used = dict(most), CELLS
    if best[used] < np.inf:  # rounding to cells keeps the last few from being reached
        for name, choice in zip(reversed(list(curves)), reversed(choices), strict=True):
            counts[name] = min(most[name], round(choice[used] * cell))
            used -= choice[used]
    return _adjust_to_total(counts, most, total, list(curves))


def _adjust_to_total(
    counts: dict[str, int], most: Mapping[str, int], total: int, order: Sequence[str]
) -> dict[str, int]:
    """Move what rounding to cells left over, from or to the largest groups first."""
    over = sum(counts.values()) - total
    for name in sorted(order, key=lambda n: -counts[n]):
        moved = max(min(over, counts[name]), counts[name] - most[name])
        counts[name] -= moved
        over -= moved
    return {name: counts[name] for name in order}
