"""Every checked-in recipe, rehearsed: whether it passes, and how long that takes.

    make rehearse                      # all of them
    .venv/bin/python -m tests.benchmarks.rehearse homework/v6 deploy

Without the hub, whatever is cached: rows that only it has are generated. Seconds are of the clock
and of processors; the second says what a machine of one's own would take at most.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from rich.table import Table

from compressor.core.console import Console
from compressor.core.processes import child_environment
from compressor.recipe.files import list_recipes
from tests.benchmarks.common import count_cpu_seconds, write


def measure(name: str, folder: str) -> dict[str, Any]:
    """Rehearse a recipe: whether it passes, its seconds, and the first of its errors."""
    before, started = count_cpu_seconds(), time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "run", name, "--rehearse"],
        cwd=folder,
        env=child_environment() | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "recipe": name,
        "passed": done.returncode == 0,
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(count_cpu_seconds() - before, 1),
        "error": next((x for x in done.stderr.splitlines() if x.startswith("error")), ""),
    }


def main() -> int:
    """Rehearse, print a table, write `outputs/bench/rehearse.json`; 1 where one does not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=list_recipes())
    results = list[dict[str, Any]]()
    table = Table("recipe", "", "seconds", "processor seconds", "", header_style="bold")
    with tempfile.TemporaryDirectory() as folder:
        for name in parser.parse_args().recipes:
            results.append(measure(name, folder))
            print(f"{name}: {results[-1]['seconds']} s", flush=True)
    for result in results:
        mark = "✓" if result["passed"] else "✗"
        seconds = (f"{result[key]:.1f}" for key in ("seconds", "processor_seconds"))
        table.add_row(result["recipe"], mark, *seconds, result["error"])
    write("rehearse", recipes=results, load=os.getloadavg())
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0 if all(result["passed"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
