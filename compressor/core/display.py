"""What a person sees of a run, made from its events alone: by its own process, or by another's.

On a terminal a line for each stage that has ended and, below, what is being done; elsewhere plain
lines, few. What the events are is told in `compressor.core.progress`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.numbers import duration

LINE_SECONDS = 15.0
"""Without a terminal: the least time between two lines of a bar."""
NAME_WIDTH = 22
METRICS = ("validation_loss", "baseline_loss", "rougeLsum", "micro_f1", "latency_p50_ms")
"""What the line of a stage says of its metrics."""


class Display(Protocol):
    """Shows events to a person."""

    def hear(self, kind: str, values: Mapping[str, Any], now: float) -> None:
        """Take an event of time `now`, seconds of the epoch."""

    def close(self) -> None:
        """Leave the terminal as it was found."""


def display(console: Console) -> Display:
    """The display that suits where the console writes to."""
    return Screen(console) if console.is_terminal else Log(console)


@dataclass
class Moving:
    """A bar: where it is, and where it was when it was first heard of."""

    done: int
    total: int
    notes: Mapping[str, str]
    began: float
    began_at: int

    def left(self, now: float) -> float | None:
        """Seconds to its end at its pace since it was first heard of."""
        moved, passed = self.done - self.began_at, now - self.began
        if moved <= 0 or passed < 0:  # a clock that was set back tells nothing
            return None
        return passed / moved * (self.total - self.done)


@dataclass
class RunState:
    """How far a run is, by the events so far."""

    recipe: str = ""
    stages: dict[str, float | None] = field(default_factory=dict)
    """Name → the seconds that it is expected to take."""
    started: float | None = None
    ended: set[str] = field(default_factory=set)
    stage: str | None = None
    """The one that runs."""
    stage_started: float = 0.0
    bars: dict[str, Moving] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    """Validation losses of the stage that runs."""

    def hear(self, kind: str, values: Mapping[str, Any], now: float) -> list[Text]:
        """Take an event; what it leaves to say for good."""
        if kind == "run_started":
            self._restart(values, now)
        elif kind == "stage_started":
            self._begin(values["name"], now)
        elif kind == "progress":
            self._move(values, now)
        elif kind == "epoch":
            self.losses.append(values["validation_loss"])
        elif kind == "resumed":
            self.losses = list(values["validation_losses"])
        elif kind == "said":
            return [Text(values["text"])]
        elif kind == "stage_ended":
            self._end(values["name"])
            return [_stage_line(values)]
        elif kind == "stage_failed":
            self._end(None)
            return [Text(f"{values['name']:<{NAME_WIDTH}} {'failed':>9}", "red")]
        elif kind == "run_ended":
            self._end(None)
        return []

    def _restart(self, values: Mapping[str, Any], now: float) -> None:
        """A run begins, which in the folder of a sweep's point may be the second one."""
        self.recipe, self.started = values["recipe"], now
        self.stages = {each["name"]: each["seconds"] for each in values["stages"]}
        self.ended.clear()
        self._end(None)

    def _begin(self, name: str, now: float) -> None:
        self.stage, self.stage_started, self.losses = name, now, []
        self.bars.clear()

    def _end(self, name: str | None) -> None:
        self.stage = None
        self.bars.clear()
        if name is not None:
            self.ended.add(name)

    def _move(self, values: Mapping[str, Any], now: float) -> None:
        if values["ended"]:
            self.bars.pop(values["title"], None)
            return
        done, total = values["done"], values["total"]
        bar = self.bars.setdefault(values["title"], Moving(done, total, {}, now, done))
        bar.done, bar.total, bar.notes = done, total, values["notes"]

    @property
    def waiting(self) -> list[str]:
        return [name for name in self.stages if name not in self.ended and name != self.stage]


def _stage_line(values: Mapping[str, Any]) -> Text:
    what = "cached" if values["cached"] else f"{values['seconds']:.1f} s"
    facts = ""
    if values.get("parameters") is not None:
        facts = f"{values['parameters'] / 1e6:7.2f} M  non-zero {values['nonzero_ratio']:.4f}"
    metrics = values.get("metrics", {})
    facts += "".join(f"  {name} {metrics[name]:.4g}" for name in METRICS if name in metrics)
    style = "dim" if values["cached"] else ""
    return Text(f"{values['name']:<{NAME_WIDTH}} {what:>9}  {facts}", style)


class Log:
    """Plain lines: for files, pipes, and whoever has no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.state = console, RunState()
        self._lines: dict[str, float] = {}  # title of a bar → when its last line was said

    def hear(self, kind: str, values: Mapping[str, Any], now: float) -> None:
        for line in self.state.hear(kind, values, now):
            self.console.say(line)
        if kind == "progress":
            self._say_bar(values["title"], now)

    def _say_bar(self, title: str, now: float) -> None:
        bar = self.state.bars.get(title)
        if bar is None:
            self._lines.pop(title, None)
        elif now - self._lines.setdefault(title, now) >= LINE_SECONDS:
            self._lines[title] = now
            left = bar.left(now)
            ahead = "" if left is None else f"  {duration(left)} left"
            self.console.say(Text(f"  {title} {bar.done}/{bar.total}  {_notes(bar.notes)}{ahead}"))

    def close(self) -> None:
        """Nothing is left open."""


def _notes(notes: Mapping[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in notes.items())


class Screen:
    """Lines that stay, and below them what is being done, drawn four times a second."""

    def __init__(self, console: Console) -> None:
        self.console, self.state = console, RunState()
        self._lock = Lock()  # a thread of Live's draws what events change meanwhile
        self._live: Live | None = None

    def hear(self, kind: str, values: Mapping[str, Any], now: float) -> None:
        with self._lock:
            lines = self.state.hear(kind, values, now)
        if kind == "run_started":
            self._open()
        for line in lines:
            self.console.say(line)
        if kind == "run_ended":
            self.close()

    def _open(self) -> None:
        if self._live is None:
            self._live = Live(
                _Below(self.state, self._lock),
                console=self.console,
                transient=True,
                refresh_per_second=4,
                redirect_stderr=sys.stderr.isatty(),  # else it is a file's: `2> errors.txt`
            )
            self._live.start()

    def close(self) -> None:
        """Take away what is drawn below the lines, and show the cursor again."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Below:
    """What is being done. Drawn anew each time, so that times go on between events."""

    def __init__(self, state: RunState, lock: Lock) -> None:
        self.state, self._lock = state, lock

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            shown = below(self.state, time.time())
        yield Group(*shown)


def below(state: RunState, now: float) -> Sequence[RenderableType]:
    """A bar of all stages; in it the one that runs, with its own; and what comes after it."""
    shown: list[RenderableType] = []
    if state.stages and state.started is not None:
        passed = f"{duration(max(0.0, now - state.started))}{_ahead(state, now)}"
        shown.append(_bar(state.recipe, len(state.ended), len(state.stages), f"stages, {passed}"))
    if state.stage is not None:
        shown.append(_running(state, now))
        shown += [_inner(title, bar, now) for title, bar in state.bars.items()]
        if state.losses:
            losses = "  ".join(f"{loss:.4g}" for loss in state.losses[-6:])
            cut = "… " if len(state.losses) > 6 else ""
            shown.append(_line(f"  validation loss after each epoch: {cut}{losses}", "dim"))
    if state.waiting:
        shown.append(_line(f"then {', '.join(state.waiting)}", "dim"))
    return shown


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _running(state: RunState, now: float) -> Text:
    assert state.stage is not None
    passed = duration(max(0.0, now - state.stage_started))
    expected = state.stages.get(state.stage)
    usual = "" if expected is None else f", {duration(expected)} before"
    return _line(f"{state.stage:<{NAME_WIDTH}} {passed:>9}{usual}", "cyan")


def _ahead(state: RunState, now: float) -> str:
    """The time that is left, where every stage's is known from before.

    A stage that takes longer than before makes those after it no shorter.
    """
    names = [*state.waiting, *([state.stage] if state.stage else [])]
    known = {name: s for name in names if (s := state.stages.get(name)) is not None}
    if not names or len(known) < len(names):
        return ""
    if state.stage:
        known[state.stage] = max(0.0, known[state.stage] - (now - state.stage_started))
    return f", about {duration(sum(known.values()))} left"


def _inner(title: str, bar: Moving, now: float) -> Table:
    left = bar.left(now)
    ahead = "" if left is None else f"  {duration(left)} left"
    return _bar(f"  {title}", bar.done, bar.total, f"{_notes(bar.notes)}{ahead}")


def _bar(title: str, done: int, total: int, about: str) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True, min_width=12)
    row.add_column(width=24)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    made = ProgressBar(total=max(1, total), completed=done, width=24)
    row.add_row(Text(title), made, f"{done}/{total}", Text(about))
    return row
