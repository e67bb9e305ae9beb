"""Runs one family's task after the other, in each of two processes that `launcher` starts."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.engine import worker


def main(path: Path) -> int:
    """Run the tasks that a file lists, up to the first that fails."""
    ranks = worker.join_ranks()
    tasks = json.loads(path.read_text(encoding="utf-8"))
    return int(any(worker.run_task(Path(task), ranks) for task in tasks))


if __name__ == "__main__":
    worker.exit_after(main)
