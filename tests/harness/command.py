"""Run `compressor …` in a process of its own, without paying for its imports each time.

    done = compressor("run", "mine.yaml", cwd=tmp_path)            # wait for it: code, out, err
    process = start("run", "mine.yaml", cwd=tmp_path)              # or do not wait
    process.send(signal.SIGTERM); process.wait(); process.err

A fixture `run` calls `compressor` in the test's own `tmp_path`. The first call starts a server (one
for each process of pytest) that imports everything once; each command is a fork of it, which sees
what a new process sees: its own session, folder, environment, streams and arguments, as `__main__`.
`fresh=True` starts an interpreter instead, for tests of how a program starts or ends; variables
that libraries read while they are imported (`HF_…`, `PYTHON…`) do so without being asked.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any

from tests.harness.server import Request, imports_differ

ROOT = Path(__file__).parents[2]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # pico models gain nothing from a second
_ENVIRONMENT = dict(os.environ)
_SERVE = "from tests.harness.server import main; main()"


@dataclass(frozen=True)
class Command:
    """The result of one `compressor …`. `code` is negative for a signal."""

    code: int
    out: str
    err: str
    cwd: Path = Path()

    @property
    def run_folder(self) -> Path:
        line = next(line for line in reversed(self.out.splitlines()) if line.startswith("run: "))
        return self.cwd / line.removeprefix("run: ")

    def records(self) -> list[dict[str, Any]]:
        loaded: list[dict[str, Any]] = json.loads((self.run_folder / "metrics.json").read_text())
        return loaded

    def record(self, name: str) -> dict[str, Any]:
        return next(record for record in self.records() if record["name"] == name)


class Process:
    """A command that was started, in a session of its own. Its id is its group's, too."""

    def __init__(
        self, pid: int, wait: Callable[[float], int | None], cwd: Path, out: _Stream, err: _Stream
    ) -> None:
        self.pid, self.cwd, self.code = pid, cwd, None
        self._wait, self._out, self._err = wait, out, err

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.code is None:
            self.code: int | None = self._wait(0)
        return self.code

    def wait(self, seconds: float = 600) -> int:
        """Wait for its exit code. If it takes longer, kill it and fail."""
        if self.code is None:
            self.code = self._wait(seconds)
        if self.code is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise AssertionError(f"not ended after {seconds} s: {self.out}{self.err}")
        return self.code

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)
        return self.code is None

    @property
    def out(self) -> str:
        """What it has printed so far, where `start` was given no `stdout`."""
        return _read(self._out)

    @property
    def err(self) -> str:
        return _read(self._err)


_Stream = int | IO[bytes]


def _read(stream: _Stream) -> str:
    number = stream if isinstance(stream, int) else stream.fileno()
    # Without moving where the process writes.
    return os.pread(number, os.fstat(number).st_size, 0).decode("utf-8", "replace")


class Server:
    """Forks commands, from when the first is started. `environment`: variables of its imports."""

    def __init__(self, **environment: str) -> None:
        self._environment = _ENVIRONMENT | environment

    @cached_property
    def _socket(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        assert ours.recv(16) == b"ready"
        atexit.register(process.wait)
        atexit.register(ours.close)  # it ends with its socket
        return ours

    def start(
        self,
        *arguments: Any,
        cwd: Path | None = None,
        stdin: str | _Stream = "",
        stdout: _Stream | None = None,
        stderr: _Stream | None = None,
        module: str = "compressor",
        fresh: bool = False,
        prepare: Callable[[], object] | None = None,
        **environment: str,
    ) -> Process:
        """Start `python -m compressor …` and do not wait for it.

        `stdin`: a text, or a descriptor. `stderr`: `subprocess.STDOUT` is possible. `prepare`: a
        function of a module, or a `partial` of one; the process calls it first.
        """
        whole, place = os.environ | environment, cwd or Path.cwd()
        out = _text_file() if stdout is None else stdout
        err = _text_file() if stderr is None else out if stderr == subprocess.STDOUT else stderr
        stream = _text_file(stdin) if isinstance(stdin, str) else stdin
        streams = [end if isinstance(end, int) else end.fileno() for end in (stream, out, err)]
        words = tuple(map(str, arguments))
        if fresh or imports_differ(whole, self._environment):
            assert prepare is None
            popen = subprocess.Popen(
                [sys.executable, "-m", module, *words],
                cwd=place,
                env=whole,
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                start_new_session=True,
            )
            return Process(popen.pid, partial(_wait_for_child, popen), place, out, err)
        reader, writer = os.pipe()
        message = pickle.dumps(Request(module, words, str(place), whole, prepare))
        socket.send_fds(self._socket, [message], [*streams, writer])
        os.close(writer)
        pid = int(self._socket.recv(16))
        return Process(pid, partial(_wait_for_code, os.fdopen(reader, "rb", 0)), place, out, err)

    def run(self, *arguments: Any, seconds: float = 600, **how: Any) -> Command:
        """Run a command to its end. None may show a traceback, whatever is wrong."""
        process = self.start(*arguments, **how)
        done = Command(process.wait(seconds), process.out, process.err, process.cwd)
        assert "Traceback" not in done.err + done.out, done.err
        return done


def _text_file(text: str = "") -> IO[bytes]:
    stream = tempfile.TemporaryFile()  # noqa: SIM115  # goes with the process that has it
    stream.write(text.encode())
    stream.seek(0)
    return stream


def _wait_for_child(popen: subprocess.Popen[bytes], seconds: float) -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return popen.wait(seconds)
    return None


def _wait_for_code(pipe: IO[bytes], seconds: float) -> int | None:
    ready, _, _ = select.select([pipe], [], [], seconds)
    return int(pipe.read()) if ready else None


_SERVER = Server()
start, compressor = _SERVER.start, _SERVER.run
