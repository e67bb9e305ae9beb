"""One planned run from start to table. Shared by a single run and by each point of a sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.engine import Engine
from compressor.errors import RecipeError, Stopped
from compressor.files import expand_home, write_json
from compressor.launching import processes
from compressor.machines import Helper, leading
from compressor.plan import Plan
from compressor.printed import complain
from compressor.processes import described
from compressor.progress import Progress, Watch
from compressor.recorded import StageTimings
from compressor.redaction import redacted_text
from compressor.report import ASKED, Ended, asked, write_reports
from compressor.run import Run, new_folder, table
from compressor.store import Store
from compressor.tables import (
    COLUMNS,
    NAME_WIDTH,
    Column,
    print_cases,
    print_columns,
    print_demos,
    print_exports,
)


def execute(
    plan: Plan,
    store: Store,
    folder: Path | None,
    console: Console,
    *,
    quiet: bool = False,
    watch: Watch | None = None,
) -> Path:
    """Run a plan into `folder` (default: a new one under `runs/`), print its table, return it.

    On another of several machines than the first: take part in that one's run; return the store.
    `watch` hears all events, and may raise Stopped.
    """
    plan.require_reachable()
    for warning in plan.warnings:
        complain("warning", warning)
    recipe = plan.composed.recipe
    started = processes(recipe.launch)
    if started.machines > 1 and folder is not None:
        raise RecipeError("launch.config_file: a sweep runs on one machine; run points one by one")
    if started.machine > 0:
        Helper(plan, store, started, Progress(console, quiet=quiet).say).follow()
        return store.folder
    folder = folder or new_folder(expand_home(recipe.outputs) / "runs" / recipe.name)
    run, about = Run.create(folder, plan, store), asked(plan)
    with store.hold_off_gc(say_collecting):
        write_json(folder / ASKED, about)  # names what the run counts on
    with (
        Progress(console, folder / "events.jsonl", quiet=quiet, watch=watch) as progress,
        _told(plan, run, progress),
        leading(plan, store, started, progress.say) as session,
    ):
        Engine(plan, store, run, progress, session=session).execute()
    print_results(run.records, console)
    console.print(f"run: {folder}", highlight=False, markup=False, soft_wrap=True)
    return folder


def say_collecting() -> None:
    """Why a run or sweep does not begin at once."""
    complain("note", "waiting for `compressor gc`, or another run that begins just now")


@contextmanager
def _told(plan: Plan, run: Run, progress: Progress) -> Iterator[None]:
    """Tell that a run begins, and how it ends; and leave a report of it, however that is."""
    timings = StageTimings.read(run.store) if any(not node.cached for node in plan.nodes) else None
    stages = [
        {
            "name": node.name,
            "stage": node.kind,
            "seconds": timings.seconds(node) if timings and not node.cached else 0.0,
        }
        for node in plan.nodes
    ]
    name = plan.composed.recipe.name
    state: Ended = "failed"
    reason: str | None = None
    try:
        progress.event("run_started", recipe=name, stages=stages, process=described())
        yield
        state = "done"
    except Stopped as error:
        state, reason = "stopped", str(error)
        raise
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except BaseException as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        try:
            progress.event("run_ended", state=state, error=reason)
        finally:  # the terminal may be gone
            write_reports(run.folder, state, reason and redacted_text(reason))


def print_results(records: Sequence[dict[str, Any]], console: Console) -> None:
    """Everything that a person sees of a run's results without asking for more."""
    print_table(records, console)
    print_cases(records, console)
    print_exports(records, console)
    print_demos(records, console)


def print_table(records: Sequence[dict[str, Any]], console: Console) -> None:
    """A row for each model that was looked at; only columns that have a value."""
    rows = table(records)
    models = Column("model", [row["model"] for row in rows], "left", widest=NAME_WIDTH)
    columns = [
        Column(heading, ["" if row.get(key) is None else write(row[key]) for row in rows])
        for key, heading, write in COLUMNS
        if any(row.get(key) is not None for row in rows)
    ]
    print_columns(models, columns, console)
