"""Every checked-in recipe, rehearsed: whether it passes, and how long that takes.

    make rehearse                      # all of them
    .venv/bin/python -m tests.benchmarks.rehearse homework/v6 deploy

Without the hub, whatever is cached: rows that only it has are generated. Seconds are of the clock
and of processors; the second says what a machine of one's own would take at most.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from compressor.core.processes import environment
from compressor.recipe.files import recipe_names
from tests.benchmarks.report import write


def rehearsed(name: str, folder: str) -> dict[str, Any]:
    """One rehearsal: its exit code, seconds, and the last line of its errors."""
    before, started = _processor_seconds(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "run", name, "--rehearse"],
        cwd=folder,
        env=environment() | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "recipe": name,
        "passed": done.returncode == 0,
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(_processor_seconds() - before, 1),
        "error": next((x for x in done.stderr.splitlines() if x.startswith("error")), ""),
    }


def _processor_seconds() -> float:
    """Of this process' children that have ended, and theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Rehearse, print a table, write `outputs/bench/rehearse.json`; 1 where one does not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=recipe_names())
    given, found = parser.parse_args(), list[dict[str, Any]]()
    table = Table("recipe", "", "seconds", "processor seconds", "", header_style="bold")
    with tempfile.TemporaryDirectory() as folder:
        for name in given.recipes:
            found.append(rehearsed(name, folder))
            print(f"{name}: {found[-1]['seconds']} s", flush=True)
    for each in found:
        mark = "✓" if each["passed"] else "✗"
        seconds = (f"{each[key]:.1f}" for key in ("seconds", "processor_seconds"))
        table.add_row(each["recipe"], mark, *seconds, each["error"])
    write("rehearse", {"recipes": found, "load": os.getloadavg()})
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if all(each["passed"] for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
