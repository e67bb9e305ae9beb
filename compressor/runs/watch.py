"""Follows a run from another terminal, by the events that it writes. Nothing here changes a run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.display import display
from compressor.core.errors import RecipeError
from compressor.core.processes import is_running
from compressor.core.progress import parsed_event
from compressor.engine.past_run import PastRun
from compressor.reports.show import print_measured

EVENTS = "events.jsonl"
POLL_SECONDS = 0.3


def watch(folder: Path, console: Console) -> bool:
    """Show a run as its own terminal does, until it has ended. Whether it ended well.

    Raises RecipeError where `folder` is no run's.
    """
    if not (folder / EVENTS).is_file():
        raise RecipeError(_no_run(folder))
    shown = display(console)
    last: Mapping[str, Any] = {}
    strange = 0
    try:
        for event in _events(folder / EVENTS):
            last = event
            values = {key: value for key, value in event.items() if key not in ("time", "event")}
            try:
                shown.hear(event["event"], values, event["time"])
            except (KeyError, TypeError, ValueError, AttributeError):
                strange += 1
    finally:
        shown.close()
    if strange:
        text = (
            f"{strange} lines of {folder / EVENTS} cannot be shown: damaged, or of another version"
        )
        console.say(text)
    if last.get("event") != "run_ended":
        console.print("the run's process has ended, or was killed: the same command goes on")
        return False
    if last.get("state") == "done":
        print_measured(PastRun.read(folder), console)
        return True
    reason = f": {last['error']}" if last.get("error") else ""
    console.say(f"{last.get('state')}{reason}")
    return False


def _no_run(folder: Path) -> str:
    if (folder / "sweep.html").is_file():
        return f"{folder} is a sweep's: open its sweep.html, or name the folder of a point"
    return f"{folder} is no run's directory: it has no {EVENTS}"


def _events(path: Path) -> Iterator[Mapping[str, Any]]:
    """The events of a run as they come, until the last or until its process is gone."""
    process: Mapping[str, Any] | None = None
    with path.open("rb") as stream:
        rest = b""
        while True:
            gone = process is None or not is_running(process)  # before the file is read: nothing
            # comes after that
            *lines, rest = (rest + stream.read()).split(b"\n")
            for event in filter(None, map(parsed_event, lines)):
                if event["event"] == "run_started":
                    process = event.get("process")
                    gone = False
                yield event
                if event["event"] == "run_ended":
                    process = None
            if gone:
                return
            time.sleep(POLL_SECONDS)
