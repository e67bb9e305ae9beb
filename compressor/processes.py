"""Processes of this package: what one finds around it, and whether one is still there."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

PARENT = "COMPRESSOR_PARENT"
"""The variable that tells a process of ours which one it works for."""
PARENT_POLL_SECONDS = 0.2


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of this process, in which `python -m compressor.…` is this very package.

    Nothing of the current folder is imported there. `threads`: how many it computes with.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own = {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    own[PARENT] = str(os.getpid())
    return {**os.environ, **own, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def end_with_parent() -> None:
    """End this process with the one that it works for, as `environment` of that one says."""
    end_with(int(os.environ[PARENT]))


def end_with(parent: int) -> None:
    """End this process when `parent` ends, however that ends; or the launcher between them, which
    would have seen to it that no process of several goes on without another.
    """
    launcher, name = os.getppid(), f"end with {parent}"
    if any(thread.name == name for thread in threading.enumerate()):
        return
    if launcher != parent and psutil.Process(launcher).ppid() != parent:  # it has ended already
        os._exit(1)

    def watch() -> None:
        while _runs(parent) and os.getppid() == launcher:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


def _runs(process: int) -> bool:
    """Whether it has not ended; what has ended and was not waited for is a zombie."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    if not Path("/proc/self").exists():  # another system than Linux
        return True
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def described() -> dict[str, Any]:
    """How others find the process that asks: `host`, its `id` there, and when it was `created`."""
    process = psutil.Process()
    return {"host": platform.node(), "id": process.pid, "created": process.create_time()}


def is_there(process: Mapping[str, Any]) -> bool:
    """Whether a process that was `described` runs; of another host's, which nobody knows, True."""
    if process["host"] != platform.node():
        return True
    try:
        found = psutil.Process(process["id"])
        if found.status() == psutil.STATUS_ZOMBIE:  # it has ended, and its parent has not looked
            return False
        created = found.create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(created - float(process["created"])) < 1.0
