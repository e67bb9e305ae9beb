"""Follow a run from another terminal by the events that it writes. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.display import make_display
from compressor.core.errors import RecipeError
from compressor.core.processes import is_running
from compressor.core.progress import parse_event
from compressor.engine.past_run import EVENTS, RunRecord
from compressor.reports.show import print_metrics

POLL_SECONDS = 0.3


def watch(folder: Path, console: Console) -> bool:
    """Show a run as its own terminal does until it has ended; return whether it ended well.

    Raises RecipeError where `folder` is no run's.
    """
    if (folder / "sweep.html").is_file():
        raise RecipeError(f"{folder} is a sweep's: open its sweep.html, or name a point's folder")
    if not (folder / EVENTS).is_file():
        raise RecipeError(f"{folder} is no run's directory: it has no {EVENTS}")
    display, unreadable = make_display(console), 0
    last: Mapping[str, Any] = {}
    try:
        for event in _follow_events(folder / EVENTS):
            last = event
            values = {key: value for key, value in event.items() if key not in ("time", "event")}
            try:
                display.show(event["event"], values, event["time"])
            except (KeyError, TypeError, ValueError, AttributeError):
                unreadable += 1
    finally:
        display.close()
    if unreadable:
        text = f"{unreadable} lines of {folder / EVENTS} cannot be shown"
        console.say(f"{text}: damaged, or of another version")
    if last.get("event") != "run_ended":
        console.print("the run's process has ended, or was killed: the same command goes on")
        return False
    if last.get("state") == "done":
        print_metrics(RunRecord.read(folder), console)
        return True
    reason = f": {last['error']}" if last.get("error") else ""
    console.say(f"{last.get('state')}{reason}")
    return False


def _follow_events(path: Path) -> Iterator[Mapping[str, Any]]:
    """Read the events of a run as they come, until the last or until its process is gone."""
    process: Mapping[str, Any] | None = None
    with path.open("rb") as stream:
        rest = b""
        while True:
            # Looked up before the file is read: of a process that is gone, nothing comes after.
            gone = process is None or not is_running(process)
            *lines, rest = (rest + stream.read()).split(b"\n")
            for event in filter(None, map(parse_event, lines)):
                if event["event"] == "run_started":
                    process = event.get("process")
                    gone = False
                yield event
                if event["event"] == "run_ended":
                    process = None
            if gone:
                return
            time.sleep(POLL_SECONDS)
