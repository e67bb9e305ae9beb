"""Start, end and recognize processes of this package.

`python -m compressor.core.processes MODULE …` runs a module as `python -m MODULE …` does, and ends
it with the process that started it: a launcher that waits for other machines would wait for ever.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARENT = "COMPRESSOR_PARENT"
"""The variable that has the id of the process that ours works for."""
PARENT_POLL_SECONDS = 0.2
UNDER_LAUNCHER = "TORCHELASTIC_RUN_ID"
"""The variable that torch's launcher, and so Accelerate's, gives each process that it starts."""
_OF_LAUNCHERS = re.compile(
    r"((LOCAL|GROUP|ROLE|NODE)_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)"
    r"|(ACCELERATE|FSDP|PARALLELISM_CONFIG|MEGATRON_LM|PET|TORCH_?ELASTIC)_.*"
    r"|(OMPI_COMM|PMI|PMIX|MPI|MV2_COMM)_.*"
)
"""Variables that have torch and Accelerate join other processes, or train in another way."""


def forget_launchers() -> None:
    """Remove variables of launchers, which pods and images set for all that runs there."""
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


def is_ending() -> bool:
    """Tell whether SIGTERM has come, even if a library has caught what it raised."""
    return signal.getsignal(signal.SIGTERM) == signal.SIG_IGN


def child_environment(threads: int | None = None) -> dict[str, str]:
    """Give the environment for a `python -m compressor.…` that is this very package.

    Nothing of the current folder is imported there. `threads`: how many it computes with.
    """
    root = str(Path(__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    ours = {PARENT: str(os.getpid()), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    if threads is not None:
        ours["OMP_NUM_THREADS"] = str(threads)
    return {**os.environ, **ours}


def end_with_parent() -> None:
    """End this process with the one that it works for, as `child_environment` says."""
    end_with(int(os.environ[PARENT]))


def end_with(parent: int) -> None:
    """End this process when `parent` ends, however that ends, or the launcher between them."""
    import psutil

    launcher, name = os.getppid(), f"end with {parent}"
    if any(thread.name == name for thread in threading.enumerate()):
        return
    if launcher != parent and psutil.Process(launcher).ppid() != parent:  # it has ended already
        os._exit(1)

    def watch() -> None:
        while _is_alive(parent) and os.getppid() == launcher:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


def _is_alive(process: int) -> bool:
    """Tell whether a process runs; one that has ended may wait for its parent to look."""
    import psutil

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def describe_process(number: int | None = None) -> dict[str, Any]:
    """Describe a process so that `is_running` finds it, whatever a clock does meanwhile."""
    number = os.getpid() if number is None else number
    return {"host": platform.node(), "id": number, "created": _read_start(number)}


def is_running(process: Mapping[str, Any]) -> bool:
    """Tell whether a process that was described runs; True for one of another host."""
    try:
        if process["host"] != platform.node():
            return True
        return _is_alive(process["id"]) and _read_start(process["id"]) == process["created"]
    except (KeyError, TypeError, ValueError, OverflowError):
        return False


def _read_start(number: int) -> str | float | None:
    """Read when a process began: on Linux which boot, and ticks after it, which no clock moves."""
    import psutil

    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        after_name = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2]
        return f"{boot} {after_name.split()[19]}"
    except OSError:  # not Linux, or it has ended
        with suppress(psutil.NoSuchProcess):
            return float(psutil.Process(number).create_time())
    return None


def main() -> None:
    """Run the module that the first argument names, with the other arguments."""
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
