"""A Hydra multirun: one run for each point, all on one store, and a table of the points at the end.

Any launcher or sweeper that Hydra knows plugs in. A point that fails does not stop the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from compressor.errors import RecipeError, StageError, Unreachable
from compressor.plan import plan
from compressor.recipe import Composed, compose, find, from_config, hydra_overrides
from compressor.run import read_metrics, table
from compressor.runner import execute
from compressor.store import Store, write_json

POINT = "point.json"


def multirun(
    recipe: str, overrides: Sequence[str], single: Sequence[str], console: Console, *, quiet: bool
) -> int:
    """Run every point that `overrides` spans; 0 if all succeeded, 1 if any failed.

    `single` is `overrides` without those that have several values: with it the recipe is checked
    as a whole before the first point starts.
    """
    base = compose(recipe, single)
    plan(base, Store(_outputs(base) / "store"))
    folder, name = find(recipe)
    started = time.time()
    task = partial(_point, base=base, quiet=quiet)
    arguments = sys.argv
    sys.argv = ["compressor", "--multirun", *hydra_overrides(name, overrides)]
    GlobalHydra.instance().clear()
    try:
        hydra.main(config_path=str(folder), config_name=name, version_base="1.3")(task)()
    finally:
        sys.argv = arguments
    points = sorted(
        path.parent
        for path in (_outputs(base) / "sweeps" / name).glob(f"*/**/{POINT}")
        if path.stat().st_mtime >= started - 1
    )
    return _print_points(points, console)


def _outputs(composed: Composed) -> Path:
    return Path(composed.recipe.outputs).expanduser()


def _point(config: DictConfig, *, base: Composed, quiet: bool) -> float:
    """Run one point; its outcome goes to `point.json`, since a launcher may be another process."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    overrides = tuple(str(item) for item in settings.overrides.task)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.rule(f"{settings.job.num}: {settings.job.override_dirname}", style="dim")
    started = time.monotonic()
    error = None
    try:
        values = OmegaConf.to_container(config, resolve=True)
        composed = from_config(values, settings.job.name, base.sources, overrides)
        store = Store(_outputs(composed) / "store")
        execute(plan(composed, store), store, folder, console, quiet=quiet)
    except Exception as caught:  # noqa: BLE001  # a point that fails does not stop the others
        known = isinstance(caught, RecipeError | StageError | Unreachable)
        error = str(caught) if known else f"{type(caught).__name__}: {caught}".splitlines()[0]
        print(f"error: {error}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started
    outcome = {"overrides": list(overrides), "error": error, "seconds": round(seconds, 3)}
    write_json(folder / POINT, outcome)
    return seconds


def _print_points(points: Sequence[Path], console: Console) -> int:
    outcomes = [json.loads((point / POINT).read_text(encoding="utf-8")) for point in points]
    common = (
        set.intersection(*(set(outcome["overrides"]) for outcome in outcomes))
        if outcomes
        else set()
    )
    shown = Table(
        "point", "model", "non-zero", "rougeLsum", "cached", "seconds", header_style="bold"
    )
    for point, outcome in zip(points, outcomes, strict=True):
        differs = (
            " ".join(item for item in outcome["overrides"] if item not in common) or point.name
        )
        if outcome["error"] is not None:
            shown.add_row(
                differs, f"failed: {outcome['error']}", "", "", "", f"{outcome['seconds']:.1f}"
            )
            continue
        records = read_metrics(point)
        row: dict[str, Any] = table(records)[-1]
        cached = f"{sum(record['cached'] for record in records)}/{len(records)}"
        rouge = f"{row['rougeLsum']:.4f}" if "rougeLsum" in row else ""
        cells = (row["model"], f"{row['nonzero_ratio']:.4f}", rouge, cached)
        shown.add_row(differs, *cells, f"{outcome['seconds']:.1f}")
    console.print(shown)
    if points:
        console.print(f"sweep: {points[0].parent}", highlight=False, soft_wrap=True)
    failed = not outcomes or any(outcome["error"] is not None for outcome in outcomes)
    return 1 if failed else 0
