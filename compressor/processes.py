"""What a process of this package that is started beside the first one finds around it."""

from __future__ import annotations

import os
from pathlib import Path


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of this process, in which `python -m compressor.…` is this very package.

    Nothing of the current folder is imported there. `threads`: how many it computes with.
    """
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own = {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    return {**os.environ, **own, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
