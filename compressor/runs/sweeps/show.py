"""Print a sweep's points from its folder, long after it ran."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.core.errors import RecipeError
from compressor.engine.past_run import RECIPE, RunRecord
from compressor.engine.run_folder import ABOUT

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
    from compressor.recipe.objective import Objective
    from compressor.runs.sweeps.folder import SweepFolder
    from compressor.runs.sweeps.points import Point

    sweep_folder = SweepFolder(folder)
    try:
        about = sweep_folder.read()
        points = [Point(str(n), (), dict(p["differs"])) for n, p in about["points"].items()]
        datetime.fromisoformat(about["started"])
        # The recipe of the first point that has begun.
        recipe = next(filter(None, (RunRecord(folder / p.name).recipe for p in points)), {})
        objective = recipe.get("objective")
        goals = Objective.model_validate(objective).goals if objective else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{folder / ABOUT} is not a sweep's: {reason}") from error
    name = str(recipe.get("name") or folder.absolute().parent.name)
    return sweep_folder.read_sweep(name, str(recipe.get("description") or ""), points, goals)
