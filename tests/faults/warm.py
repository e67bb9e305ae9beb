"""A process that has imported what a run imports, and forks one for each command it is given.

`python -m tests.faults.warm` is that process. What it forks is a process of its own, with a
session, a folder and outputs of its own, that calls the command's `main`: a kill costs no 5 s of
imports before it. What happens while a program starts is for commands that are started plainly.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self, TextIO

LIBRARIES = (
    *("torch", "accelerate", "safetensors.torch", "sklearn.linear_model", "hydra", "plotly"),
    *("transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert"),
    *("rich.live", "jinja2", "psutil", "torch._dynamo"),
)
"""The slow ones; the rest of what they need is imported by them."""


class Warm:
    """That process, seen from a test. Use it as a context."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._ask(ready=True) == {"ready": True}
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the warm process has ended"
        return json.loads(line)

    def start(self, *arguments: str, cwd: Path, **environment: str) -> Started:
        """Start `compressor …` there; what it prints goes to `out` and `err` in that folder."""
        given = {"arguments": arguments, "cwd": str(cwd), "environment": environment}
        return Started(self, self._ask(**given)["pid"], cwd)

    def poll(self, pid: int) -> int | None:
        code: int | None = self._ask(pid=pid)["code"]
        return code


@cache
def shared() -> Warm:
    """One for all tests of a process, until that ends."""
    started = Warm().__enter__()
    atexit.register(started.__exit__)
    return started


class Started:
    """A command that a `Warm` has started."""

    def __init__(self, warm: Warm, pid: int, cwd: Path) -> None:
        self._warm, self.pid, self.cwd = warm, pid, cwd
        self.code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.code is None:
            self.code = self._warm.poll(self.pid)
        return self.code

    def send(self, number: signal.Signals) -> bool:
        """Whether it was still there to be told."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = 90.0) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"it hangs; so far: {self.out}{self.err}")
            time.sleep(0.005)
        return code

    @property
    def out(self) -> str:
        return (self.cwd / "out").read_text("utf-8", "replace")

    @property
    def err(self) -> str:
        return (self.cwd / "err").read_text("utf-8", "replace")


def _import_everything() -> None:
    import compressor

    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(compressor.__path__, "compressor."):
        if "__main__" not in module.name:
            try:
                importlib.import_module(module.name)
            except ImportError:  # of an extra that is not installed
                continue


OPERATIONS, SIGNAL_AT = "operations", "FAULTS_SIGNAL_AT"
"""A file of what a command did to files below its folder, a line each; and the variable with which
it signals itself before one of them: the signal's number and the operation's, from 0."""
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "shutil.rmtree"}


def _count_operations(told: TextIO, asked: str) -> None:
    """Have CPython tell of each change to a file, by an audit hook, before it is done."""
    below, process, done = str(Path.cwd()), os.getpid(), 0
    number, at = map(int, asked.split()) if asked else (0, -1)

    def hear(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(given[2], int) and given[2] & 3
        if not (writes or event in _CHANGES) or os.getpid() != process:
            return
        if isinstance(given[0], int) or given[0] == told.name:  # a descriptor that is open already
            return
        path = os.path.join(below, os.fsdecode(given[0]))  # noqa: PTH118
        if not path.startswith(f"{below}/outputs/"):
            return
        told.write(f"{event} {path.removeprefix(below)}\n")
        done += 1
        if done == at + 1:
            os.kill(process, number)

    sys.addaudithook(hear)


def _become(request: dict[str, Any]) -> NoReturn:
    """In the forked process: be the command, but for the interpreter's farewell to all modules."""
    from compressor.cli.main import main

    os.setsid()
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # read again from there
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
        for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    sys.stderr.reconfigure(line_buffering=True)
    if SIGNAL_AT in request["environment"]:
        told = Path(OPERATIONS).open("w", 1, encoding="utf-8")  # noqa: SIM115  # stays open
        _count_operations(told, request["environment"][SIGNAL_AT])
    sys.argv = ["compressor", *request["arguments"]]
    code = main(request["arguments"])
    # As the interpreter does: what waits for threads (joblib's, for its processes) comes first.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve() -> None:
    _import_everything()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` may have it ignored
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"ready": True}
        if "arguments" in request:
            if (pid := os.fork()) == 0:
                _become(request)
            answer = {"pid": pid}
        elif "pid" in request:
            found, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if found else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
