"""Run a plan from start to table: a single run, or a point of a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressor.core.console import Console
from compressor.core.errors import EarlyStop, RecipeError
from compressor.core.files import expand_home, write_json
from compressor.core.printing import print_note, print_warning
from compressor.core.processes import describe_process
from compressor.core.progress import Progress, Watch
from compressor.core.redaction import redact_text
from compressor.engine.cluster import Follower, lead
from compressor.engine.engine import Engine
from compressor.engine.plan import Plan
from compressor.engine.provenance import ASKED, describe_request
from compressor.engine.run_folder import Run, make_run_folder
from compressor.engine.store.store import Store
from compressor.engine.store.timings import StageTimings
from compressor.reports.run_page.results import Ended
from compressor.reports.tables import print_results
from compressor.reports.write import write_reports
from compressor.training.launch_config import read_processes


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
    `watch` hears all events, and may raise EarlyStop.
    """
    plan.require_reachable()
    for warning in plan.warnings:
        print_warning(warning)
    recipe = plan.composed.recipe
    started = read_processes(recipe.launch)
    if started.machines > 1 and folder is not None:
        raise RecipeError("launch.config_file: a sweep runs on one machine; run points one by one")
    if started.machine_rank > 0:
        Follower(plan, store, started, Progress(console, quiet=quiet).say).follow()
        return store.folder
    folder = folder or make_run_folder(expand_home(recipe.outputs) / "runs" / recipe.name)
    run, request = Run.create(folder, plan, store), describe_request(plan)
    with store.hold_off_gc(say_collecting):
        write_json(folder / ASKED, request)  # names what the run counts on
    with (
        Progress(console, folder / "events.jsonl", quiet=quiet, watch=watch) as progress,
        _report_end(plan, run, progress),
        lead(plan, store, started, progress.say) as session,
    ):
        Engine(plan, store, run, progress, session=session).execute()
    print_results(run.records, console)
    console.say(f"run: {folder}")
    return folder


def say_collecting() -> None:
    """Say why a run or sweep does not begin at once."""
    print_note("waiting for `compressor gc`, or another run that begins just now")


@contextmanager
def _report_end(plan: Plan, run: Run, progress: Progress) -> Iterator[None]:
    """Note when a run begins and how it ends, and leave a report of it, however that is."""
    timings = StageTimings.read(run.store) if any(not node.cached for node in plan.nodes) else None
    seconds = {n.name: timings.seconds(n) for n in plan.nodes if timings and not n.cached}
    stages = [
        {"name": node.name, "stage": node.kind, "seconds": seconds.get(node.name, 0.0)}
        for node in plan.nodes
    ]
    name = plan.composed.recipe.name
    state: Ended = "failed"
    reason: str | None = None
    try:
        progress.emit("run_started", recipe=name, stages=stages, process=describe_process())
        yield
        state = "done"
    except EarlyStop as error:
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
            progress.emit("run_ended", state=state, error=reason)
        finally:  # the terminal may be gone
            write_reports(run.folder, state, reason and redact_text(reason))
