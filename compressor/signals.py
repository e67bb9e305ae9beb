"""What a request to end does to a command that works. What it leaves is told elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

REPEAT_SECONDS = 5.0
"""A second request to end within this time asks for nothing new."""


@contextmanager
def ended_as_by_hand() -> Iterator[None]:
    """Inside, a request to end (SIGTERM, as of `kill` or SLURM; SIGHUP, of a terminal that closes)
    ends this process as Ctrl-C does: workers are ended, and the terminal is left as it was.

    One that follows at once, or follows Ctrl-C, is the same request: of a terminal that closes the
    system tells, and the shell again. It must not cut short what the first one began.
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

    is_main = threading.current_thread() is threading.main_thread()  # no other can be told
    signals = [signal.SIGTERM, signal.SIGHUP] if is_main else []
    ours = [each for each in signals if signal.getsignal(each) == signal.SIG_DFL]  # not nohup's
    by_hand = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for each in ours:
        signal.signal(each, end)
    if by_hand:
        signal.signal(signal.SIGINT, end_by_hand)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        if by_hand:
            signal.signal(signal.SIGINT, signal.default_int_handler)
