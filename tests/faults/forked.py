"""The real command in processes of its own, forked from one that has imported everything already.

A command begins in 10 ms instead of 5 s, so that a fault can be tried at many moments. What it sees
is what any process of it sees: its own arguments, folder, outputs, limits and user.
"""

from __future__ import annotations

import codecs
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

IMPORTED = (
    *("torch", "transformers", "transformers.generation", "accelerate", "datasets", "plotly"),
    *("jinja2", "evaluate", "rouge_score.rouge_scorer", "pyarrow.parquet", "rich.console"),
    *("compressor.cli.main", "compressor.runs.runner", "compressor.training.loop"),
    *(
        "compressor.reports.run_page.page",
        "compressor.reports.model_card.card",
        "compressor.runs.sweeps.grid",
    ),
    *(
        "compressor.runs.search.search",
        "compressor.reports.compare.compare",
        "compressor.runs.reproduce",
    ),
    *(
        "compressor.backends.torch.model",
        "compressor.backends.torch.generation",
        "compressor.backends.packed",
    ),
    *("torch._dynamo", "transformers.models.t5.modeling_t5"),
)
"""What a command would import first."""


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is negative for a signal."""

    code: int
    out: str
    err: str
    seconds: float
    cwd: Path

    @property
    def run_folder(self) -> Path:
        line = next(line for line in reversed(self.out.splitlines()) if line.startswith("run: "))
        return self.cwd / line.removeprefix("run: ")


class Forked:
    """The process that others are forked from. Use it as a context."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """`environment`: variables that libraries read as they are imported."""
        self.folder, self.environment = folder, environment

    def __enter__(self) -> Self:
        self._log = (self.folder / "forked.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                **self.environment,
            },
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._log.close()

    def __call__(self, *arguments: Any, cwd: Path, seconds: float = 120, **how: Any) -> Ended:
        """Run `compressor …`. No traceback may come of it, whatever is done to it.

        `limits`: name of a resource → its limit. `more_memory`: bytes of address space beyond what
        the process has as it begins. `user`: the id that it runs as. `environment`: variables.
        `kill_at`: a pattern of paths below `cwd`; all is killed as soon as one is there. `group`: a
        file that takes the ids of the processes of a control group.
        """
        out, err = self.folder / "out.txt", self.folder / "err.txt"
        task = {
            "arguments": list(map(str, arguments)),
            "cwd": str(cwd),
            "out": str(out),
            "err": str(err),
            "seconds": seconds,
            **how,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        started = time.monotonic()
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, (self.folder / "forked.log").read_text()
        said = [path.read_text("utf-8", errors="replace") for path in (out, err)]
        ended = Ended(int(answer), *said, time.monotonic() - started, cwd)
        assert ended.code != -signal.SIGALRM, f"not ended after {seconds} s: {ended}"
        assert "Traceback" not in ended.err + ended.out, ended.err
        return ended


def _child(task: dict[str, Any]) -> int:
    """Become the command."""
    os.setsid()
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), stream)
    os.chdir(task["cwd"])
    if "group" in task:
        Path(task["group"]).write_text(str(os.getpid()))
    os.environ.update(task.get("environment", {}))
    sys.argv = ["compressor", *task["arguments"]]
    for name, limit in task.get("limits", {}).items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if "more_memory" in task:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + task["more_memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if "user" in task:
        os.setgroups([])
        os.setgid(task["user"])
        os.setuid(task["user"])
    from compressor.cli.main import main

    return main(task["arguments"])


def _serve() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    codecs.lookup("utf-8-sig")  # another user may not read where Python lies
    from compressor.stages.base import stage_class, stage_kinds

    for kind in stage_kinds():
        stage_class(kind)
    answers = os.fdopen(os.dup(1), "w")
    while line := os.read(0, 1 << 20):
        task = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _child(task)
            except BaseException:  # noqa: BLE001  # the log is what tells of it
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        answers.write(f"{_ended(child, task)}\n")
        answers.flush()


def _ended(child: int, task: dict[str, Any]) -> int:
    """The exit code of a child, which is killed with all that it started when its time is over."""
    deadline = time.monotonic() + task["seconds"]
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if "kill_at" in task and any(Path(task["cwd"]).glob(task["kill_at"])):
            os.killpg(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


if __name__ == "__main__":
    _serve()
