"""Which locks of a store are held, and by whom."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from compressor.doctor.finding import Finding
from compressor.store import Store

_HELD = Path("/proc/locks")
"""Linux's list: `1: FLOCK  ADVISORY  WRITE 4242 fd:01:1234567 0 EOF`, of this machine alone."""


def locks(store: Store) -> Iterator[Finding]:
    """Each held lock with its process, and how many lock files nobody holds."""
    folder = store.folder / "locks"
    files = sorted(folder.glob("*.lock")) if folder.is_dir() else []
    holders, free = _holders(), 0
    for path in files:
        name = path.name.removesuffix(".lock")
        if not store.is_locked_now(name):
            free += 1
            continue
        try:
            process = holders.get(path.stat().st_ino)
        except FileNotFoundError:
            continue
        who = "by a process of another machine, perhaps" if process is None else _told(process)
        yield Finding("locks", "ok", f"held {who}", name)
    yield Finding("locks", "ok", f"{free:,} lock files that nobody holds")


def _holders() -> dict[int, int]:
    """Inode → id of the process that has an flock on it."""
    try:
        lines = _HELD.read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        parts = line.split()
        if len(parts) >= 6 and parts[1] == "FLOCK" and parts[4].isdigit():
            found[int(parts[5].rpartition(":")[2])] = int(parts[4])
    return found


def _told(process: int) -> str:
    try:
        command = " ".join(psutil.Process(process).cmdline())
    except psutil.Error:
        command = "of another container or user"
    own = ", this one" if process == os.getpid() else ""
    return f"by process {process}{own}: {command[:120]}"
