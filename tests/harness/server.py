"""Fork a process for each command, from one that has imported what commands import.

`python -m tests.harness.server SOCKET` (a descriptor) is that one; `command` starts it and asks it.
Each fork becomes `python -m MODULE …`, with a session, folder, environment and streams of its own.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pickle
import pkgutil
import random
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

LIBRARIES = (
    *("torch", "accelerate", "safetensors.torch", "sklearn.linear_model", "hydra", "plotly"),
    *("transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert"),
    *("rich.live", "jinja2", "psutil", "torch._dynamo", "transformers.generation"),
    *("rouge_score.rouge_scorer", "pyarrow.parquet"),
)
"""The slow ones; they import the rest. None may start threads, which a fork would not have."""


@dataclass(frozen=True)
class Request:
    """A process to fork. Its three streams, and a pipe for its exit code, come along with it."""

    module: str
    arguments: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    prepare: Callable[[], object] | None


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    _import_everything()
    _warm_up()
    gc.collect()
    gc.freeze()  # collections of a child then leave the pages alone that it shares
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` may have it ignored
    requests.send(b"ready")
    _serve(requests)
    os._exit(0)


def _import_everything() -> None:
    import compressor

    for name in LIBRARIES:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(compressor.__path__, "compressor."):
        if "__main__" not in module.name:
            with suppress(ImportError):  # of an extra that is not installed
                importlib.import_module(module.name)


def _warm_up() -> None:
    """Have at hand what libraries make once a process, when it is first asked for."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from compressor.recipe import compose

    compose("demo")
    get_checkpoint_conversion_mapping("t5")


def _serve(requests: socket.socket) -> None:
    """Fork what is asked for, and report what has ended, until nobody can ask any more."""
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    for end in (requests, woken):
        selector.register(end, selectors.EVENT_READ)
    codes: dict[int, int] = {}  # process → descriptor that takes its exit code
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if woken in ready:
            woken.recv(4096)
            _report_ended(codes)
        if requests in ready:
            message, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 4)
            if not message:
                break
            pid = os.fork()
            if pid == 0:
                for end in (woken, waker, selector):
                    end.close()
                for descriptor in codes.values():
                    os.close(descriptor)
                _become(message, descriptors, requests)
            *streams, codes[pid] = descriptors
            for descriptor in streams:
                os.close(descriptor)
    for pid in codes:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _report_ended(codes: dict[int, int]) -> None:
    while codes:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = codes.pop(pid)
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(descriptor)


def _become(message: bytes, descriptors: Sequence[int], requests: socket.socket) -> NoReturn:
    """Be that command, and end as the interpreter does, but for its farewell to all modules."""
    code, interrupted = 1, False
    try:
        request: Request = pickle.loads(message)
        _settle(request, descriptors, requests)
        runpy.run_module(request.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = _exit_code(ended)
    except KeyboardInterrupt:
        interrupted = True
        traceback.print_exc()
    except BaseException:  # noqa: BLE001  # the interpreter does so
        traceback.print_exc()
    try:
        threading._shutdown()  # what waits for threads (joblib's, for its processes) comes first
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):  # a closed pipe
                code = 120
    finally:
        if interrupted:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)


def _exit_code(ended: SystemExit) -> int:
    if ended.code is None or isinstance(ended.code, int):
        return (ended.code or 0) & 0xFF
    print(ended.code, file=sys.stderr)
    return 1


def _settle(request: Request, descriptors: Sequence[int], requests: socket.socket) -> None:
    """Take on what a new process is given, and what the interpreter makes of it first."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, code = descriptors
    os.close(code)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
        os.close(descriptor)
    requests.send(str(os.getpid()).encode())  # from here on it can be signalled
    requests.close()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    if request.prepare is not None:
        request.prepare()
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding=own.encoding, errors=own.errors, closefd=False)  # noqa: SIM115
        for number, mode, own in ((0, "r", sys.stdin), (1, "w", sys.stdout), (2, "w", sys.stderr))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.stderr.reconfigure(line_buffering=True)
    sys.path[0] = str(Path.cwd())
    sys.argv = [request.module, *request.arguments]
    if request.module != "compressor":  # it is run anew, as `__main__`
        sys.modules.pop(request.module, None)
    tempfile.tempdir = None  # the environment says where
    random.seed()
    sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    main()
