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


def described(number: int | None = None) -> dict[str, Any]:
    """How others find the process that asks, or another: `host`, `id`, when it was `created`.

    Where the system tells it, `since_boot` too: seconds that no change of the clock moves.
    """
    process = psutil.Process(number)
    about = {"host": platform.node(), "id": process.pid, "created": process.create_time()}
    since_boot = _since_boot(process.pid)
    return about if since_boot is None else about | {"boot": _boot(), "since_boot": since_boot}


def is_there(process: Mapping[str, Any]) -> bool:
    """Whether a process that was `described` runs; of another host's, which nobody knows, True.

    A description that is damaged is of no process.
    """
    try:
        return process["host"] != platform.node() or _runs_here(process)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _runs_here(process: Mapping[str, Any]) -> bool:
    try:
        found = psutil.Process(process["id"])
        if found.status() == psutil.STATUS_ZOMBIE:  # it has ended, and its parent has not looked
            return False
        created, since_boot = found.create_time(), _since_boot(found.pid)
    except psutil.NoSuchProcess:
        return False
    if since_boot is not None and "since_boot" in process:
        same_boot = process["boot"] == _boot()
        return bool(same_boot and abs(since_boot - float(process["since_boot"])) < 1.0)
    return abs(created - float(process["created"])) < 1.0


def _since_boot(process: int) -> float | None:
    """When a process began, in seconds after the system did; None where there is no Linux.

    `psutil` adds the time of the boot, which moves with the clock.
    """
    try:
        after_name = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2]
        return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str:
    """What tells one start of the system from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
