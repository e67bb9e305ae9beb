"""Commands that plan and run recipes: `run` and `plan`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from typer import Option

from compressor.cli import DONE, FAILED
from compressor.cli.shared import Overrides, RecipeName, open_console, print_json
from compressor.core.errors import RecipeError
from compressor.core.printing import print_warning
from compressor.core.processes import UNDER_LAUNCHER, sigterm_as_keyboard_interrupt

if TYPE_CHECKING:
    from compressor.engine.plan import Plan
    from compressor.engine.store.store import Store


def run_recipe(
    recipe: RecipeName,
    overrides: Overrides,
    *,
    multirun: Annotated[
        bool,
        Option(
            "-m",
            "--multirun",
            help="sweep over overrides such as a=0.1,0.3, or search where a recipe has a `search`",
        ),
    ] = False,
    quiet: Annotated[bool, Option("-q", "--quiet", help="print the final table alone")] = False,
    rehearse: Annotated[
        bool,
        Option(
            "--rehearse",
            help="run the whole chain on a tiny model and a few rows, and check it; keeps nothing",
        ),
    ] = False,
) -> int:
    """Run a recipe; what the store has is not run again."""
    from compressor.runs.runner import execute

    if UNDER_LAUNCHER in os.environ:
        raise RecipeError(
            "started by torchrun or `accelerate launch`, which would start every stage several "
            "times; start `compressor run …` by itself and set launch.num_processes=N (or "
            f"launch.config_file); if nobody started it so, unset {UNDER_LAUNCHER}"
        )
    with sigterm_as_keyboard_interrupt():
        if rehearse:
            return _rehearse(recipe, overrides, multirun=multirun, quiet=quiet)
        if multirun:
            return _run_sweep(recipe, overrides, quiet=quiet)
        store, plan = _plan_one(recipe, overrides)
        execute(plan, store, None, open_console(), quiet=quiet)
    return DONE


def plan_recipe(
    recipe: RecipeName,
    overrides: Overrides,
    *,
    as_json: Annotated[bool, Option("--json", help="a list of stages, as JSON")] = False,
    multirun: Annotated[
        bool,
        Option("-m", "--multirun", help="what a sweep shares, and what it would take"),
    ] = False,
) -> int:
    """Show what a run would do. Loads no weights."""
    from compressor.engine.store.timings import StageTimings
    from compressor.reports.plan_tree import print_plan

    if multirun:
        return _plan_sweep(recipe, overrides, as_json=as_json)
    store, plan = _plan_one(recipe, overrides)
    for problem in (*plan.warnings, *plan.unreached):
        print_warning(problem)
    timings = StageTimings.read(store)
    if as_json:
        stages = [node.summary() | {"seconds": timings.seconds(node)} for node in plan.nodes]
        print_json(stages)
    else:
        print_plan(plan, timings, open_console())
    return DONE


def _plan_one(recipe: str, overrides: Sequence[str]) -> tuple[Store, Plan]:
    """Plan one run, whose overrides give one value each."""
    from compressor.engine.plan import plan
    from compressor.engine.store.store import Store
    from compressor.recipe.compose import compose
    from compressor.runs.sweeps.points import is_sweep

    if several := [override for override in overrides if is_sweep(override)]:
        raise RecipeError(f"{several[0]!r} gives several values: add -m for a sweep over them")
    composed = compose(recipe, overrides)
    store = Store.of(composed.recipe.outputs)
    return store, plan(composed, store)


def _rehearse(recipe: str, overrides: Sequence[str], *, multirun: bool, quiet: bool) -> int:
    from compressor.runs.rehearsal.rehearse import rehearse

    if multirun:
        raise RecipeError("--rehearse is of one run: leave out -m, and give one value of each key")
    _, plan = _plan_one(recipe, overrides)
    return DONE if rehearse(plan, open_console(), quiet=quiet) else FAILED


def _run_sweep(recipe: str, overrides: Sequence[str], *, quiet: bool) -> int:
    """Search where the recipe has a `search`, else run a grid."""
    from compressor.runs.search.search import run_search
    from compressor.runs.sweeps.grid import run_grid
    from compressor.runs.sweeps.launch import is_search

    sweep = run_search if is_search(recipe, overrides) else run_grid
    return sweep(recipe, overrides, open_console(), quiet=quiet)


def _plan_sweep(recipe: str, overrides: Sequence[str], *, as_json: bool) -> int:
    from compressor.runs.search.plan import print_search_plan
    from compressor.runs.sweeps.grid import print_grid_plan
    from compressor.runs.sweeps.launch import is_search

    if as_json:
        raise RecipeError("--json is of one run's stages; a sweep's plan is a tree")
    show = print_search_plan if is_search(recipe, overrides) else print_grid_plan
    for problem in show(recipe, overrides, open_console()):
        print_warning(problem)
    return DONE
