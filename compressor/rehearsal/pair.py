"""What each of two processes does that run a rehearsal's stages again: one task after the other.

`python -m compressor.rehearsal.pair FILE`, started by `compressor.launcher` before there is such a
file, so that torch is imported meanwhile. It ends at the first task that fails, since its processes
may then be out of step, and when its time is over, since they may wait for each other for ever.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
import time
from pathlib import Path

from compressor import worker

STARTED, LATE, ENDED = "started", "late", "ended"
"""Files beside a task: it was begun; time was over before it had ended; a process, whose number is
behind the name, has ended it well."""
_POLL_SECONDS = 0.1
_NEEDED = ("compressor.checkpoint", "compressor.training", "compressor.generation")


def main(path: Path) -> int:
    """Perform the tasks, in the order of the list. The caller must leave by `os._exit`."""
    ranks = worker.begin()
    for module in _NEEDED:
        importlib.import_module(module)
    while not path.is_file():  # written whole; `begin` ends this process with its parent
        time.sleep(_POLL_SECONDS)
    asked = json.loads(path.read_text(encoding="utf-8"))
    begun: list[Path] = []
    timer = threading.Timer(asked["seconds"], _give_up, [begun])
    timer.daemon = True
    timer.start()
    for task in map(Path, asked["tasks"]):
        begun.append(task.parent)
        (task.parent / STARTED).touch()
        if worker.perform(task, ranks):
            return 1
        (task.parent / f"{ENDED}-{ranks.rank}").touch()
    return 0


def _give_up(begun: list[Path]) -> None:
    for folder in begun[-1:]:
        (folder / LATE).touch()
    os._exit(1)


if __name__ == "__main__":
    worker.leave_after(main)
