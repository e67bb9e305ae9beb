"""Processes of this package: what one finds around it, and whether one is still there."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of this process, in which `python -m compressor.…` is this very package.

    Nothing of the current folder is imported there. `threads`: how many it computes with.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own = {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    return {**os.environ, **own, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


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
