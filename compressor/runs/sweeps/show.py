"""Print a sweep's points."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.core.errors import RecipeError
from compressor.engine.past_run import METRICS, RECIPE
from compressor.engine.run_folder import ABOUT
from compressor.reports.show import _paths, _point_values

if TYPE_CHECKING:
    from compressor.core.console import Console
    from compressor.runs.sweeps.state import Sweep


def is_sweep(folder: Path) -> bool:
    return (folder / ABOUT).is_file() and not (folder / RECIPE).is_file()


def print_sweep(folder: Path, console: Console) -> None:
    """The table of a sweep's points, as the sweep printed it. Raises RecipeError."""
    from compressor.runs.sweeps.folder import SweepFolder
    from compressor.runs.sweeps.grid import print_points

    print_points(sweep(folder), SweepFolder(folder), console)


def sweep(folder: Path) -> Sweep:
    """A sweep as its folder alone tells it. Raises RecipeError where `sweep.json` is damaged."""
    from compressor.recipe.objective import Goal
    from compressor.runs.sweeps.folder import SweepFolder
    from compressor.runs.sweeps.grid import trade_off
    from compressor.runs.sweeps.points import Point
    from compressor.runs.sweeps.state import Sweep

    there = SweepFolder(folder)
    try:
        known = there.about()
        names = {str(name): dict(each["differs"]) for name, each in known["points"].items()}
        started = datetime.fromisoformat(known["started"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{folder / ABOUT} is not a sweep's: {what}") from error
    values = _point_values(folder, list(names))
    goals = [
        Goal(path, direction)
        for direction in ("maximize", "minimize")
        for path in _paths((values.get("objective") or {}).get(direction))
    ]
    try:
        points = [there.standing(Point(name, (), each), goals) for name, each in names.items()]
    except (KeyError, TypeError, AttributeError) as error:  # a record that lacks a key
        raise RecipeError(f"{folder}: a point's {METRICS} is damaged: {error!r}") from error
    return Sweep(
        str(values.get("name") or folder.absolute().parent.name),
        points,
        [(goal.path, goal.direction) for goal in goals] or trade_off(points),
        description=str(values.get("description") or ""),
        command=str(known.get("command", "")),
        started=started,
    )
