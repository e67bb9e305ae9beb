"""What each of two processes does that run a rehearsal's stages again: one task after the other.

`python -m compressor.rehearsal.pair FILE`, started by `compressor.launcher`; the file is a list of
the paths of tasks. It ends at the first that fails, since its processes may then be out of step.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from compressor import worker

STARTED = "started"
"""The file beside a task that says it was begun."""


def main(path: Path) -> int:
    """Perform the tasks, in the order of the list. The caller must leave by `os._exit`."""
    ranks = worker.begin()
    for task in map(Path, json.loads(path.read_text(encoding="utf-8"))):
        if ranks.first:
            (task.parent / STARTED).touch()
        if worker.perform(task, ranks):
            return 1
    return 0


if __name__ == "__main__":
    try:
        exit_code = main(Path(sys.argv[1]))
    except Exception:  # noqa: BLE001  # whatever it is, the process leaves the same way
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
