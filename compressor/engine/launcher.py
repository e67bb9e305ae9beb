"""Start the processes that a stage runs in, wait for them, and explain why they failed.

Several are started by torch's launcher, or by Accelerate's where there is a config. What they do is
in `engine.worker`. None outlives its parent.
"""

from __future__ import annotations

import json
import os
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
from compressor.core.failures import explain_signal
from compressor.core.processes import child_environment
from compressor.engine.worker import FAILURE, RESULT, TASK
from compressor.stages.base import Context, Inputs, Stage
from compressor.training.launch_config import Processes

LAST_LINES = 12
"""Lines of a log that an error message shows."""
ENDING_SECONDS = 5.0
"""How long a launcher has to end its workers. One that waits for other machines hears nothing."""


@dataclass
class Session:
    """A run on several machines, as the first of them has it."""

    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells its tasks from those of older runs."""
    gone: set[int] = field(default_factory=set)
    """Machines that have come and ended."""
    missing: set[int] = field(default_factory=set)
    """Machines that have not come yet."""
    one_is_gone: threading.Event = field(default_factory=threading.Event)

    def explain_absence(self) -> str | None:
        """Say which machine a failure is due to, if any."""
        numbers = ", ".join(map(str, sorted(self.gone or self.missing)))
        if self.gone:
            return f"machine {numbers} has ended; see there, and run the same command again on each"
        return (
            f"machine {numbers} did not come; run the same command there, too" if numbers else None
        )


def launch(
    kind: str,
    stage: Stage,
    inputs: Inputs,
    context: Context,
    processes: Processes,
    session: Session | None = None,
) -> dict[str, Any] | None:
    """Run a stage in processes of its own, and return what `run_stage` returns.

    `session`: of a run on several machines. Raises StageError with a worker's or machine's reason.
    """
    folder = context.resume.with_suffix(".task").absolute()  # as `Store.task_folder`
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    task = describe_task(kind, stage, inputs, context, processes) | {
        "session": session.name if session else None,
        "id": uuid.uuid4().hex,
        "shared": processes.machines > 1,
    }
    partial = folder / f".{TASK}"
    partial.write_text(json.dumps(task), encoding="utf-8")
    partial.rename(folder / TASK)  # whole, since another machine may be waiting for it
    stop = session.one_is_gone if session else None
    code = run_processes(folder / TASK, processes, folder, context.progress.relay, stop=stop)
    if (failure := folder / FAILURE).is_file():
        raise StageError(json.loads(failure.read_text(encoding="utf-8"))["reason"])
    if code != 0 or not (folder / RESULT).is_file():
        absence = session.explain_absence() if session else None
        raise StageError(absence or explain_exit(code, folder))
    result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    context.metrics.update(result["metrics"])
    shutil.rmtree(folder, ignore_errors=True)
    model: dict[str, Any] | None = result["model"]
    return model


def describe_task(
    kind: str, stage: Stage, inputs: Inputs, context: Context, processes: Processes
) -> dict[str, Any]:
    """Describe all that a worker has to know, as JSON."""
    return {
        "kind": kind,
        "name": context.name,
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
    on_line: Callable[[str], None],
    *,
    module: str = "compressor.engine.worker",
    stop: threading.Event | None = None,
) -> int:
    """Run a module on a task in each process, and return the launcher's exit code.

    `logs`: a folder for their standard errors. `on_line` hears rank 0. `stop` kills them once set.
    """
    threads = machine.count_threads(processes.count_per_machine)
    with (logs / "log").open("wb") as log:
        process = subprocess.Popen(
            [*_launch_command(processes, logs), "-m", module, str(task)],
            env=child_environment(threads),
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            if stop is not None:
                threading.Thread(target=_kill_when, args=[stop, process], daemon=True).start()
            assert process.stdout is not None
            for line in process.stdout:  # rank 0's progress; the others print nothing
                on_line(line.decode(errors="replace").rstrip("\n"))
            return process.wait()
        finally:
            _end(process)


def _kill_when(stop: threading.Event, process: subprocess.Popen[bytes]) -> None:
    """Kill a launcher, which is slow to hear a request while it imports; its workers follow it."""
    stop.wait()
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and what it started.

    torch's launcher is asked first: it gives each worker a session of its own.
    """
    if process.poll() is not None:
        return
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


def explain_exit(code: int, logs: Path) -> str:
    """Say how a worker that left no reason ended: by which signal, and its last lines."""
    lines = last_lines(logs)
    how = explain_signal(code, (logs / "log").read_text(errors="replace"))
    return f"a worker process {how or f'ended with code {code}'}" + (f":\n{lines}" if lines else "")


def last_lines(logs: Path) -> str:
    """Read the end of what the first process that failed wrote: the others fail because of it."""
    lines = (logs / "log").read_text(errors="replace").strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback")]
    end = starts[1] if len(starts) > 1 else len(lines)
    return "\n".join(lines[:end][-LAST_LINES:])


def _launch_command(processes: Processes, logs: Path) -> list[str]:
    """Build the command that starts a module in each process.

    Launchers run below `core.processes`, which ends them with this process, and log into a folder
    of ours: torch's would leave one among the system's temporary files each time.
    """
    if not processes.is_distributed:
        return [sys.executable]
    beside_us = (sys.executable, "-m", "compressor.core.processes")
    if processes.config_file is None:
        # Accelerate's own command runs one process where `--cpu --num_processes 2` asks for two;
        # its Accelerator reads what torch's launcher sets all the same.
        return [
            *(*beside_us, "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(processes.world_size), "--log-dir", str(logs / "launcher")),
        ]
    # Without a port of its own, two runs on one machine must not ask for the same.
    return [
        *(*beside_us, "accelerate.commands.launch"),
        *("--config_file", str(processes.config_file), "--log_dir", str(logs / "launcher")),
        *("--num_processes", str(processes.world_size)),
        *("--main_process_port", str(processes.main_port or 0)),
    ]
