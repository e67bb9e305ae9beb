"""Memory runs out: refused by a limit, or by the system that kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.core.failures import ended_by, is_of_memory, told
from tests.faults import LONG, trials
from tests.faults.conftest import Tell
from tests.faults.forked import Forked
from tests.faults.stored import artifacts, whole_only

GROUPS = Path("/sys/fs/cgroup/memory")
MEGABYTE = 1 << 20


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of ours that may have 20 MB."""
    own = GROUPS / f"compressor-faults-{os.getpid()}"
    try:
        own.mkdir()
        (own / "memory.limit_in_bytes").write_text(str(20 * MEGABYTE))
    except OSError as error:
        pytest.skip(f"no control group of memory (version 1) can be had here: {error}")
    yield own
    own.rmdir()


@pytest.mark.skipif(not LONG, reason="models of 30 MB; `make test-faults`")
def test_memory_that_is_refused_is_told_with_what_to_lower(
    forked: Forked, whole: Path, mine: Path, tell: Tell
) -> None:
    """At any moment: one error, exit 1, or the end where it was enough; and with more memory the
    same command finishes. torch's own words were shown, and nothing of what to do.
    """
    wide = ("model.config.d_ff=60000", "-q")
    done = forked("run", "mini.yaml", *wide, "outputs=undisturbed", cwd=mine)
    assert done.code == 0, done.err
    draw, refused = random.Random(0), 0
    for _ in range(trials(12, 2)):
        more = draw.randrange(2, 160) * MEGABYTE
        ended = forked("run", "mini.yaml", *wide, cwd=mine, more_memory=more)
        if ended.code != 0:
            refused += 1
            (line,) = (line for line in ended.err.splitlines() if line.startswith("error: "))
            assert ended.code == 1 and "out of memory" in line, ended
            whole_only(mine / "outputs")
            tell("memory", "refused by a limit (RLIMIT_AS)", "exit 1: what to lower; then done")
    assert refused, "no limit was low enough"
    assert forked("run", "mini.yaml", *wide, cwd=mine).code == 0
    assert artifacts(mine / "outputs") == artifacts(mine / "undisturbed")


@pytest.mark.skipif(not LONG, reason="models of 30 MB; `make test-faults`")
def test_torchs_refusal_names_the_settings_that_need_less(
    forked: Forked, mine: Path, tell: Tell
) -> None:
    """In a training: micro_batch_size first, which leaves the result as it is."""
    wide = ("model.config.d_ff=60000", "skip=[prune, evaluate]")
    loaded = forked("run", "mini.yaml", "-q", "skip=[finetune, prune, evaluate]", wide[0], cwd=mine)
    assert loaded.code == 0, loaded.err
    ended = forked("run", "mini.yaml", "-q", *wide, cwd=mine, more_memory=130 * MEGABYTE)
    assert ended.code == 1
    assert "stage 'finetune': out of memory: " in ended.err, ended.err
    assert "lower micro_batch_size, batch_size, data.max_source_length" in ended.err
    tell("memory", "torch cannot allocate in a training", "exit 1: lower micro_batch_size, …")


def test_a_command_that_the_system_kills_goes_on_afterwards(
    forked: Forked, whole: Path, mine: Path, group: Path, tell: Tell
) -> None:
    """A control group's limit: the kernel ends it with SIGKILL, in the middle of anything."""
    killed = forked("run", "mini.yaml", "-q", cwd=mine, group=str(group / "tasks"))
    assert killed.code == -signal.SIGKILL
    whole_only(mine / "outputs")
    assert forked("run", "mini.yaml", "-q", cwd=mine).code == 0
    assert artifacts(mine / "outputs") == artifacts(whole / "outputs")
    tell("memory", "the kernel kills the command (control group)", "the next run finishes")


def test_a_killed_process_is_told_as_killed() -> None:
    """By the exit code of one that was started as it is, and by what torch's launcher logs."""
    code = subprocess.run(
        [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], check=False
    ).returncode
    expected = "was killed by signal 9 (SIGKILL), often the system's for want of memory"
    assert (ended_by(code) or "").startswith(expected)
    log = "  exitcode  : -9 (pid: 7)\n  traceback : Signal 9 (SIGKILL) received by PID 7"
    assert (ended_by(1, log) or "").startswith(expected)
    assert ended_by(-15) == "was killed by signal 15 (SIGTERM)"
    assert ended_by(1, "Traceback …\nValueError: 9") is None


@pytest.mark.skipif(not LONG, reason="two processes of torch's launcher take half a minute")
def test_a_worker_that_the_system_kills_is_told(forked: Forked, mine: Path, tell: Tell) -> None:
    """It was "a worker process ended with code 1", and twelve lines of the launcher's."""
    killer = subprocess.Popen([sys.executable, "-c", _KILLER, str(mine)], stdout=subprocess.DEVNULL)
    try:
        two = ("launch.num_processes=2", "stages.finetune.epochs=2000")
        failed = forked("run", "mini.yaml", *two, cwd=mine, seconds=200)
    finally:
        killer.kill()
        killer.wait()
    assert failed.code == 1
    assert "a worker process was killed by signal 9 (SIGKILL), often the system's" in failed.err
    whole_only(mine / "outputs")
    tell("memory", "a worker killed by SIGKILL", "exit 1: killed by signal 9, often for memory")


_KILLER = """
import sys, time, psutil
from pathlib import Path
while not list(Path(sys.argv[1]).glob("outputs/store/partial/*.resume/step-*")):
    time.sleep(0.05)
for process in psutil.process_iter(["cmdline", "environ"]):
    line = process.info["cmdline"] or []
    mine = any(sys.argv[1] in part for part in line)
    if mine and "compressor.engine.worker" in line and "torch.distributed.run" not in line:
        process.kill()
        break
"""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail …] DefaultCPUAllocator: can't allocate memory: you tried …"),
        OSError(12, "Cannot allocate memory"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate …"),
    ],
)
def test_each_librarys_words_for_too_little_memory_are_known(error: Exception) -> None:
    """Python's, torch's on a CPU and on a GPU, the system's; and no other error is taken for it."""
    assert is_of_memory(error)
    assert not is_of_memory(ValueError("12 rows")) and told(ValueError("12 rows")) is None
