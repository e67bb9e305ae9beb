"""Processes of this package: what one finds around it, how it ends, and whether it is there."""

from __future__ import annotations

import os
import platform
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARENT = "COMPRESSOR_PARENT"
"""The variable that tells a process of ours which one it works for."""
PARENT_POLL_SECONDS = 0.2
UNDER_LAUNCHER = "TORCHELASTIC_RUN_ID"
"""The variable that torch's launcher gives each process that it starts; Accelerate's uses that."""
_OF_LAUNCHERS = re.compile(
    r"((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM|PET|TORCH_?ELASTIC)_.*"
    r"|(OMPI_COMM|PMI|PMIX|MPI|MV2_COMM)_.*"
)
"""Variables that have torch and Accelerate join other processes, or train in another way."""


def forget_launchers() -> None:
    """Take out of the environment, also for children, what would decide how a run is made.

    Pods and images set such variables for all that runs there. A run uses what its recipe says.
    """
    for name in list(os.environ):
        if _OF_LAUNCHERS.fullmatch(name) and name != UNDER_LAUNCHER:
            del os.environ[name]


@contextmanager
def sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """Let SIGTERM (`kill`, SLURM) and SIGHUP (a closed terminal) end what is inside as Ctrl-C does.

    Further ones are ignored: they must not cut short what the first one began, such as a report.
    """

    def interrupt(number: int, frame: object) -> None:
        for handled_signal in handled:
            signal.signal(handled_signal, signal.SIG_IGN)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()  # only it receives signals
    signals = [signal.SIGTERM, signal.SIGHUP] if is_main else []
    handled = [s for s in signals if signal.getsignal(s) == signal.SIG_DFL]  # not nohup's
    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def environment(threads: int | None = None) -> dict[str, str]:
    """The environment of this process, in which `python -m compressor.…` is this very package.

    Nothing of the current folder is imported there. `threads`: how many it computes with.
    """
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own = {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    own[PARENT] = str(os.getpid())
    return {**os.environ, **own, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def end_with_parent() -> None:
    """End this process with the one that it works for, as `environment` of that one says."""
    end_with(int(os.environ[PARENT]))


def end_with(parent: int) -> None:
    """End this process when `parent` ends, however that ends; or the launcher between them, which
    would have seen to it that no process of several goes on without another.
    """
    import psutil

    launcher, name = os.getppid(), f"end with {parent}"
    if any(thread.name == name for thread in threading.enumerate()):
        return
    if launcher != parent and psutil.Process(launcher).ppid() != parent:  # it has ended already
        os._exit(1)

    def watch() -> None:
        while _runs(parent) and os.getppid() == launcher:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


def _runs(process: int) -> bool:
    """Whether it has not ended; what has ended and was not waited for is a zombie."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    if not Path("/proc/self").exists():  # another system than Linux
        return True
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def described(number: int | None = None) -> dict[str, Any]:
    """How others find the process that asks, or another: `host`, `id`, when it was `created`.

    Where the system tells it, `since_boot` too: seconds that no change of the clock moves.
    """
    import psutil

    process = psutil.Process(number)
    about = {"host": platform.node(), "id": process.pid, "created": process.create_time()}
    since_boot = _since_boot(process.pid)
    return about if since_boot is None else about | {"boot": _boot(), "since_boot": since_boot}


def is_there(process: Mapping[str, Any]) -> bool:
    """Whether a process that was `described` runs; of another host's, which nobody knows, True.

    A description that is damaged is of no process.
    """
    try:
        return process["host"] != platform.node() or _runs_here(process)
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _runs_here(process: Mapping[str, Any]) -> bool:
    import psutil

    try:
        found = psutil.Process(process["id"])
        if found.status() == psutil.STATUS_ZOMBIE:  # it has ended, and its parent has not looked
            return False
        created, since_boot = found.create_time(), _since_boot(found.pid)
    except psutil.NoSuchProcess:
        return False
    if since_boot is not None and "since_boot" in process:
        same_boot = process["boot"] == _boot()
        return bool(same_boot and abs(since_boot - float(process["since_boot"])) < 1.0)
    return abs(created - float(process["created"])) < 1.0


def _since_boot(process: int) -> float | None:
    """When a process began, in seconds after the system did; None where there is no Linux.

    `psutil` adds the time of the boot, which moves with the clock.
    """
    try:
        after_name = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2]
        return int(after_name.split()[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str:
    """What tells one start of the system from another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
