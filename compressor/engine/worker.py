"""Run a stage's task as one of several processes, which `compressor.engine.launcher` starts.

Workers read a frozen copy of the plan. Rank 0 alone writes. A worker whose parent is gone ends
itself, so that nobody writes beside the next run.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from pydantic import TypeAdapter

from compressor.core.console import Console
from compressor.core.errors import StageError, Unreachable
from compressor.core.failures import explain_error, is_out_of_memory
from compressor.core.files import write_json
from compressor.core.processes import end_with_parent
from compressor.core.progress import Progress, print_event
from compressor.core.ranks import Ranks
from compressor.data.sources import Data
from compressor.engine.store.store import Store, writer_lock
from compressor.stages.base import Context, Inputs, Stage, oom_hint, stage_class
from compressor.training.launch_config import Launch, Scheme

TASK, RESULT, FAILURE = "task.json", "result.json", "failure.json"
SHARDING = "ACCELERATE_USE_FSDP"
"""What Accelerate's launcher sets for its own sharding; ours is `compressor.training.parallel`."""


def run_stage(stage: Stage, inputs: Inputs, context: Context) -> dict[str, Any] | None:
    """Run a stage and save its model. Returns what tables show of that, or None without one."""
    checkpoint = stage.run(inputs, context)
    if checkpoint is None:
        return None
    checkpoint.require_finite()
    checkpoint.save(context.folder)
    return checkpoint.measure_sizes(context.folder)


def main(path: Path) -> int:
    """Run the task of a file, as one of several processes; leave as `join_ranks` says."""
    return run_task(path, join_ranks())


def join_ranks() -> Ranks:
    """Make this process one of those that run a stage. The caller must leave by `os._exit`.

    torch frees a process group while it holds the GIL and waits for gloo's threads, which may wait
    for the GIL: a deadlock. So nothing destroys the group, and no exit handlers run.
    """
    end_with_parent()
    os.environ.pop(SHARDING, None)
    return Ranks.from_environment()


def run_task(path: Path, ranks: Ranks) -> int:
    """Run the task of a file and leave the result beside it; returns 1 where the stage failed."""
    task = json.loads(path.read_text(encoding="utf-8"))
    watch = print_event if ranks.is_first else None
    progress = Progress(Console(file=sys.stdout), quiet=True, watch=watch)
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
        run_folder=Path(task["run_folder"]) if task["run_folder"] else None,
        name=task["name"],
        ranks=ranks,
        scheme=Scheme.model_validate(task["scheme"]),
    )
    failure = path.parent / FAILURE
    try:
        if ranks.is_first:
            store = Store(context.folder.parent.parent)
            with store.lock(writer_lock(context.folder.name), lambda: None):
                model = run_stage(stage, inputs, context)
            result = {"model": model, "metrics": context.metrics}
            (path.parent / RESULT).write_text(json.dumps(result), encoding="utf-8")
        else:
            stage.run(inputs, context)
    except (StageError, Unreachable) as error:
        if ranks.is_first or not failure.exists():
            _leave_reason(failure, str(error))
        return 1
    except Exception as error:
        if (reason := explain_error(error, context.folder)) is not None:
            hint = oom_hint(stage) if is_out_of_memory(error) else ""
            _leave_reason(failure, f"{reason}{hint}")
        raise
    return 0


def _leave_reason(path: Path, reason: str) -> None:
    """Leave the parent the reason why this process ends, in a file or, on a full disk, printed."""
    try:
        write_json(path, {"reason": reason})
    except OSError:
        print(f"a worker process ends: {reason}", flush=True)


def exit_after(run: Callable[[Path], int]) -> NoReturn:
    """Run what the file of this process's command says, and leave as `join_ranks` says."""
    try:
        code = run(Path(sys.argv[1]))
    except Exception:  # noqa: BLE001  # whatever it is, the process leaves the same way
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    exit_after(main)
