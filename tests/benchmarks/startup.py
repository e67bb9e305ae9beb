"""What the command takes before it works: `--help`, and the plan of a recipe that the store has.

    make bench NAME=startup

CPU seconds, the least of some rounds: others may use the machine. It fails above the limits, and
where a command has imported what it does not need.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor.core import machine
from tests.benchmarks.common import count_cpu_seconds, write
from tests.harness.recipes import RECIPE

ROUNDS = 5
PLAN = "plan mine.yaml skip=[finetune,recover]"
LIMITS = {"--help": 0.15, PLAN: 0.8}
"""Seconds of each command."""
UNNEEDED = {"torch", "transformers", "datasets", "huggingface_hub"}
CODE = f"""
import sys
from compressor.cli.main import main
code = main(sys.argv[1:])
loaded = sys.modules.keys() & {sorted(UNNEEDED)}
sys.exit(code or ", ".join(loaded) or 0)
"""


def run(*words: str, cwd: Path) -> float:
    """Run Python to its end and give its CPU seconds. Raises CalledProcessError.

    As where it is installed, each module is compiled once.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(cwd / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    how: Any = {"cwd": cwd, "env": environment, "check": True, "stdout": subprocess.DEVNULL}
    before = count_cpu_seconds()
    subprocess.run([sys.executable, *words], **how)
    return count_cpu_seconds() - before


def main() -> None:
    """Measure the commands, write `outputs/bench/startup.json`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "mine.yaml").write_text(RECIPE, encoding="utf-8")
        run("-m", "compressor", *PLAN.replace("plan", "run", 1).split(), "-q", cwd=folder)
        seconds = {}
        for command in LIMITS:
            words = command.split()
            run("-c", CODE, *words, cwd=folder)
            rounds = [run("-m", "compressor", *words, cwd=folder) for _ in range(ROUNDS)]
            seconds[command] = round(min(rounds), 3)
    about = machine.describe_machine()
    write("startup", machine=about, cpu_seconds=seconds, limits=LIMITS)
    slow = [command for command, limit in LIMITS.items() if seconds[command] > limit]
    if slow:
        sys.exit(f"slower than their limits: {', '.join(slow)}")


if __name__ == "__main__":
    main()
