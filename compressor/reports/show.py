"""Show a run: all that one comes back for after a month."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.errors import RecipeError
from compressor.core.packages import find_version
from compressor.engine.past_run import METRICS, Record, RunRecord
from compressor.evaluation.metric_names import TEXT_SCORES
from compressor.reports.tables import (
    Column,
    make_names,
    print_columns,
    print_results,
    print_scores,
    write_cells,
)

FILES = ("report.html", "README.md", "model", "predictions.csv", "perplexity.csv", "error.txt")
"""What a run may have that a person opens."""
_SUMMARIZED = (
    *("validation_loss", "baseline_loss", "loss"),
    *(*TEXT_SCORES, "micro_f1", "macro_f1", "entity_f1"),
    *("retention", "latency_p50_ms", "format", "weights", "steps"),
    "trained_parameters",
)
"""Metrics that a stage's line has, where it left them: the first few."""
_MOST = 4


def find_changed_versions(
    packages: Mapping[str, str | None],
) -> dict[str, tuple[str | None, str | None]]:
    """Map each package that differs to (recorded version, installed one); None: not installed."""
    pairs = {name: (recorded, find_version(name)) for name, recorded in packages.items()}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def describe_run(run: RunRecord) -> dict[str, Any]:
    """Describe a run as `show --json` prints it."""
    status = run.status
    return {
        "folder": str(run.folder),
        "recipe": run.name,
        "description": run.recipe.get("description") or None,
        "command": run.environment.get("command"),
        "started": run.environment.get("started"),
        "machine": run.environment.get("machine"),
        "state": {"ended": status.ended, "stage": status.stage, "reason": status.reason},
        "packages": run.packages,
        "packages_that_differ": {
            name: {"recorded": before, "installed": after}
            for name, (before, after) in find_changed_versions(run.packages).items()
        },
        "stages": run.records,
        "removed": list_removed_stages(run),
        "files": {name: str(run.folder / name) for name in _list_files(run.folder)},
    }


def list_removed_stages(run: RunRecord) -> list[str]:
    """List the stages whose artifacts are in the store no more."""
    return [record["name"] for record in run.records if run.artifact(record) is None]


def _list_files(folder: Path) -> list[str]:
    """List what there is to open; a link whose target has been removed is not."""
    return [name for name in FILES if (folder / name).exists()]


def print_run(run: RunRecord, console: Console, *, scores: bool = False) -> None:
    """Print everything of a run. Raises RecipeError where a record cannot be shown."""
    for name, text in _list_facts(run).items():
        if text:
            console.say(f"{name:<9} {text}")
    if run.records:
        _print_stages(run.records, console)
    print_metrics(run, console, scores=scores)
    if removed := list_removed_stages(run):
        console.say(f"no longer in the store: {', '.join(removed)}")
    for name in _list_files(run.folder):
        console.say(f"{name}: {run.folder / name}")


def print_metrics(run: RunRecord, console: Console, *, scores: bool = False) -> None:
    """Print the tables of what a run measured. Raises RecipeError where a record does not fit."""
    try:
        if run.records:
            print_results(run.records, console)
        if scores:
            print_scores(run.records, console)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # One of another version may have left others.
        reason = f"its metrics cannot be shown: {type(error).__name__}: {error}"
        raise RecipeError(f"{run.folder / METRICS}: {reason}") from error


def _list_facts(run: RunRecord) -> dict[str, str]:
    environment = run.environment
    machine, command = environment.get("machine"), environment.get("command")
    machine = machine if isinstance(machine, dict) else {}  # another version's, or damaged
    command = command if isinstance(command, list) else ()
    parts = [str(machine[key]) for key in ("system", "processor", "device") if machine.get(key)]
    parts += [f"{machine['threads']} threads"] if machine.get("threads") else []
    return {
        "run": str(run.folder),
        "recipe": run.name,
        "what": " ".join(str(run.recipe.get("description") or "").split()),
        "command": shlex.join(map(str, command)).replace("__main__.py", "compressor", 1),
        "started": f"{run.start_time:%Y-%m-%d %H:%M:%S}" if environment.get("started") else "",
        "machine": ", ".join(parts),
        "state": str(run.status),
        "versions": summarize_versions(run),
    }


def summarize_versions(run: RunRecord) -> str:
    """Name the versions that are not those installed now, in a line."""
    if not run.packages:
        return "not recorded"
    changes = [
        f"{name} {before or 'none'} (now {after or 'none'})"
        for name, (before, after) in find_changed_versions(run.packages).items()
    ]
    return "; ".join(changes) or "as installed now"


def _print_stages(records: list[Record], console: Console) -> None:
    columns = [
        Column("", ["cached" if r["cached"] else "run" for r in records], "left"),
        Column("seconds", write_cells(records, "seconds", "{:.1f}")),
        Column("parameters", write_cells(records, "parameters", "{:.2f} M", 1e6)),
        Column("non-zero", write_cells(records, "nonzero_ratio", "{:.4f}")),
        Column("MB", write_cells(records, "bytes", "{:.2f}", 1e6)),
        Column("metrics", [summarize_metrics(record) for record in records], "left"),
    ]
    print_columns(make_names("stage", [r["name"] for r in records]), columns, console)


def summarize_metrics(record: Record | None) -> str:
    """Write what a stage measured in a line; the run's tables and `--json` have all of it."""
    metrics = {} if record is None else record["metrics"]
    values = [(key, metrics[key]) for key in _SUMMARIZED if metrics.get(key) is not None]
    texts = [f"{key} {v:.4g}" if isinstance(v, float) else f"{key} {v}" for key, v in values]
    return "  ".join(texts[:_MOST])
