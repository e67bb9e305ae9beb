"""`show`: all that one comes back for after a month, of a run or of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core.errors import RecipeError
from compressor.core.processes import is_running
from compressor.engine.past_run import METRICS, RECIPE, PastRun, Record

if TYPE_CHECKING:
    from compressor.core.console import Console


Ended = Literal["finished", "failed", "interrupted", "running", "stopped early"]

FILES = ("report.html", "README.md", "model", "predictions.csv", "error.txt")
"""What a run may have that a person opens."""

_TOLD = (
    *("validation_loss", "baseline_loss", "loss", "rougeLsum", "micro_f1", "macro_f1"),
    *("retention", "latency_p50_ms", "format", "weights", "steps"),
)
"""Metrics that a stage's line has, where it left them."""

_MOST = 4


@dataclass(frozen=True)
class State:
    """How a run ended, by its events."""

    ended: Ended
    stage: str | None = None
    """The stage that failed, or was under way."""
    reason: str | None = None

    def __str__(self) -> str:
        where = f" in {self.stage}" if self.stage is not None else ""
        return f"{self.ended}{where}" + (f": {self.reason}" if self.reason else "")


def state(run: PastRun) -> State:
    """How a run ended: finished, failed with its error, or interrupted; or that it still runs.

    By the events since it was last started: a point of a sweep may be, several times.
    """
    kinds = [event.get("event") for event in run.events]
    starts = [at for at, kind in enumerate(kinds) if kind == "run_started"]
    events = run.events[starts[-1] :] if starts else []
    last: dict[str | None, dict[str, Any]] = {event.get("event"): event for event in events}
    if (ended := last.get("run_ended")) is not None:
        failed = last.get("stage_failed", {})
        reason = failed.get("error") or ended.get("error")
        word = _ENDED.get(str(ended.get("state")), "failed")
        return State(word, failed.get("name"), reason) if word != "finished" else State(word)
    started, done = last.get("stage_started", {}), last.get("stage_ended", {})
    under_way = started.get("name") if started.get("name") != done.get("name") else None
    process = last.get("run_started", {}).get("process")
    try:
        running = process is not None and is_running(process)
    except (KeyError, TypeError, ValueError):  # a damaged line
        running = False
    return State("running" if running else "interrupted", under_way)


_ENDED: Mapping[str, Ended] = {
    "done": "finished",
    "failed": "failed",
    "interrupted": "interrupted",
    "stopped": "stopped early",
}


def installed(packages: Mapping[str, str | None]) -> dict[str, tuple[str | None, str | None]]:
    """Package → (recorded version, installed one) of those that differ; None: not installed."""
    found = {}
    for name, recorded in packages.items():
        now: str | None
        try:
            now = metadata.version(name)
        except metadata.PackageNotFoundError:
            now = None
        if recorded != now:
            found[name] = (recorded, now)
    return found


def packages(run: PastRun) -> dict[str, str | None]:
    """The versions that a run recorded."""
    found = run.environment.get("packages")
    return found if isinstance(found, dict) else {}


def about(run: PastRun) -> dict[str, Any]:
    """What `show --json` prints."""
    now = state(run)
    return {
        "folder": str(run.folder),
        "recipe": run.recipe,
        "description": run.values.get("description") or None,
        "command": run.environment.get("command"),
        "started": run.environment.get("started"),
        "machine": run.environment.get("machine"),
        "state": {"ended": now.ended, "stage": now.stage, "reason": now.reason},
        "packages": packages(run),
        "packages_that_differ": {
            name: {"recorded": before, "installed": after}
            for name, (before, after) in installed(packages(run)).items()
        },
        "stages": run.records,
        "removed": removed(run),
        "files": {name: str(run.folder / name) for name in _files(run.folder)},
    }


def removed(run: PastRun) -> list[str]:
    """The stages whose artifacts are in the store no more."""
    return [record["name"] for record in run.records if run.artifact(record) is None]


def _files(folder: Path) -> list[str]:
    """What there is to open; a link whose target has been removed is not."""
    return [name for name in FILES if (folder / name).exists()]


def print_run(run: PastRun, console: Console, *, scores: bool = False) -> None:
    """Everything of a run, for a person. Raises RecipeError where a record cannot be shown."""
    _print_about(run, console)
    _print_stages(run, console)
    print_measured(run, console, scores=scores)
    if gone := removed(run):
        console.say(f"no longer in the store: {', '.join(gone)}")
    for name in _files(run.folder):
        console.say(f"{name}: {run.folder / name}")


def print_measured(run: PastRun, console: Console, *, scores: bool = False) -> None:
    """The tables of what a run measured. Raises RecipeError where a record cannot be shown."""
    from compressor.reports.tables import print_results, print_scores

    try:
        if run.records:
            print_results(run.records, console)
        if scores:
            print_scores(run.records, console)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        # A stage's metrics are its own: one of another version may have left others.
        what = f"{type(error).__name__}: {error}"
        raise RecipeError(f"{run.folder / METRICS}: its metrics cannot be shown: {what}") from error


def _print_about(run: PastRun, console: Console) -> None:
    environment = run.environment
    machine = environment.get("machine")
    machine = machine if isinstance(machine, dict) else {}  # another version's, or damaged
    command = environment.get("command")
    command = command if isinstance(command, list) else ()
    facts = {
        "run": str(run.folder),
        "recipe": run.recipe,
        "what": " ".join(str(run.values.get("description") or "").split()),
        "command": shlex.join(map(str, command)).replace("__main__.py", "compressor", 1),
        "started": f"{run.started:%Y-%m-%d %H:%M:%S}" if environment.get("started") else "",
        "machine": ", ".join(
            str(machine[key]) for key in ("system", "processor", "device") if machine.get(key)
        )
        + (f", {machine['threads']} threads" if machine.get("threads") else ""),
        "state": str(state(run)),
        "versions": versions_line(run),
    }
    for name, text in facts.items():
        if text:
            console.say(f"{name:<9} {text}")


def versions_line(run: PastRun) -> str:
    """The versions that are not those installed now, in a line."""
    recorded = packages(run)
    if not recorded:
        return "not recorded"
    differ = [
        f"{name} {before or 'none'} (now {after or 'none'})"
        for name, (before, after) in installed(recorded).items()
    ]
    return "; ".join(differ) or "as installed now"


def _print_stages(run: PastRun, console: Console) -> None:
    from compressor.reports.tables import NAME_WIDTH, Column, print_columns

    if not run.records:
        return
    rows = run.records

    def written(key: str, form: str, scale: float = 1.0) -> list[str]:
        return ["" if r[key] is None else form.format(r[key] / scale) for r in rows]

    columns = [
        Column("", ["cached" if r["cached"] else "run" for r in rows], "left"),
        Column("seconds", [f"{r['seconds']:.1f}" for r in rows]),
        Column("parameters", written("parameters", "{:.2f} M", 1e6)),
        Column("non-zero", written("nonzero_ratio", "{:.4f}")),
        Column("MB", written("bytes", "{:.2f}", 1e6)),
        Column("metrics", [line(record) for record in rows], "left"),
    ]
    print_columns(Column("stage", [r["name"] for r in rows], "left", NAME_WIDTH), columns, console)


def line(record: Record) -> str:
    """What a stage measured, in a line; the run's tables and `--json` have all of it."""
    metrics = record["metrics"]
    found = [f"{key} {_short(metrics[key])}" for key in _TOLD if metrics.get(key) is not None]
    return "  ".join(found[:_MOST])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _point_values(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """The recipe of the first point that has begun."""
    for name in names:
        if (folder / name / RECIPE).is_file():
            return PastRun.read(folder / name).values
    return {}


def _paths(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
