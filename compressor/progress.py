"""What a person sees while a run works, and the same as lines of `events.jsonl`.

On a terminal: a line for each stage, bars for the one that runs. Otherwise plain lines, few.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
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


class Progress:
    """Tells a person and `events.jsonl` what happens. `quiet` says nothing to the person."""

    def __init__(self, console: Console, events: Path | None = None, *, quiet: bool = False):
        self.console, self.events, self.quiet = console, events, quiet

    def event(self, kind: str, **values: Any) -> None:
        """Append one event. A line is written whole, so that a reader can follow the file."""
        if self.events is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind, **values})
            with self.events.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

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
