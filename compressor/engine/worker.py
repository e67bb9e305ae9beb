"""What each of the processes does that run a stage: `compressor.engine.launcher` starts them.

The parent composes and plans once; workers read a frozen copy of what they need. Rank 0 alone
writes. A worker whose parent is gone ends itself, so that nobody writes beside the next run.
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
from compressor.core.failures import is_of_memory, told
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
    """Run a stage and save what it gives. What tables show of its model, or None without one."""
    checkpoint = stage.run(inputs, context)
    if checkpoint is None:
        return None
    checkpoint.require_finite()
    checkpoint.save(context.folder)
    return checkpoint.measure(context.folder)


def main(path: Path) -> int:
    """Run the task of a file, as one of several processes. See `begin` for how to leave."""
    return perform(path, begin())


def begin() -> Ranks:
    """Make this process one of those that run a stage. The caller must leave by `os._exit`.

    torch frees a process group while it holds the interpreter's lock, and waits for gloo's threads,
    of which one may wait for that lock to let go of a tensor: neither goes on, ever. So nothing
    here destroys the group, and the process ends without the interpreter's farewell.
    """
    end_with_parent()
    os.environ.pop(SHARDING, None)
    return Ranks.of_environment()


def perform(path: Path, ranks: Ranks) -> int:
    """Run the task of a file. What came of it is beside that file; 1 where the stage failed."""
    task = json.loads(path.read_text(encoding="utf-8"))
    watch = print_event if ranks.first else None
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
    try:
        if ranks.first:
            store = Store(context.folder.parent.parent)
            with store.lock(writer_lock(context.folder.name), lambda: None):
                model = run_stage(stage, inputs, context)
            result = {"model": model, "metrics": context.metrics}
            (path.parent / RESULT).write_text(json.dumps(result), encoding="utf-8")
        else:
            stage.run(inputs, context)
    except (StageError, Unreachable) as error:
        if ranks.first or not (path.parent / FAILURE).exists():
            _leave_reason(path.parent / FAILURE, str(error))
        return 1
    except Exception as error:
        reason = told(error, context.folder)
        if reason is None:
            raise
        more = oom_hint(stage) if is_of_memory(error) else ""
        _leave_reason(path.parent / FAILURE, f"{reason}{more}")
        raise
    return 0


def _leave_reason(path: Path, reason: str) -> None:
    """Tell the parent why this process ends. Another rank may do so at the same time, and the disk
    may be full: then it learns of it all the same, by what rank 0 prints.
    """
    try:
        write_json(path, {"reason": reason})
    except OSError:
        print(f"a worker process ends: {reason}", flush=True)


def leave_after(begin: Callable[[Path], int]) -> NoReturn:
    """Do what the file of this process's command says, and leave as `main` says that one must."""
    try:
        code = begin(Path(sys.argv[1]))
    except Exception:  # noqa: BLE001  # whatever it is, the process leaves the same way
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    leave_after(main)
