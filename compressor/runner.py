"""One planned run from start to table. Shared by a single run and by each point of a sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.engine import Engine
from compressor.errors import RecipeError, Stopped
from compressor.launching import processes
from compressor.machines import Helper, leading
from compressor.plan import Plan
from compressor.processes import described
from compressor.progress import Progress, Watch
from compressor.recorded import Recorded
from compressor.run import Run, new_folder, table
from compressor.store import Store
from compressor.tables import (
    CLOSENESS,
    NAME_WIDTH,
    Column,
    print_cases,
    print_columns,
    print_demos,
    print_exports,
)

COLUMNS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("parameters", "parameters", lambda v: f"{v / 1e6:.2f} M"),
    ("nonzero_ratio", "non-zero", lambda v: f"{v:.4f}"),
    ("bytes", "MB on disk", lambda v: f"{v / 1e6:.2f}"),
    ("rouge1", "rouge1", lambda v: f"{v:.4f}"),
    ("rouge2", "rouge2", lambda v: f"{v:.4f}"),
    ("rougeLsum", "rougeLsum", lambda v: f"{v:.4f}"),
    ("gen_len", "gen len", lambda v: f"{v:.1f}"),
    ("loss", "loss", lambda v: f"{v:.4f}"),
    ("micro_f1", "micro F1", lambda v: f"{v:.4f}"),
    ("macro_f1", "macro F1", lambda v: f"{v:.4f}"),
    ("roc_auc", "ROC-AUC", lambda v: f"{v:.4f}"),
    ("average_precision", "avg precision", lambda v: f"{v:.4f}"),
    ("retention", "retention", lambda v: f"{100 * v:.1f} %"),
    ("closeness", CLOSENESS, lambda v: f"{v:.4f}"),
    ("latency_p50_ms", "latency p50", lambda v: f"{v:.1f} ms"),
    ("latency_p95_ms", "p95", lambda v: f"{v:.1f} ms"),
    ("latency_p99_ms", "p99", lambda v: f"{v:.1f} ms"),
    ("speedup", "× faster", lambda v: f"{v:.2f}"),
    ("texts_per_second", "texts/s", lambda v: f"{v:.1f}"),
    ("tokens_per_second", "tokens/s", lambda v: f"{v:.0f}"),
    ("resident_bytes", "resident MB", lambda v: f"{v / 1e6:.0f}"),
)
"""Key in a table's row, heading, and how the value is written."""


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
        print(f"warning: {warning}", file=sys.stderr)
    recipe = plan.composed.recipe
    started = processes(recipe.launch)
    if started.machines > 1 and folder is not None:
        raise RecipeError("launch.config_file: a sweep runs on one machine; run points one by one")
    if started.machine > 0:
        Helper(plan, store, started, Progress(console, quiet=quiet).say).follow()
        return store.folder
    folder = folder or new_folder(Path(recipe.outputs).expanduser() / "runs" / recipe.name)
    run = Run.create(folder, plan, store)
    with (
        Progress(console, folder / "events.jsonl", quiet=quiet, watch=watch) as progress,
        _told(plan, store, progress),
        leading(plan, store, started, progress.say) as session,
    ):
        Engine(plan, store, run, progress, session=session).execute()
    print_results(run.records, console)
    console.print(f"run: {folder}", highlight=False, markup=False, soft_wrap=True)
    return folder


@contextmanager
def _told(plan: Plan, store: Store, progress: Progress) -> Iterator[None]:
    """Tell that a run begins, and how it ends."""
    recorded = Recorded.read(store) if any(not node.cached for node in plan.nodes) else None
    stages = [
        {
            "name": node.name,
            "stage": node.kind,
            "seconds": recorded.seconds(node) if recorded and not node.cached else 0.0,
        }
        for node in plan.nodes
    ]
    name = plan.composed.recipe.name
    progress.event("run_started", recipe=name, stages=stages, process=described())
    state, reason = "failed", None
    try:
        yield
        state = "done"
    except Stopped as error:
        state, reason = "stopped", str(error)
        raise
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except BaseException as error:
        reason = str(error)
        raise
    finally:
        progress.event("run_ended", state=state, error=reason)


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
