"""Fork the processes that a forked command starts, too: its workers, launchers, and what times.

Each must be the command's own child, but come of a process without threads. So a command begins by
forking a helper. Asked for a process, that forks another, which forks the process and ends: Linux
then gives the orphan to the nearest process above it that adopts orphans, the command.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from tests.harness.server import Request

Become = Callable[["Request", Sequence[int], socket.socket], NoReturn]
_PR_SET_CHILD_SUBREAPER = 36
_START = subprocess._fork_exec


def adopt_orphans() -> None:
    """Make this process the parent of those below it whose own one ends."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def fork_own_processes(become: Become) -> None:
    """From here on, have `subprocess` fork `python -m compressor.…` in place of starting it."""
    command = os.getpid()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    adopt_orphans()
    if os.fork() == 0:
        ours.close()
        os.chdir("/")  # it is none of the processes that work in the command's folder
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        _help(theirs, command, become)
        os._exit(0)
    theirs.close()
    lock = threading.Lock()

    def start(*given: Any) -> int:
        request = _read(given)
        if request is None:
            return _START(*given)
        ends = (given[6], given[9], given[11])
        streams = [number if end == -1 else end for number, end in enumerate(ends)]
        with lock:
            socket.send_fds(ours, [pickle.dumps(request)], streams)
            return int(ours.recv(16))

    subprocess._fork_exec = start


def _help(requests: socket.socket, command: int, become: Become) -> None:
    while True:
        message, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                become(pickle.loads(message), descriptors, requests)
            os._exit(0)
        os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)


def _read(given: Sequence[Any]) -> Request | None:
    """Read what `subprocess` asks CPython for; None where it is no plain module of ours."""
    from tests.harness.server import Request, imports_differ

    words, _, _, kept, cwd, variables = given[:6]
    words = [os.fsdecode(word) for word in words]
    at = words.index("-m") + 1 if "-m" in words else len(words)
    if words[0] != sys.executable or not words[at:] or not words[at].startswith("compressor."):
        return None
    environment = dict(os.environ)
    if variables is not None:
        pairs = (os.fsdecode(item).partition("=") for item in variables)
        environment = {name: value for name, _, value in pairs}
    # Where this package lies is said of what is imported by now.
    ours = {name: os.environ.get(name, "") for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if imports_differ(environment | ours, os.environ | ours) or len(kept) != 1 or cwd is not None:
        return None
    return Request(
        words[at],
        tuple(words[at + 1 :]),
        str(Path.cwd()),
        environment,
        has_session=bool(given[15]),
        is_unbuffered="-u" in words[:at],
        parent=os.getpid(),
    )
