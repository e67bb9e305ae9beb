"""What a request to end does to a command that works. What it leaves is told elsewhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

REPEAT_SECONDS = 5.0
"""A second request to end within this time asks for nothing new."""


@contextmanager
def ended_as_by_hand() -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Inside, a request to end (SIGTERM, as of `kill` or SLURM; SIGHUP, of a terminal that closes)
    ends this process as Ctrl-C does: workers are ended, and the terminal is left as it was.

    One that follows at once, or follows Ctrl-C, is the same request: of a terminal that closes the
    system tells, and the shell again. It must not cut short what the first one began.

    Gives a `watch` for a run, which asks again at each event that follows: a library whose bare
    `except` caught what the request raised must not have the run go on.
    """
    asked = -REPEAT_SECONDS

    def end_by_hand(number: int, frame: object) -> None:
        nonlocal asked
        asked = time.monotonic()
        raise KeyboardInterrupt

    def end(number: int, frame: object) -> None:
        nonlocal asked
        before, asked = asked, time.monotonic()
        if asked - before >= REPEAT_SECONDS:
            raise KeyboardInterrupt

    def ask_again(kind: str, values: Mapping[str, Any]) -> None:
        del values
        if asked >= 0 and kind != "run_ended":
            raise KeyboardInterrupt

    usual = sys.unraisablehook

    def unless_asked(ignored: Any) -> None:
        # A finalizer that meets it ends nothing: it is asked again, and Python need not tell of it.
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            usual(ignored)

    is_main = threading.current_thread() is threading.main_thread()  # no other can be told
    signals = [signal.SIGTERM, signal.SIGHUP] if is_main else []
    ours = [each for each in signals if signal.getsignal(each) == signal.SIG_DFL]  # not nohup's
    by_hand = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for each in ours:
        signal.signal(each, end)
    if by_hand:
        signal.signal(signal.SIGINT, end_by_hand)
    sys.unraisablehook = unless_asked
    try:
        yield ask_again
    finally:
        sys.unraisablehook = usual
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        if by_hand:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def heard_at_the_end() -> Iterator[None]:
    """Inside, which takes a moment and would be missed, a request to end waits until it is over.

    It is then heard, unless the work has failed meanwhile, which ends the process anyway. A second
    request does not wait.
    """
    waits: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = {
        number: heard
        for number in ((signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main else ())
        if callable(heard := signal.getsignal(number))
    }

    def note(number: int, frame: FrameType | None) -> None:
        if waits:
            before[signal.Signals(number)](number, frame)
        waits.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, heard in before.items():
            signal.signal(number, heard)
    if waits:
        os.kill(os.getpid(), waits[0])
