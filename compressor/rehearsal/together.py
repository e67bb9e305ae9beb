"""Stages that can use several processes, run again by two, and held to what one process gives.

Every kind of stage that the rehearsal has is run so, on its CPU with gloo, all in one pair of
processes, since starting them takes longer than the stages do. A training is compared without
dropout, of which each process draws its own: both ways of running then read a model whose config
has none. A report on so few rows is one batch: one process computes it, and the other has no share.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import yaml
from rich.console import Console

from compressor import launcher, machine, worker
from compressor.errors import StageError
from compressor.hyperparameters import Hyperparameters
from compressor.launching import Processes, processes
from compressor.plan import Node, Plan
from compressor.progress import Progress
from compressor.rehearsal.comparison import ROUNDING, compare
from compressor.rehearsal.dropout import settings_without_dropout, without_dropout
from compressor.rehearsal.pair import ENDED, LATE, STARTED
from compressor.stage import Context, Inputs, Stage
from compressor.store import MANIFEST, Store, write_json

GRACE_SECONDS, TIMES_LONGER = 60.0, 20.0
"""How long two processes may take, once they have imported all: in any case, and for each second of
one process."""
ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": ""}
"""What has torch and this package find no GPU: two processes may not share one."""


@dataclass(frozen=True)
class Verdict:
    """What came of one stage under two processes."""

    node: str
    seconds: float
    same: str = ""
    """What is equal, in words."""
    wrong: str = ""
    """Why it failed, or what is not."""


@dataclass
class _Task:
    """A stage that is run again, and where."""

    node: Node
    stage: Stage
    inputs: Inputs
    folder: Path
    seconds: float = 0.0
    one: Path | None = None
    """The folder that one process left."""
    metrics: Any = None


class Together:
    """The stages of an executed plan that are run again under two processes."""

    def __init__(self, plan: Plan, real: Plan, store: Store, folder: Path) -> None:
        """`real`: the recipe's own plan, whose `launch` names the scheme."""
        self.plan, self.store, self.folder = plan, store, folder.absolute()
        self.launch = real.composed.recipe.launch
        self.processes = self._two()
        self._list = self.folder / "tasks.json"
        self._code: Future[int] | None = None
        self._over = threading.Event()

    def __enter__(self) -> Self:
        """Start the two processes, which import torch while the rehearsal itself runs."""
        if any(self._distributed(node) for node in self.plan.nodes):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._code = Future[int]()
            thread = threading.Thread(target=self._hold, args=[self._code], daemon=True)
            try:
                thread.start()
            except BaseException:  # interrupted: what is not entered is not left either
                if thread.is_alive():
                    self.__exit__()
                raise
        return self

    def _hold(self, code: Future[int]) -> None:
        """Start the two processes, and wait for their end."""
        try:
            code.set_result(self._launch(self._list, self.processes, self.folder))
        except BaseException as error:  # noqa: BLE001  # told where the result is asked for
            code.set_exception(error)

    def __exit__(self, *_: object) -> None:
        """End the two processes, where they still wait for tasks; or work, and nobody asks."""
        if self._code is not None and not self._code.done():
            self._over.set()
            wait([self._code])

    def _launch(self, listed: Path, started: Processes, logs: Path) -> int:
        return launcher.run_processes(
            listed,
            started,
            logs,
            _hear,
            module="compressor.rehearsal.pair",
            variables=ON_THE_CPU,
            over=self._over,
        )

    @property
    def words(self) -> str:
        scheme = self.processes.scheme.kind
        return "2 processes" if scheme == "ddp" else f"2 processes, {scheme}"

    def _two(self) -> Processes:
        """Two processes on this machine, under the scheme that the recipe's launch names."""
        own = processes(self.launch)
        if own.config_file is None:
            return Processes(2)
        values = yaml.safe_load(own.config_file.read_text(encoding="utf-8"))
        here = {"num_processes": 2, "num_machines": 1, "machine_rank": 0}
        for key in ("main_process_ip", "main_process_port", "gpu_ids", "rdzv_backend"):
            values.pop(key, None)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / own.config_file.name
        path.write_text(yaml.safe_dump({**values, **here}), encoding="utf-8")
        return replace(
            own, count=2, machines=1, machine=0, address=None, port=None, config_file=path
        )

    def chosen(self) -> list[Node]:
        """One stage of each kind, and of each that differs in which settings it has, or in whether
        the model it takes has been pruned.
        """
        seen: dict[Any, Node] = {}
        for node in self.plan.nodes:
            if not self._distributed(node):
                continue
            folder = self._folder(node.model)
            masks = folder is not None and (folder / "masks.safetensors").is_file()
            pruned = masks and node.stage.changes_model
            settings = frozenset(
                name for name in node.stage.model_fields_set - _TELL_NOTHING
                if getattr(node.stage, name) != type(node.stage).model_fields[name].default
            )  # fmt: skip
            seen.setdefault((node.kind, settings, pruned), node)
        return list(seen.values())

    def _distributed(self, node: Node) -> bool:
        """Whether several processes would run a stage, and have something to do."""
        runs_in = "torch" if node.model is None else self.plan.node(node.model).stage.runs_in()
        idle = isinstance(node.stage, Hyperparameters) and node.stage.passes == 0
        return node.stage.in_parallel(runs_in) and not idle

    def _folder(self, name: str | None) -> Path | None:
        if name is None:
            return None
        key = self.plan.node(name).key
        assert key is not None
        return self.store.path(key)

    def run(self) -> list[Verdict]:
        """Run each stage that is chosen, and compare."""
        tasks = [self._task(number, node) for number, node in enumerate(self.chosen())]
        if not tasks:
            return []
        for task in tasks:
            self._alone(task)
        failure = self._start(tasks)
        return self._verdicts(tasks, failure)

    def _task(self, number: int, node: Node) -> _Task:
        folder = (self.folder / f"{number:02d}-{node.name}").absolute()
        stage, model = node.stage, self._folder(node.model)
        trains = stage.changes_model
        if trains:
            every = stage.model_dump(mode="json")  # a block's dropout may be its default
            stage = type(stage).model_validate(settings_without_dropout(every))
        if trains and model is not None:
            model = without_dropout(model, folder / "model")
        others = {role: self._folder(other) for role, other in node.artifacts.items()}
        artifacts = {role: path.absolute() for role, path in others.items() if path is not None}
        return _Task(node, stage, Inputs(model, artifacts), folder)

    def _context(self, task: _Task, place: str) -> Context:
        store = Store(task.folder / place / "store")
        recipe = self.plan.composed.recipe
        return Context(
            folder=store.begin("artifact"),
            resume=store.resume("artifact"),
            data=self.plan.data_for(task.node),
            seed=recipe.seed,
            launch=recipe.launch,
            progress=Progress(Console(), quiet=True),
            name=task.node.name,
        )

    def _alone(self, task: _Task) -> None:
        """What one process gives: in the rehearsal itself, where that had no dropout and no GPU."""
        started = time.monotonic()
        if not task.stage.changes_model and not machine.gpus():
            task.one = self._folder(task.node.name)
            assert task.one is not None
            manifest = json.loads((task.one / MANIFEST).read_text(encoding="utf-8"))
            task.metrics, task.seconds = manifest["metrics"], manifest["seconds"]
            return
        context = self._context(task, "one")
        if machine.gpus():
            written = self._written(task, context, Processes())
            listed = task.folder / "one.json"
            write_json(listed, {"tasks": [str(written)], "seconds": GRACE_SECONDS})
            self._launch(listed, Processes(), written.parent)
            result = json.loads((written.parent / worker.RESULT).read_text(encoding="utf-8"))
            task.metrics = result["metrics"]
        else:
            worker.run_stage(task.stage, task.inputs, context)
            task.metrics = json.loads(json.dumps(context.metrics))
        task.one, task.seconds = context.folder, time.monotonic() - started

    def _written(self, task: _Task, context: Context, started: Processes) -> Path:
        """The path of a task, for processes of its own to read."""
        values = launcher.task_of(
            task.node.kind, task.node.name, task.stage, task.inputs, context, started
        )
        path: Path = launcher.task_folder(context) / worker.TASK
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
        return path

    def _start(self, tasks: Sequence[_Task]) -> str:
        """Run the tasks in one pair of processes. Why they ended, if not by having done all."""
        paths = [self._written(t, self._context(t, "two"), self.processes) for t in tasks]
        limit = GRACE_SECONDS + TIMES_LONGER * sum(task.seconds for task in tasks)
        write_json(self._list, {"tasks": [str(path) for path in paths], "seconds": limit})
        assert self._code is not None, "there are tasks, for which they were started"
        code = self._code.result()
        if code == 0:
            return ""
        if any((path.parent / LATE).is_file() for path in paths):
            return f"two processes had not ended after {limit:.0f} s, and were ended"
        last = launcher.last_lines(self.folder)
        return f"a process ended with code {code}; {self.folder / 'log'} ends:\n{last}"

    def _verdicts(self, tasks: Sequence[_Task], failure: str) -> list[Verdict]:
        """What each task that was begun came to; those behind one that failed never were."""
        found = []
        for task in tasks:
            folder = task.folder / "two" / "store" / "partial"
            place = folder / "artifact.task"
            if len(list(place.glob(f"{ENDED}-*"))) == self.processes.count:
                result = json.loads((place / worker.RESULT).read_text(encoding="utf-8"))
                found.append(self._compared(task, folder / "artifact", result["metrics"]))
            elif (place / STARTED).is_file() or (failure and not found):
                reason = failure
                if (place / worker.FAILURE).is_file():
                    told = json.loads((place / worker.FAILURE).read_text(encoding="utf-8"))
                    reason = told["reason"]
                found.append(Verdict(task.node.name, task.seconds, wrong=reason))
                return found
        if failure:  # after the last task
            found.append(Verdict(tasks[-1].node.name, tasks[-1].seconds, wrong=failure))
        return found

    def _compared(self, task: _Task, two: Path, metrics: Any) -> Verdict:
        assert task.one is not None
        dtype = task.stage.dtype if isinstance(task.stage, Hyperparameters) else "float32"
        before = task.inputs.folder if task.stage.changes_model else None
        found = compare(task.one, two, before, (task.metrics, metrics), ROUNDING[dtype])
        name = task.node.name
        if found.wrong:
            return Verdict(name, task.seconds, wrong=f"not what one process gives: {found.wrong}")
        what = ", ".join(_told(found.files)) or "the same measurements"
        return Verdict(name, task.seconds, same=f"{self.words}: {what}")


_TELL_NOTHING = frozenset({"model", "models", "label", "against", *Hyperparameters.model_fields})


def _told(files: Sequence[str]) -> list[str]:
    """What the files that are the same mean to a reader."""
    known = {
        "model.safetensors": "same weights but for rounding",
        "model_with_blocks.safetensors": "same weights but for rounding",
        "masks.safetensors": "same masks",
        "losses.csv": "same losses",
        "predictions.csv": "same predictions",
    }
    told = [words for name, words in known.items() if name in files]
    other = [f"same {name}" for name in files if "/" not in name and name.endswith(".jsonl")]
    return [*told, *other]


def _hear(line: str) -> None:
    """Progress of a rehearsal's processes is told to nobody."""
    del line


def raise_first(verdicts: Sequence[Verdict]) -> None:
    """Raise StageError for the first that is wrong."""
    for verdict in verdicts:
        if verdict.wrong:
            raise StageError(f"stage {verdict.node!r}: {verdict.wrong}")
