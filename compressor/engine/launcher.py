"""Starts the processes that a stage runs in, waits for them, and tells why they failed.

One process is started as it is; several by torch's launcher, or by Accelerate's where there is a
config. What a process does is `engine.worker`'s. Nothing that is started outlives its parent.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from compressor.core import machine
from compressor.core.errors import StageError
from compressor.core.failures import ended_by
from compressor.core.processes import end_with_parent, environment
from compressor.engine.worker import FAILURE, RESULT, TASK
from compressor.stages.base import Context, Inputs, Stage
from compressor.training.launch_config import Processes

LAST_LINES = 12
"""Of a log, what an error message shows."""

ENDING_SECONDS = 5.0
"""How long a launcher has to end its workers. One that waits for other machines does not hear."""


@dataclass
class Session:
    """A run on several machines, as the first of them has it."""

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """What the others tell its tasks from those of older runs by."""
    gone: set[int] = field(default_factory=set)
    """Machines that had come, and have ended."""
    missing: set[int] = field(default_factory=set)
    """Machines that have not come yet."""
    one_is_gone: threading.Event = field(default_factory=threading.Event)


def task_folder(context: Context) -> Path:
    """Where a stage's task, its processes' logs and their result are while they run."""
    return context.resume.with_suffix(".task")


def launch(
    kind: str,
    name: str,
    stage: Stage,
    inputs: Inputs,
    context: Context,
    processes: Processes,
    session: Session | None = None,
) -> dict[str, Any] | None:
    """Run a stage in processes of its own, and give what `run_stage` gives.

    `session`: of a run on several machines. Raises StageError with a worker's reason, or where
    another machine has ended.
    """
    folder = task_folder(context).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = task_of(kind, name, stage, inputs, context, processes)
    task |= {
        "session": session.name if session else None,
        "id": uuid.uuid4().hex,
        "shared": processes.machines > 1,
    }
    partial = folder / f".{TASK}"
    partial.write_text(json.dumps(task), encoding="utf-8")
    partial.rename(folder / TASK)  # whole, since another machine may be waiting for it
    over = session.one_is_gone if session else None
    code = run_processes(folder / TASK, processes, folder, context.progress.relay, over=over)
    if (failure := folder / FAILURE).is_file():
        raise StageError(json.loads(failure.read_text(encoding="utf-8"))["reason"])
    if code != 0 or not (folder / RESULT).is_file():
        if session and session.gone:
            numbers = ", ".join(map(str, sorted(session.gone)))
            raise StageError(
                f"machine {numbers} has ended; see there, and give the same command again on each"
            )
        if session and session.missing:
            numbers = ", ".join(map(str, sorted(session.missing)))
            raise StageError(f"machine {numbers} did not come; give the same command there, too")
        raise StageError(how_ended(code, folder))
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    context.metrics.update(result["metrics"])
    shutil.rmtree(folder, ignore_errors=True)
    model: dict[str, Any] | None = result["model"]
    return model


def task_of(
    kind: str, name: str, stage: Stage, inputs: Inputs, context: Context, processes: Processes
) -> dict[str, Any]:
    """All that a worker knows."""
    return {
        "kind": kind,
        "name": name,
        "stage": stage.model_dump(mode="json"),
        "model_folder": str(inputs.folder.absolute()) if inputs.folder else None,
        "artifacts": {role: str(path.absolute()) for role, path in inputs.artifacts.items()},
        "folder": str(context.folder.absolute()),
        "resume": str(context.resume.absolute()),
        "run_folder": str(context.run_folder.absolute()) if context.run_folder else None,
        "data": context.data.model_dump(mode="json"),
        "seed": context.seed,
        "launch": context.launch.model_dump(mode="json"),
        "scheme": processes.scheme.model_dump(mode="json"),
    }


def run_processes(
    task: Path,
    processes: Processes,
    logs: Path,
    hear: Callable[[str], None],
    *,
    module: str = "compressor.engine.worker",
    over: threading.Event | None = None,
) -> int:
    """Start the processes of a task, have rank 0 heard, and give the launcher's exit code.

    `logs`: a folder for what they write to their standard errors. `module`: what they run on the
    task. `over`: set by another thread, it ends them.
    """
    threads = machine.threads(processes.here)
    with (logs / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_launcher(processes, logs), "-m", module, str(task)],
            env=environment(threads),
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            if over is not None:
                threading.Thread(target=_end_when, args=[over, process], daemon=True).start()
            assert process.stdout is not None
            for line in process.stdout:  # rank 0's progress; the others are quiet
                hear(line.decode(errors="replace").rstrip("\n"))
            return process.wait()
        finally:
            _end(process)


def _end_when(over: threading.Event, process: subprocess.Popen[bytes]) -> None:
    """Without asking: workers end with their launcher, slow to hear while it imports."""
    over.wait()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still there, and what it started. torch's launcher is asked first: it
    gives each worker a session of its own.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            workers = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGKILL)
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            process.wait()


def how_ended(code: int, logs: Path) -> str:
    """What is known of a worker that left no reason: the signal that ended it, its last lines."""
    found = last_lines(logs)
    killed = ended_by(code, (logs / "log").read_text(errors="replace"))
    how = killed if killed is not None else f"ended with code {code}"
    return f"a worker process {how}" + (f":\n{found}" if found else "")


def last_lines(logs: Path) -> str:
    """The end of what the first process that failed wrote: the others' errors follow from that."""
    lines = (logs / "log").read_text(errors="replace").strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback")]
    end = starts[1] if len(starts) > 1 else len(lines)
    return "\n".join(lines[:end][-LAST_LINES:])


def _launcher(processes: Processes, logs: Path) -> list[str]:
    """The command that starts a module in each process. Without a place of ours for its own logs
    torch's launcher leaves a folder in the system's for temporary files, each time.
    """
    if not processes.several:
        return [sys.executable]
    own_launcher = (sys.executable, "-m", "compressor.engine.launcher")
    own = logs / "launcher"
    if processes.config_file is None:
        # Accelerate's own command runs one process where `--cpu --num_processes 2` asks for two;
        # its Accelerator reads what torch's launcher sets all the same.
        return [
            *(*own_launcher, "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes.count), "--log-dir", str(own)),
        ]
    # Without a port of its own, two runs on one machine must not ask for the same.
    return [
        *(*own_launcher, "accelerate.commands.launch"),
        *("--config_file", str(processes.config_file), "--log_dir", str(own)),
        *("--num_processes", str(processes.count)),
        *("--main_process_port", str(processes.port or 0)),
    ]


def main() -> None:
    """Run the module that the first argument names, with the others."""
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
