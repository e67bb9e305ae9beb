"""What a person sees of a run, made from its events."""

from __future__ import annotations

import io
import re
import sys
import threading
from typing import Any

import pytest
from rich.console import Group
from rich.text import Text

from compressor.core.console import Console
from compressor.core.display import BarState, Log, RunState, Screen, draw
from compressor.core.printing import escape_controls

STAGES = [
    {"name": "load", "stage": "load", "seconds": 2.0},
    {"name": "base", "stage": "finetune", "seconds": 90.0},
    {"name": "evaluate", "stage": "evaluate", "seconds": 30.0},
]
LOADED = {"name": "load", "cached": True, "seconds": 0.01, "parameters": 1_510_000}
LOADED |= {"nonzero_ratio": 1.0, "metrics": {}}


def move(done: int, *, ended: bool = False) -> dict[str, Any]:
    return {"title": "train", "done": done, "total": 100, "notes": {"loss": "2.3"}, "ended": ended}


def drawn(state: RunState, now: float, width: int = 80) -> list[str]:
    """Draw what is below the lines, as plain text."""
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(Group(*draw(state, now)))
    return captured.get().splitlines()


def make_state() -> RunState:
    state = RunState()
    state.update("run_started", {"recipe": "demo", "stages": STAGES}, 1000.0)
    state.update("stage_started", {"name": "load"}, 1000.0)
    state.update("stage_ended", LOADED, 1001.0)
    state.update("stage_started", {"name": "base"}, 1001.0)
    return state


def test_below_are_the_stage_that_runs_its_bars_and_what_is_left() -> None:
    """After 20 s of a stage that took 90 before, with 30 after it, 100 are left."""
    state = make_state()
    state.update("progress", move(10), 1001.0)
    state.update("progress", move(30), 1021.0)
    state.update("epoch", {"epoch": 1, "validation_loss": 2.25}, 1021.0)
    whole, running, bar, losses, then = drawn(state, 1021.0)
    assert running == "base                      20.0 s, 1 min 30 s before"
    assert bar.startswith("  train ") and "30/100 loss 2.3  1 min 10 s left" in bar
    assert losses == "  validation loss after each epoch: 2.25"
    assert then == "then evaluate"
    assert whole.startswith("demo ") and whole.endswith(
        " 1/3 stages, 21.0 s, about 1 min 40 s left"
    )


def test_the_time_left_counts_what_is_known_and_no_stage_as_shorter_than_before() -> None:
    """Where one stage never ran before, the rest has no known time. A point of a sweep that was
    killed begins anew in its folder, and a bar after a clock that was set back has no time left.
    """
    assert drawn(make_state(), 1121.0)[0].endswith(" 1/3 stages, 2 min 01 s, about 30.0 s left")
    state = make_state()
    state.update("run_started", {"recipe": "demo", "stages": STAGES[:1]}, 2000.0)
    whole, then = drawn(state, 2003.0)
    assert whole.endswith(" 0/1 stages, 3.0 s, about 2.0 s left") and then == "then load"
    stages = [STAGES[0], STAGES[1] | {"seconds": None}]
    state.update("run_started", {"recipe": "demo", "stages": stages}, 0.0)
    whole, then = drawn(state, 5.0)
    assert whole.split() == ["demo", "0/2", "stages,", "5.0", "s"] and then == "then load, base"
    assert BarState(5, 10, {}, began=1e10, began_at=0).describe(20.0) == ""
    assert BarState(5, 10, {}, began=0.0, began_at=0).describe(20.0).strip() == "20.0 s left"


def test_a_bar_is_gone_with_its_end_and_with_its_stage() -> None:
    """Neither an ended bar nor that of a stage which failed in the middle stays."""
    state = make_state()
    state.update("progress", move(10), 1001.0)
    state.update("progress", move(100, ended=True), 1002.0)
    assert not state.bars
    state.update("progress", move(10), 1003.0)
    state.update("stage_failed", {"name": "base", "error": "no"}, 1004.0)
    assert not state.bars and state.stage is None


def test_lines_are_never_wider_than_the_terminal_and_markup_is_text() -> None:
    """Long names are cut: the drawing moves up line by line. Square brackets mean nothing."""
    state = make_state()
    state.update("progress", move(10), 1001.0)
    state.stages["evaluate_" + "x" * 200] = None
    for width in (20, 40, 80):
        assert max(map(len, drawn(state, 1002.0, width))) <= width
    for display in (Log, Screen):
        out = io.StringIO()
        display(Console(file=out, width=80)).show("said", {"text": "[red]5[/red] rows"}, 0.0)
        assert "[red]5[/red] rows" in out.getvalue()


def test_without_a_terminal_a_bar_says_a_line_now_and_then() -> None:
    """In a minute of events, one a second, four lines: one each 15 seconds."""
    out = io.StringIO()
    log = Log(Console(file=out, width=200))
    for second in range(61):
        log.show("progress", move(second), float(second))
    lines = out.getvalue().splitlines()
    assert [re.sub(r"\s+", " ", line) for line in lines] == [
        f" train {done}/100 loss 2.3 {left} left"
        for done, left in ((15, "1 min 25 s"), (30, "1 min 10 s"), (45, "55.0 s"), (60, "40.0 s"))
    ]


def test_what_is_drawn_may_change_meanwhile() -> None:
    """Live draws in a thread of its own: a stage that ends while a bar is drawn waits for that."""
    drawing, go_on = threading.Event(), threading.Event()

    class Slow(dict[str, str]):
        def items(self) -> Any:
            drawing.set()
            assert go_on.wait(10)
            return super().items()

    screen = Screen(Console(file=io.StringIO(), width=80, force_terminal=True))
    screen.show("run_started", {"recipe": "demo", "stages": STAGES}, 0.0)
    screen.show("stage_started", {"name": "base"}, 1.0)
    for title in ("train", "validate"):
        notes = {"notes": Slow(loss="2.3"), "title": title}
        screen.show("progress", move(10) | notes, 2.0)
    assert drawing.wait(10), "four times a second"
    last = ("stage_ended", LOADED | {"name": "base"}, 3.0)
    ended = threading.Thread(target=screen.show, args=last)
    ended.start()
    ended.join(0.2)
    assert len(screen.state.bars) == 2
    go_on.set()
    ended.join(10)
    assert not screen.state.bars
    screen.close()


def test_errors_that_go_to_a_file_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """`compressor run … 2> errors.txt` on a terminal: what a library warns of is in the file."""
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stderr", errors)
    screen = Screen(Console(file=io.StringIO(), force_terminal=True))
    screen.show("run_started", {"recipe": "demo", "stages": []}, 0.0)
    print("careful", file=sys.stderr)
    screen.close()
    assert errors.getvalue() == "careful\n"


ACTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ORDERS = {
    "clears the screen": "\x1b[2J\x1b[1;1H", "sets the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "links elsewhere": "\x1b]8;;https://evil.example\x1b\\all is well\x1b]8;;\x1b\\",
    "writes over what was said": "failed\rdone  ", "8-bit codes": "\x9b2J\x9d52;c;YQ==\x9c",
    "turns the writing": "\u202egnihton\u2066",
}  # fmt: skip


@pytest.mark.parametrize("text", ORDERS.values(), ids=ORDERS)
def test_a_text_gives_a_terminal_no_orders(text: str) -> None:
    """On a terminal in colour, as a rich text and as a plain line; tabs and lines stay."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100, color_system="truecolor")
    console.print(Text(f"a {text} b", "red"))
    console.print(f"a {text} b", highlight=False, markup=False, soft_wrap=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert shown.count("a ") == 2 and not ACTS.search(shown), repr(shown)
    assert "\x1b[31m" in stream.getvalue(), "rich's own colour is no order of the text's"
    assert escape_controls("a\tb\nc é 😀") == "a\tb\nc é 😀"
