"""What an interrupted command says, and what interrupted ones leave."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from compressor.core.processes import environment
from compressor.engine.cluster import POLL_SECONDS, leading
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from compressor.training.launch_config import read_processes
from tests.engine.test_processes import machine_configs
from tests.faults.kills import write_recipes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_command_says_so_in_one_line(number: signal.Signals, tmp_path: Path) -> None:
    """By Ctrl-C or `kill`: exit code 1, no traceback."""
    lines = (
        "import os, sys, time; from compressor import cli, commands",
        "def work(*given, **more):",
        f"    os.kill(os.getpid(), {int(number)}); time.sleep(5)",
        "commands._planned = work",
        "sys.exit(cli.main(['run', 'demo']))",
    )
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    expected = "\ninterrupted; the same command goes on from here\n"
    assert (done.returncode, done.stderr) == (1, expected)


def test_a_machine_that_came_and_went_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is there nothing is; where it comes again that is taken back."""
    write_recipes(tmp_path)
    monkeypatch.chdir(tmp_path)
    first, _ = machine_configs(tmp_path)
    store = Store(tmp_path / "outputs/store")
    planned = plan(compose("summaries.yaml", [first]), store)
    started = read_processes(planned.composed.recipe.launch)
    other = f"machines-{started.address}-{started.port}.1"
    with leading(planned, store, started, print) as session:
        assert session is not None
        seen = []
        for holds in (False, True, False, True):
            lock = FileLock(store.folder / "locks" / f"{other}.lock")
            if holds:
                lock.acquire()
            time.sleep(3 * POLL_SECONDS)
            seen.append((set(session.gone), session.one_is_gone.is_set()))
            lock.release()
    assert seen == [(set(), False), (set(), False), ({1}, True), (set(), False)]
