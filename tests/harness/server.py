"""Fork a process for each command, from one that has imported what commands import.

`main` is that one; `command` starts it, with a socket's descriptor as its argument, and asks it.
Each fork becomes `python -m MODULE …`, with a session, folder, environment and streams of its own.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import math
import os
import pickle
import pkgutil
import random
import re
import runpy
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tests.harness import nested

LIBRARIES = (
    *("torch", "accelerate", "safetensors.torch", "sklearn.linear_model", "hydra", "plotly"),
    *("transformers.models.t5.modeling_t5", "transformers.models.bert.modeling_bert"),
    *("rich.live", "jinja2", "psutil", "torch._dynamo", "transformers.generation"),
    *("rouge_score.rouge_scorer", "pyarrow.parquet"),
)
"""The slow ones; they import the rest. None may start threads, which a fork would not have."""
_READ_AT_IMPORT = re.compile(
    r"PYTHON.*|LD_.*|LC_.*|LANG|HOME|XDG_.*|(HF|TRANSFORMERS|TOKENIZERS|DATASETS|ARROW)_.*"
    r"|(OMP|GOMP|MKL|OPENBLAS|ONNX|CUDA)_.*|TORCH_(?!NCCL_).*"
)


def _python_path() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


_INSTALLED = [place for place in sys.path[1:] if place not in _python_path()]


@dataclass(frozen=True)
class Request:
    """A process to fork. Its streams, and a pipe for its exit code or none, come along with it."""

    module: str
    arguments: Sequence[str]
    cwd: str
    environment: Mapping[str, str]
    prepare: Callable[[], object] | None = None
    has_session: bool = True
    is_unbuffered: bool = False
    parent: int | None = None
    """Who adopts it; without one it is the server's child."""


def imports_differ(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether libraries that are imported in one environment might be others in another."""
    read = filter(_READ_AT_IMPORT.fullmatch, {*one, *other})
    return any(one.get(name) != other.get(name) for name in read)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    nested.adopt_orphans()
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

    from compressor.recipe.compose import compose
    from compressor.training import loop

    # With `checkpoint_seconds: 0` each step is saved, however slow the disk: tests wait for steps.
    loop.OWN_CHECKPOINT_SHARE = math.inf
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
                become(pickle.loads(message), descriptors, requests)
            *streams, codes[pid] = descriptors
            for descriptor in streams:
                os.close(descriptor)
    for pid in codes:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _report_ended(codes: dict[int, int]) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            pid, status = ended
            if (descriptor := codes.pop(pid, None)) is not None:  # not an orphan of a command
                with suppress(BrokenPipeError):  # nobody waits for it
                    os.write(descriptor, str(os.waitstatus_to_exitcode(status)).encode())
                os.close(descriptor)


def become(request: Request, descriptors: Sequence[int], requests: socket.socket) -> NoReturn:
    """Be that command, and end as the interpreter does, but for its farewell to all modules."""
    code, interrupted = 1, False
    try:
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
    if request.has_session:
        os.setsid()
    while request.parent is not None and os.getppid() != request.parent:
        time.sleep(0.001)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in descriptors:
        os.close(descriptor)
    requests.send(str(os.getpid()).encode())  # from here on it can be signalled
    requests.close()
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.environment)
    if request.prepare is not None:
        request.prepare()
    if request.module == "compressor.core.processes" or request.arguments[:1] == ("run",):
        nested.fork_own_processes(become)
    at_once = request.is_unbuffered or bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin, sys.stdout, sys.stderr = (
        _open_stream(number, server, at_once=at_once)
        for number, server in enumerate((sys.stdin, sys.stdout, sys.stderr))
    )
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    here = [] if "PYTHONSAFEPATH" in os.environ else [str(Path.cwd())]
    sys.path[:] = [*here, *_python_path(), *_INSTALLED]
    sys.argv = [request.module, *request.arguments]
    if request.module != "compressor":  # it is run anew, as `__main__`
        sys.modules.pop(request.module, None)
    tempfile.tempdir = None  # the environment says where
    random.seed()
    sys.modules["numpy"].random.seed()


def _open_stream(number: int, server: io.TextIOWrapper, *, at_once: bool) -> io.TextIOWrapper:
    """Open one of the three as the interpreter does; `server`: that of the server."""
    buffer = open(number, "wb" if number else "rb", 0 if number and at_once else -1, closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(
        buffer,
        server.encoding,
        server.errors,
        line_buffering=not at_once and (number == 2 or buffer.isatty()),
        write_through=at_once,
    )
