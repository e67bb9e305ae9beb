"""Show a run to a person, from its events alone (see `progress`), in its own process or another.

On a terminal a line for each stage that has ended and, below, what is being done; else few lines.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.numbers import format_duration

LINE_SECONDS = 15.0
"""Without a terminal: the least time between two lines of a bar."""
NAME_WIDTH = 22
METRICS = (
    *("validation_loss", "baseline_loss", "rougeLsum", "sacrebleu", "chrf", "ter", "exact_match"),
    *("micro_f1", "entity_f1", "perplexity", "latency_p50_ms"),
)
"""What the line of a stage says of its metrics."""


def make_display(console: Console) -> Log | Screen:
    """Make the display that suits where the console writes to."""
    return Screen(console) if console.is_terminal else Log(console)


@dataclass
class BarState:
    """A bar: where it is, and where it was at its first event."""

    done: int
    total: int
    notes: Mapping[str, str]
    began: float
    began_at: int

    def describe(self, now: float) -> str:
        """Write its notes, and the time that is left at its pace so far."""
        notes = "  ".join(f"{name} {value}" for name, value in self.notes.items())
        moved, passed = self.done - self.began_at, now - self.began
        if moved <= 0 or passed < 0:  # a clock that was set back says nothing
            return notes
        return f"{notes}  {format_duration(passed / moved * (self.total - self.done))} left"


@dataclass
class RunState:
    """The progress of a run, by the events so far."""

    recipe: str = ""
    stages: dict[str, float | None] = field(default_factory=dict)
    """Name → the seconds that it is expected to take."""
    started: float | None = None
    ended: set[str] = field(default_factory=set)
    stage: str | None = None
    """The one that runs."""
    stage_started: float = 0.0
    bars: dict[str, BarState] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    """Validation losses of the stage that runs."""

    def update(self, kind: str, values: Mapping[str, Any], now: float) -> list[Text]:
        """Take an event; return the lines that it leaves for good."""
        if kind == "run_started":
            self._restart(values, now)
        elif kind == "stage_started":
            self._end_stage()
            self.stage, self.stage_started, self.losses = values["name"], now, []
        elif kind == "progress":
            self._move_bar(values, now)
        elif kind == "epoch":
            self.losses.append(values["validation_loss"])
        elif kind == "resumed":
            self.losses = list(values["validation_losses"])
        elif kind == "said":
            return [Text(values["text"])]
        elif kind == "stage_ended":
            self._end_stage(values["name"])
            return [_describe_stage(values)]
        elif kind == "stage_failed":
            self._end_stage()
            return [Text(f"{values['name']:<{NAME_WIDTH}} {'failed':>9}", "red")]
        elif kind == "run_ended":
            self._end_stage()
        return []

    def _restart(self, values: Mapping[str, Any], now: float) -> None:
        """Start a run, which in the folder of a sweep's point may be the second one."""
        self.recipe, self.started = values["recipe"], now
        self.stages = {stage["name"]: stage["seconds"] for stage in values["stages"]}
        self.ended.clear()
        self._end_stage()

    def _end_stage(self, name: str | None = None) -> None:
        self.stage = None
        self.bars.clear()
        if name is not None:
            self.ended.add(name)

    def _move_bar(self, values: Mapping[str, Any], now: float) -> None:
        if values["ended"]:
            self.bars.pop(values["title"], None)
            return
        done, total = values["done"], values["total"]
        bar = self.bars.setdefault(values["title"], BarState(done, total, {}, now, done))
        bar.done, bar.total, bar.notes = done, total, values["notes"]

    @property
    def waiting(self) -> list[str]:
        """The stages that come after the one that runs."""
        return [name for name in self.stages if name not in self.ended and name != self.stage]


def _describe_stage(values: Mapping[str, Any]) -> Text:
    time_text = "cached" if values["cached"] else f"{values['seconds']:.1f} s"
    facts = ""
    if values.get("parameters") is not None:
        facts = f"{values['parameters'] / 1e6:7.2f} M  non-zero {values['nonzero_ratio']:.4f}"
    metrics = values.get("metrics", {})
    facts += "".join(f"  {name} {metrics[name]:.4g}" for name in METRICS if name in metrics)
    style = "dim" if values["cached"] else ""
    return Text(f"{values['name']:<{NAME_WIDTH}} {time_text:>9}  {facts}", style)


class Log:
    """Plain lines: for files, pipes, and whoever has no terminal."""

    def __init__(self, console: Console) -> None:
        self.console, self.state = console, RunState()
        self._printed: dict[str, float] = {}  # title of a bar → when its last line was printed

    def show(self, kind: str, values: Mapping[str, Any], now: float) -> None:
        """Show an event of time `now`, seconds of the epoch."""
        for line in self.state.update(kind, values, now):
            self.console.say(line)
        if kind == "progress":
            self._print_bar(values["title"], now)

    def _print_bar(self, title: str, now: float) -> None:
        bar = self.state.bars.get(title)
        if bar is None:
            self._printed.pop(title, None)
        elif now - self._printed.setdefault(title, now) >= LINE_SECONDS:
            self._printed[title] = now
            self.console.say(f"  {title} {bar.done}/{bar.total}  {bar.describe(now)}")

    def close(self) -> None:
        """Nothing is left open."""


class Screen:
    """Lines that stay, and below them what is being done, drawn four times a second."""

    def __init__(self, console: Console) -> None:
        self.console, self.state = console, RunState()
        self._lock = Lock()  # a thread of Live's draws what events change meanwhile
        self._live: Live | None = None

    def show(self, kind: str, values: Mapping[str, Any], now: float) -> None:
        with self._lock:
            lines = self.state.update(kind, values, now)
        if kind == "run_started" and self._live is None:
            self._live = Live(
                get_renderable=self._draw,  # anew each time: times go on between events
                console=self.console,
                transient=True,
                refresh_per_second=4,
                redirect_stderr=sys.stderr.isatty(),  # else it is a file's: `2> errors.txt`
            )
            self._live.start()
        for line in lines:
            self.console.say(line)
        if kind == "run_ended":
            self.close()

    def _draw(self) -> Group:
        with self._lock:
            return Group(*draw(self.state, time.time()))

    def close(self) -> None:
        """Take away what is drawn below the lines, and show the cursor again."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def draw(state: RunState, now: float) -> Iterator[RenderableType]:
    """Draw a bar of all stages; below it the one that runs, with its own, and what comes after."""
    if state.stages and state.started is not None:
        passed = f"{format_duration(max(0.0, now - state.started))}{_describe_rest(state, now)}"
        done, total = len(state.ended), len(state.stages)
        yield _draw_bar(state.recipe, done, total, f"stages, {passed}")
    if state.stage is not None:
        yield from _draw_stage(state, state.stage, now)
    if state.waiting:
        yield _draw_line(f"then {', '.join(state.waiting)}", "dim")


def _draw_stage(state: RunState, stage: str, now: float) -> Iterator[RenderableType]:
    passed, expected = format_duration(max(0.0, now - state.stage_started)), state.stages.get(stage)
    before = "" if expected is None else f", {format_duration(expected)} before"
    yield _draw_line(f"{stage:<{NAME_WIDTH}} {passed:>9}{before}", "cyan")
    for title, bar in state.bars.items():
        yield _draw_bar(f"  {title}", bar.done, bar.total, bar.describe(now))
    if state.losses:
        losses = "  ".join(f"{loss:.4g}" for loss in state.losses[-6:])
        cut = "… " if len(state.losses) > 6 else ""
        yield _draw_line(f"  validation loss after each epoch: {cut}{losses}", "dim")


def _draw_line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _describe_rest(state: RunState, now: float) -> str:
    """Write the time that is left, where every stage's is known; none is shorter for a late one."""
    names = [name for name in state.stages if name not in state.ended]
    known = {name: s for name in names if (s := state.stages[name]) is not None}
    if not names or len(known) < len(names):
        return ""
    if state.stage in known:
        known[state.stage] = max(0.0, known[state.stage] - (now - state.stage_started))
    return f", about {format_duration(sum(known.values()))} left"


def _draw_bar(title: str, done: int, total: int, notes: str) -> Table:
    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True, min_width=12)
    row.add_column(width=24)
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=max(1, total), completed=done, width=24)
    row.add_row(Text(title), bar, f"{done}/{total}", Text(notes))
    return row
