"""A Hydra multirun: one run for each point, all on one store, and a table of the points at the end.

Any launcher or sweeper that Hydra knows plugs in. A point that fails does not stop the others.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compressor.errors import Problem, RecipeError, StageError, Unreachable
from compressor.plan import plan
from compressor.recipe import (
    Composed,
    compose,
    container,
    find,
    from_config,
    hydra_overrides,
    quoted,
)
from compressor.run import new_folder, read_metrics, table
from compressor.runner import execute
from compressor.store import Store, write_json

POINT = "point.json"


def is_sweep(override: str) -> bool:
    """Whether an override has several values: `a=1,2`, `a=range(1,4)`, `a=choice(x,y)` …"""
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException:
        return False  # composing reports it
    return parsed.is_sweep_override()


def multirun(recipe: str, overrides: Sequence[str], console: Console, *, quiet: bool) -> int:
    """Run every point that `overrides` spans; 0 if all succeeded, 1 if any failed.

    Every point is composed and planned before the first one runs, where Hydra's own sweeper makes
    them: a wrong value is told before anything is trained.
    """
    points = _points(overrides)
    problems: list[Problem] = []
    for point in points:
        try:
            composed = compose(recipe, point)
            plan(composed, Store.of(composed.recipe.outputs)).require_reachable()
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    base = compose(recipe, points[0])
    folder, name = find(recipe)
    own = new_folder(_outputs(base) / "sweeps" / base.recipe.name)
    place = f"hydra.sweep.dir={quoted(str(own))}"
    arguments = sys.argv
    sys.argv = ["compressor", "--multirun", *hydra_overrides(name, [*overrides, place])]
    GlobalHydra.instance().clear()
    task = partial(_point, base=base, quiet=quiet)
    try:
        hydra.main(config_path=str(folder), config_name=name, version_base="1.3")(task)()
    finally:
        sys.argv = arguments
    finished = [path.parent for path in own.rglob(POINT)]
    finished.sort(key=lambda path: (len(path.name), path.name))  # by their numbers
    return _print_points(finished, console)


def _points(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each point, in the order of Hydra's own sweeper.

    Where another sweeper chooses the values (it has an interval, say), one point without them.
    """
    values: list[list[str]] = []
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException:
            values.append([override])  # composing reports it
            continue
        if not parsed.is_sweep_override():
            values.append([override])
        elif parsed.is_discrete_sweep() and parsed.value_type != ValueType.GLOB_CHOICE_SWEEP:
            key = parsed.get_key_element()
            values.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
    return [list(point) for point in product(*values)]


def _outputs(composed: Composed) -> Path:
    return Path(composed.recipe.outputs).expanduser()


def _point(config: DictConfig, *, base: Composed, quiet: bool) -> float:
    """Run one point; its outcome goes to `point.json`, since a launcher may be another process."""
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    overrides = tuple(str(item) for item in settings.overrides.task)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.rule(escape(f"{settings.job.num}: {settings.job.override_dirname}"), style="dim")
    started = time.monotonic()
    error = None
    try:
        values = container(config, base.sources, overrides)
        composed = from_config(values, settings.job.name, base.sources, overrides)
        store = Store.of(composed.recipe.outputs)
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
                escape(differs),
                escape(f"failed: {outcome['error']}"),
                *("", "", ""),
                f"{outcome['seconds']:.1f}",
            )
            continue
        records = read_metrics(point)
        row: dict[str, Any] = table(records)[-1]
        cached = f"{sum(record['cached'] for record in records)}/{len(records)}"
        rouge = f"{row['rougeLsum']:.4f}" if "rougeLsum" in row else ""
        cells = (escape(row["model"]), f"{row['nonzero_ratio']:.4f}", rouge, cached)
        shown.add_row(escape(differs), *cells, f"{outcome['seconds']:.1f}")
    console.print(shown)
    if points:
        console.print(f"sweep: {points[0].parent}", highlight=False, markup=False, soft_wrap=True)
    failed = not outcomes or any(outcome["error"] is not None for outcome in outcomes)
    return 1 if failed else 0
