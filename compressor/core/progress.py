"""Report what happens in a run, as events: to `events.jsonl`, to a person, to whoever watches.

An event is a kind and values that JSON can hold:

- `run_started`: `recipe`; `stages`, each with `name`, `stage` (its kind) and `seconds` (what it is
  expected to take, or null); `process`: `host`, `id` and `created` (when it began)
- `stage_started`: `name`, `key`
- `progress`: `title`, `done`, `total`, `notes` (such as loss and rows/s); `ended` in the last one
- `epoch`: `epoch`, `validation_loss`; `resumed`: `validation_losses`
- `said`: `text`, a line for the person
- `stage_ended`: `name`, `cached`, `seconds`, `parameters`, `nonzero_ratio`, `metrics` (few) and,
  where it trained, `validation_losses`
- `stage_failed`: `name`, `error`
- `run_ended`: `state` (`done`, `failed`, `stopped` early by a search, or `interrupted`), `error`

How a person sees them is `compressor.core.display`'s.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from compressor.core.console import Console
from compressor.core.display import make_display
from compressor.core.failures import explain_error
from compressor.core.printing import print_warning
from compressor.core.redaction import redact_text

RECORD = "\x1e"
"""Begins an event among the lines that a process of ours prints (RFC 7464)."""
Watch = Callable[[str, Mapping[str, Any]], None]
"""Gets the kind and the values of each event. It may raise `EarlyStop`, which ends the run."""
MOVES_SECONDS = 0.5
"""The least time between two `progress` events of one bar."""
WRITTEN_SHARE = 1 / 200
"""Of the time that a bar has taken, the least between two of its events in the file: a day of
training leaves some 2,000 lines."""


class Progress:
    """Reports to a person (unless `quiet`), to `events.jsonl` and to `watch`. Used as a context, it
    leaves a terminal as it was.
    """

    def __init__(
        self,
        console: Console,
        events: Path | None = None,
        *,
        quiet: bool = False,
        watch: Watch | None = None,
    ) -> None:
        self.events, self.watch = events, watch
        self._display = None if quiet else make_display(console)
        self._has_warned = False
        self._said: set[str] = set()
        self._moved: dict[str, tuple[float, float]] = {}  # title → when it began, and was written

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            with suppress(OSError, SystemExit):  # of a terminal that is gone nothing is left
                self._display.close()

    def emit(self, kind: str, **values: Any) -> None:
        """Report one event: to the file first, since a terminal that is gone ends a run."""
        now = time.time()
        for name in ("text", "error"):  # of which some are a library's own words
            if isinstance(values.get(name), str):
                values[name] = redact_text(values[name])
        if self.events is not None and self._is_written(kind, values):
            line = json.dumps({"time": round(now, 3), "event": kind, **values})
            self._write(self.events, line)
        if self._display is not None:
            try:
                self._display.show(kind, values, now)
            except SystemExit as error:  # which rich makes of a BrokenPipeError
                raise KeyboardInterrupt from error
        if self.watch is not None:
            self.watch(kind, values)

    def _write(self, events: Path, line: str) -> None:
        """Append a line. Where that fails, say so once and go on: the work may be worth hours."""
        try:
            with events.open("a+b") as stream:
                if stream.tell():  # the half a line that a killed process has left gets an end
                    stream.seek(-1, os.SEEK_END)
                    stream.write(b"" if stream.read() == b"\n" else b"\n")
                stream.write(f"{line}\n".encode())
        except OSError as error:
            if not self._has_warned:
                reason = explain_error(error, events) or str(error)
                print_warning(f"what happens is not recorded: {reason}")
            self._has_warned = True

    def _is_written(self, kind: str, values: Mapping[str, Any]) -> bool:
        """Tell whether the file gets an event: of a long bar's moves it gets fewer and fewer."""
        if kind != "progress":
            return True
        now, title = time.monotonic(), values["title"]
        began, written = self._moved.get(title, (now, -1.0))
        due = written < 0 or values["ended"] or now - written >= (now - began) * WRITTEN_SHARE
        self._moved[title] = (began, now if due else written)
        if values["ended"]:
            del self._moved[title]
        return due

    def relay(self, line: str) -> None:
        """Take a line of a process of ours: an event, or what a library had to say."""
        text, mark, record = line.rstrip("\n").partition(RECORD)
        if text or not mark:
            self.say(text)
        if not mark:
            return
        try:
            values, end = json.JSONDecoder().raw_decode(record)
            kind = values.pop("event")
        except (ValueError, TypeError, AttributeError, KeyError):  # cut in two, say: a text
            self.say(record)
            return
        self.emit(kind, **values)
        if rest := record[end:]:
            self.relay(rest)

    def say(self, text: str) -> None:
        """Report a line for the person."""
        self.emit("said", text=text)

    def say_once(self, text: str) -> None:
        """Report a line for the person, unless it was said before."""
        if text not in self._said:
            self._said.add(text)
            self.say(text)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar from `done` to `total`; `Bar.advance(1, loss="2.31")` moves it."""
        bar = Bar(self, title, total, done)
        bar.emit(ended=False)
        try:
            yield bar
        finally:
            bar.emit(ended=True)


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Parse an event of a file; None for what is none: half a line of a process that was killed."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(event, dict) and {"time", "event"} <= event.keys()
    return event if known else None


def print_event(kind: str, values: Mapping[str, Any]) -> None:
    """Print an event: the `watch` of a process whose parent reads it, by `Progress.relay`."""
    print(RECORD + json.dumps({"event": kind, **values}), flush=True)


class Bar:
    """A piece of work whose size is known."""

    def __init__(self, progress: Progress, title: str, total: int, done: int) -> None:
        self.progress, self.title, self.total, self.done = progress, title, total, done
        self._notes: dict[str, str] = {}
        self._emitted = 0.0

    def advance(self, steps: int = 1, **notes: str) -> None:
        """Move by `steps`, and show `notes` (such as loss and samples/s) beside the bar."""
        self.done += steps
        self._notes = notes
        if time.monotonic() - self._emitted >= MOVES_SECONDS:
            self.emit(ended=False)

    def emit(self, *, ended: bool) -> None:
        """Report where it stands."""
        self._emitted = time.monotonic()
        about = {"done": self.done, "total": self.total, "notes": self._notes, "ended": ended}
        self.progress.emit("progress", title=self.title, **about)
