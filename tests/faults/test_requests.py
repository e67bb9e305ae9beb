"""What a request to end may meet: a library that swallows it, a report that is being written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from compressor.launching import processes
from compressor.machines import POLL_SECONDS, leading
from compressor.plan import plan
from compressor.processes import environment
from compressor.progress import Progress
from compressor.recipe import compose
from compressor.signals import ended_as_by_hand, heard_at_the_end
from compressor.store import Store
from tests.faults.conftest import Tell
from tests.faults.kills import write_recipes
from tests.test_processes import machine_configs

KEY = "cd" * 32


def test_a_request_that_a_finalizer_meets_is_not_told_as_a_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Python printed "Exception ignored in", with a traceback, and went on."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with ended_as_by_hand() as ask_again:
        Finalized()
        with pytest.raises(KeyboardInterrupt):
            ask_again("stage_ended", {})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_that_a_library_swallows_is_made_again(
    number: signal.Signals, tell: Tell
) -> None:
    """A bare `except` around an import, say, had the run go on as if nobody had pressed Ctrl-C."""
    reached = []
    with pytest.raises(KeyboardInterrupt), ended_as_by_hand() as again:  # noqa: PT012
        progress = Progress(Console(quiet=True), watch=again)
        with suppress(BaseException):  # the library
            os.kill(os.getpid(), number)
            time.sleep(5)
        reached.append("the run goes on")
        progress.say("until its next event")
        reached.append("and further")
    assert reached == ["the run goes on"]
    tell("kills", f"{number.name} that a library swallows", "heard at the next event")


def test_a_request_waits_for_a_report_and_a_second_one_does_not() -> None:
    """The report of a run that was done used to be left out where Ctrl-C met its writing."""
    written = []
    with pytest.raises(KeyboardInterrupt), ended_as_by_hand():  # noqa: PT012
        with heard_at_the_end():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            written.append("report")
        time.sleep(5)
        written.append("more")
    with pytest.raises(KeyboardInterrupt), ended_as_by_hand(), heard_at_the_end():  # noqa: PT012
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        written.append("what hangs")
    assert written == ["report"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupted_command_ends_with_its_own_code(tmp_path: Path) -> None:
    """1, and not by a signal, where Ctrl-C met code made from a text, as a dataclass is made."""
    lines = (
        "import os, signal, sys, time; from compressor import cli, commands",
        "def work(given): exec('os.kill(os.getpid(), signal.SIGINT); time.sleep(5)')",
        "commands.recipes_command = work",
        "sys.exit(cli.main(['recipes']))",
    )
    code = "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "\ninterrupted\n")


def test_what_a_kill_left_beside_an_artifact_goes_with_the_next_look(tmp_path: Path) -> None:
    """Killed between the commit and the removal of checkpoints, or trained by two processes first
    and then by one: a training's checkpoints stayed in the store for ever.
    """
    store = Store(tmp_path / "store")
    store.commit(KEY, store.begin(KEY), {"stage": "load"})
    left = [store.resume(KEY) / "step-3", store.task(KEY) / "log"]
    for folder in left:
        folder.mkdir(parents=True)
    with FileLock(store.folder / "locks" / f"{KEY}.lock"):  # as another process holds it
        store.tidy(KEY)
        assert all(folder.is_dir() for folder in left)
    store.tidy(KEY)
    assert list((store.folder / "partial").iterdir()) == []
    store.verify(KEY)
    (store.resume("ef" * 32) / "step-3").mkdir(parents=True)
    store.tidy("ef" * 32)  # no artifact: that is what the next run goes on from
    assert (store.resume("ef" * 32) / "step-3").is_dir()


def test_a_machine_that_came_and_went_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is there nothing is; where it comes again that is taken back."""
    write_recipes(tmp_path)
    monkeypatch.chdir(tmp_path)
    first, _ = machine_configs(tmp_path)
    store = Store(tmp_path / "outputs/store")
    planned = plan(compose("summaries.yaml", [first]), store)
    started = processes(planned.composed.recipe.launch)
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
