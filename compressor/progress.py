"""What a person sees while a run works, and the same as lines of `events.jsonl`.

On a terminal: a line for each stage, bars for the one that runs. Otherwise plain lines, few.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

RECORD = "\x1e"
"""Begins an event among the lines that a process of ours prints (RFC 7464)."""
Watch = Callable[[str, Mapping[str, Any]], None]
"""Hears the kind and the values of each event. It may raise `Stopped`, which ends the run."""


class Progress:
    """Tells a person, `events.jsonl` and `watch` what happens. `quiet` says nothing to the person.

    A run that `watch` ends by raising `Stopped` was not worth going on with.
    """

    def __init__(
        self,
        console: Console,
        events: Path | None = None,
        *,
        quiet: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.console, self.events, self.quiet, self.watch = console, events, quiet, watch

    def event(self, kind: str, **values: Any) -> None:
        """Append one event. A line is written whole, so that a reader can follow the file."""
        if self.events is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
            with self.events.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        if self.watch is not None:
            self.watch(kind, values)

    def relay(self, line: str) -> None:
        """Take a line that a process of ours printed: an event, or a line for the person."""
        text, mark, record = line.rstrip("\n").partition(RECORD)
        if text or not mark:
            self.say(text)
        if mark:
            values = json.loads(record)
            self.event(values.pop("event"), **values)

    def say(self, text: str, style: str = "") -> None:
        """A line for the person."""
        if not self.quiet:
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar from `done` to `total`; `Bar.advance(1, loss="2.31")` moves it."""
        if self.quiet or not self.console.is_terminal:
            yield Bar(self, title, total, done, None)
            return
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=self.console, transient=True) as bars:
            yield Bar(self, title, total, done, bars)


def print_event(kind: str, values: Mapping[str, Any]) -> None:
    """The `watch` of a process whose parent reads what it prints: see `Progress.relay`."""
    print(RECORD + json.dumps({"event": kind, **values}), flush=True)


class Bar:
    """One piece of work whose size is known."""

    LINE_SECONDS = 15.0
    """Without a terminal: the least time between two lines."""

    def __init__(self, progress: Progress, title: str, total: int, done: int, bars: Bars | None):
        self.progress, self.title, self.total, self.done, self.bars = (
            progress,
            title,
            total,
            done,
            bars,
        )
        self._last_line = self._started = time.monotonic()
        self._start = done
        if bars is not None:
            self._task = bars.add_task(title, total=total, completed=done, notes="")

    def advance(self, steps: int = 1, **notes: str) -> None:
        """Move by `steps`, and show `notes` (such as loss and samples/s) beside the bar."""
        self.done += steps
        text = "  ".join(f"{name} {value}" for name, value in notes.items())
        if self.bars is not None:
            self.bars.update(self._task, completed=self.done, notes=text)
            return
        now = time.monotonic()
        if now - self._last_line >= self.LINE_SECONDS:
            self._last_line = now
            pace = (now - self._started) / max(1, self.done - self._start)
            left = f"{pace * (self.total - self.done):.0f} s left"
            self.progress.say(f"  {self.title} {self.done}/{self.total}  {text}  {left}")
