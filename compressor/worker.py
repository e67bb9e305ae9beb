"""Where a stage really runs: in this process, or in several that Accelerate's launcher starts.

The parent composes and plans once; workers read a frozen copy of what they need. Rank 0 alone
writes. A worker whose parent is gone ends itself, so that nobody writes beside the next run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.console import Console

from compressor import machine
from compressor.data.sources import Data
from compressor.errors import StageError, Unreachable
from compressor.processes import environment
from compressor.progress import Progress, print_event
from compressor.stage import Context, Inputs, Launch, Stage, stage_class
from compressor.store import Store

TASK, RESULT, FAILURE = "task.json", "result.json", "failure.json"
PARENT_POLL_SECONDS = 0.2
ENDING_SECONDS = 45.0
"""How long a launcher has to end its workers, which torch's kills after 30."""


def writer_lock(key: str) -> str:
    """The name of the lock that the one process that writes an artifact's files holds."""
    return f"{key}.writer"


def run_stage(stage: Stage, inputs: Inputs, context: Context) -> dict[str, Any] | None:
    """Run a stage and save what it gives. What tables show of its model, or None without one."""
    checkpoint = stage.run(inputs, context)
    if checkpoint is None:
        return None
    checkpoint.save(context.folder)
    return checkpoint.measure(context.folder)


def launch(
    kind: str, name: str, stage: Stage, inputs: Inputs, context: Context
) -> dict[str, Any] | None:
    """Run a stage in processes of its own: `context.launch`'s, or one where it is not distributed.

    Returns what `run_stage` does. Raises StageError with a worker's reason.
    """
    task_folder = context.resume.with_suffix(".task")
    task_folder.mkdir(parents=True, exist_ok=True)
    for old in task_folder.iterdir():
        old.unlink()
    task = {
        "kind": kind,
        "name": name,
        "stage": stage.model_dump(mode="json"),
        "model_folder": str(inputs.folder) if inputs.folder else None,
        "artifacts": {role: str(path) for role, path in inputs.artifacts.items()},
        "folder": str(context.folder),
        "resume": str(context.resume),
        "run_folder": str(context.run_folder),
        "quiet": context.progress.quiet,
        "data": context.data.model_dump(mode="json"),
        "seed": context.seed,
        "launch": context.launch.model_dump(mode="json"),
        "parent": os.getpid(),
    }
    path = task_folder / TASK
    path.write_text(json.dumps(task), encoding="utf-8")
    process = subprocess.Popen(
        [*_launcher(stage, context.launch), "-m", "compressor.worker", str(path)],
        env=environment(machine.threads(context.launch.num_processes if stage.distributed else 1)),
        stdout=subprocess.PIPE,
        stderr=(log := (task_folder / "log").open("wb")),
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:  # rank 0's progress; the others are quiet
            context.progress.relay(line.decode(errors="replace"))
        code = process.wait()
    finally:
        _end(process)
        log.close()
    if (failure := task_folder / FAILURE).is_file():
        raise StageError(json.loads(failure.read_text(encoding="utf-8"))["reason"])
    if code != 0 or not (task_folder / RESULT).is_file():
        last = (task_folder / "log").read_text(errors="replace").strip().splitlines()[-12:]
        raise StageError(f"a worker process ended with code {code}:\n" + "\n".join(last))
    result = json.loads((task_folder / RESULT).read_text(encoding="utf-8"))
    context.metrics.update(result["metrics"])
    for old in task_folder.iterdir():
        old.unlink()
    task_folder.rmdir()
    model: dict[str, Any] | None = result["model"]
    return model


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process that is still there, and what it started. torch's launcher has to be asked:
    it gives each worker a session of its own.
    """
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _launcher(stage: Stage, launch: Launch) -> list[str]:
    if not stage.distributed:
        return [sys.executable]
    if launch.config_file:
        return [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            launch.config_file,
        ]
    # Accelerate's own command runs one process where `--cpu --num_processes 2` asks for two; its
    # Accelerator reads what torch's launcher sets all the same.
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(launch.num_processes)),
    ]


def started_by_launcher() -> str | None:
    """The launcher that started this process, where it was one of those that start many."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "torchrun"
    if "ACCELERATE_MIXED_PRECISION" in os.environ or "ACCELERATE_USE_CPU" in os.environ:
        return "accelerate launch"
    return None


def _end_with(parent: int) -> None:
    """End this process when `parent` ends, however it ends."""

    def watch() -> None:
        while True:
            time.sleep(PARENT_POLL_SECONDS)
            try:
                os.kill(parent, 0)
            except ProcessLookupError:
                os._exit(1)
            state = Path(f"/proc/{parent}/stat")
            if state.parent.parent.joinpath("self").exists() and _is_zombie(state):
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_zombie(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True


def main(path: Path) -> int:
    """Run the task of a file, as one of several processes. The caller must leave by `os._exit`.

    torch frees a process group while it holds the interpreter's lock, and waits for gloo's threads,
    of which one may wait for that lock to let go of a tensor: neither goes on, ever. So nothing
    here destroys the group, and the process ends without the interpreter's farewell.
    """
    task = json.loads(path.read_text(encoding="utf-8"))
    _end_with(task["parent"])
    rank = int(os.environ.get("RANK", "0"))
    watch = print_event if rank == 0 else None
    quiet = task["quiet"] or rank != 0
    progress = Progress(Console(file=sys.stdout), quiet=quiet, watch=watch)
    stage = stage_class(task["kind"]).model_validate(task["stage"])
    model_folder = task["model_folder"]
    inputs = Inputs(
        Path(model_folder) if model_folder else None,
        {role: Path(folder) for role, folder in task["artifacts"].items()},
    )
    context = Context(
        folder=Path(task["folder"]),
        resume=Path(task["resume"]),
        data=TypeAdapter(Data).validate_python(task["data"]),
        seed=task["seed"],
        launch=Launch.model_validate(task["launch"]),
        progress=progress,
        run_folder=Path(task["run_folder"]),
        name=task["name"],
    )
    try:
        if rank == 0:
            store = Store(context.folder.parent.parent)
            with store.lock(writer_lock(context.folder.name), lambda: None):
                model = run_stage(stage, inputs, context)
            result = {"model": model, "metrics": context.metrics}
            (path.parent / RESULT).write_text(json.dumps(result), encoding="utf-8")
        else:
            stage.run(inputs, context)
    except (StageError, Unreachable) as error:
        if rank == 0 or not (path.parent / FAILURE).exists():
            failure = json.dumps({"reason": str(error)})
            (path.parent / FAILURE).write_text(failure, encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    try:
        exit_code = main(Path(sys.argv[1]))
    except Exception:  # noqa: BLE001  # whatever it is, the process leaves the same way
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
