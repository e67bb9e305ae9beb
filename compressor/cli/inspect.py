"""Commands about runs that were made: `show`, `watch`, `compare`, `why` and `reproduce`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from compressor.cli import DONE, FAILED
from compressor.cli.shared import (
    OUTPUTS,
    AsJson,
    Outputs,
    RunName,
    open_console,
    print_json,
    take_many,
)
from compressor.core.errors import RecipeError
from compressor.core.processes import sigterm_as_keyboard_interrupt

if TYPE_CHECKING:
    from compressor.engine.past_run import RunRecord


def show_run(
    run: RunName,
    *,
    scores: Annotated[
        bool, Option("--scores", help="precision, recall and F1 of every ROUGE as well")
    ] = False,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Show a run and its results, or a sweep's points."""
    from compressor.engine.past_run import RunRecord, find_run
    from compressor.reports.show import describe_run, print_run
    from compressor.runs.sweeps.show import is_sweep_folder, print_sweep

    folder = find_run(run, outputs)
    if is_sweep_folder(folder):
        if as_json:
            raise RecipeError(f"--json is of one run; {folder} is a sweep's: it has a sweep.csv")
        print_sweep(folder, open_console())
        return DONE
    record = RunRecord.read(folder)
    if as_json:
        print_json(describe_run(record))
    else:
        print_run(record, open_console(), scores=scores)
    return DONE


def watch_run(run: RunName, *, outputs: Outputs = OUTPUTS) -> int:
    """Follow a run from another terminal."""
    from compressor.engine.past_run import find_run
    from compressor.runs.watch import watch

    try:
        with sigterm_as_keyboard_interrupt():
            return DONE if watch(find_run(run, outputs), open_console()) else FAILED
    except KeyboardInterrupt:
        print("\nnot watching any more; the run goes on", file=sys.stderr)
        return DONE


def compare_runs(
    runs: Annotated[
        list[str],
        Argument(metavar="RUN", help="runs' directories, or recipes' names; the baseline first"),
    ],
    *,
    html: Annotated[
        Path | None, Option(metavar="FILE", help="write a page with charts too")
    ] = None,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Compare runs with the first of them."""
    from compressor.reports.compare.compare import compare
    from compressor.reports.compare.tables import print_comparison

    if len(runs) < 2:
        raise RecipeError("compare: expected at least two runs, the baseline first")
    comparison = compare([_read_run(name, outputs) for name in runs])
    if html is not None:
        from compressor.reports.compare.page import write_page

        write_page(html, comparison)
    if as_json:
        print_json(comparison.as_json())
        return DONE
    print_comparison(comparison, open_console())
    if html is not None:
        print(f"page: {html}")
    return DONE


def explain_stage(
    run: RunName,
    stage: Annotated[str, Argument(metavar="STAGE", help="a stage of the run")],
    *,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Say why a stage ran, or that it came from the store."""
    from compressor.reports import why

    explanations = why.explain_stage(_read_run(run, outputs), stage)
    if as_json:
        print_json([explanation.as_json() for explanation in explanations])
        return DONE
    for explanation in explanations:
        why.print_explanation(explanation, open_console())
    return DONE


def reproduce_run(
    run: RunName,
    secrets: Annotated[list[str], take_many("KEY=VALUE", "secrets: they are not recorded")],
    *,
    into: Annotated[Path | None, Option(metavar="DIR", help="the outputs of the new run")] = None,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Run a run's recipe again, and compare what comes out.

    Exit code 1 where something differs that should be equal.
    """
    from compressor.runs.reproduce import make_outputs, reproduce, restore_recipe
    from compressor.runs.reproduction import print_reproduction

    record = _read_run(run, outputs)
    record.require_records()
    values = restore_recipe(record, secrets)
    with make_outputs(record, into, outputs) as folder, sigterm_as_keyboard_interrupt():
        reproduction = reproduce(record, folder, values, open_console(stderr=as_json))
    if as_json:
        print_json(reproduction.as_json())
    else:
        print_reproduction(reproduction, open_console())
    return DONE if reproduction.equal else FAILED


def _read_run(name: str, outputs: Path) -> RunRecord:
    from compressor.engine.past_run import RunRecord, find_run

    return RunRecord.read(find_run(name, outputs))
