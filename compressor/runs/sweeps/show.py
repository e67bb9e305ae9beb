"""Prints a sweep's points from its folder, long after it ran."""

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


def is_sweep_folder(folder: Path) -> bool:
    return (folder / ABOUT).is_file() and not (folder / RECIPE).is_file()


def print_sweep(folder: Path, console: Console) -> None:
    """Print the table of a sweep's points, as the sweep printed it. Raises RecipeError."""
    from compressor.runs.sweeps.folder import SweepFolder
    from compressor.runs.sweeps.grid import print_points

    print_points(load_sweep(folder), SweepFolder(folder), console)


def load_sweep(folder: Path) -> Sweep:
    """Load a sweep from its folder alone. Raises RecipeError where `sweep.json` is damaged."""
    from compressor.recipe.objective import Goal
    from compressor.runs.sweeps.folder import SweepFolder
    from compressor.runs.sweeps.grid import choose_objectives
    from compressor.runs.sweeps.points import Point
    from compressor.runs.sweeps.state import Sweep

    sweep_folder = SweepFolder(folder)
    try:
        about = sweep_folder.read()
        names = {str(name): dict(point["differs"]) for name, point in about["points"].items()}
        started = datetime.fromisoformat(about["started"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{folder / ABOUT} is not a sweep's: {reason}") from error
    values = _point_values(folder, list(names))
    goals = [
        Goal(path, direction)
        for direction in ("maximize", "minimize")
        for path in _paths((values.get("objective") or {}).get(direction))
    ]
    try:
        points = [sweep_folder.read_status(Point(n, (), d), goals) for n, d in names.items()]
    except (KeyError, TypeError, AttributeError) as error:  # a record that lacks a key
        raise RecipeError(f"{folder}: a point's {METRICS} is damaged: {error!r}") from error
    return Sweep(
        str(values.get("name") or folder.absolute().parent.name),
        points,
        [(goal.path, goal.direction) for goal in goals] or choose_objectives(points),
        description=str(values.get("description") or ""),
        command=str(about.get("command", "")),
        started=started,
    )
