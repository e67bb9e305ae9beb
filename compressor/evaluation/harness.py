"""Tasks of EleutherAI's lm-evaluation-harness (`lm_eval`), which the extra `harness` installs.

Which there are, what decides their scores, and the scores of a decoder that torch runs.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from glob import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressor.core.errors import StageError, Unreachable, first_line, nearest
from compressor.core.files import expand_home, hash_file
from compressor.core.packages import find_version, suggest_install
from compressor.data import hub
from compressor.data.source_base import Reporter

BATCH_SIZE = 8
"""Requests that the model reads at once."""
SEED = 1234
"""That lm_eval's own command has."""
_OF_FILES = ("json", "csv", "text", "parquet", "arrow")
"""Builders of `datasets` that read files which a task names, and no data set of a hub."""


def check_tasks(
    tasks: Sequence[str], report: Reporter, report_unreached: Reporter, *, runs_code: bool
) -> None:
    """Report a missing package, tasks that are not there, and data sets that are out of reach."""
    if find_spec("lm_eval") is None:
        report("harness", f"lm_eval is not installed: {suggest_install('harness')}")
        return
    for number, task in enumerate(tasks):
        path = f"harness.{number}"
        if _is_path(task) and not expand_home(task).is_file():
            report(path, f"no file {task!r}")
        elif _is_path(task) and not runs_code:
            allow = "if you trust it, write `trust_remote_code: true` beside `harness`"
            report(path, f"{task!r} may run the code of that file; {allow}")
        elif (name := name_task(task)) not in (index := _open_manager(tuple(tasks)).task_index):
            known = f"says no `task: {name}`" if _is_path(task) else nearest(name, index)
            report(path, f"lm_eval has no task {name!r}; {known}")
        else:
            try:
                _identify_task(index, name)
            except Unreachable as error:
                report_unreached(path, str(error))
            except (ValueError, OSError) as error:
                report(path, str(error))


def identify_tasks(tasks: Sequence[str]) -> dict[str, Any]:
    """Identify what decides scores: lm_eval's release, commits of data sets, bytes of one's files.

    Raises ValueError, OSError, Unreachable.
    """
    if not tasks or find_spec("lm_eval") is None:
        return {}
    index = _open_manager(tuple(tasks)).task_index
    names = [name for name in map(name_task, tasks) if name in index]
    paths = [expand_home(task).absolute() for task in tasks if _is_path(task)]
    return {
        "lm_eval": find_version("lm_eval"),
        "tasks": {name: _identify_task(index, name) for name in names},
        "code": {path.stem: _identify_code(index, path) for path in paths if path.stem in index},
    }


def score_tasks(model: Any, tokenizer: Any, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compute each task's scores, and groups': task → metric (`acc`, `acc_stderr`) → number.

    A metric after another filter than none has its name too: `exact_match,strict-match`. Raises
    StageError for whatever lm_eval raises.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from transformers import set_seed

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is loaded
    names = [name_task(task) for task in tasks]
    try:
        # `simple_evaluate` does this too, and also describes the machine, for seconds.
        loaded = _open_manager(tuple(tasks)).load(names)
        for task in loaded["tasks"].values():
            task.set_fewshot_seed(seed=SEED)
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
        set_seed(SEED)
        random.seed(0)
        reader = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=BATCH_SIZE)
        results = evaluate(reader, loaded, log_samples=False)["results"]
    except Exception as error:
        raise StageError(f"lm_eval: {type(error).__name__}: {first_line(error)}") from error
    return {
        task: {
            key.removesuffix(",none"): float(value)
            for key, value in scores.items()
            if "," in key and isinstance(value, int | float) and math.isfinite(value)
        }
        for task, scores in results.items()
    }


def list_scores(tasks: Sequence[str]) -> list[str]:
    """List what tasks, and the tasks of groups, are scored by: `harness.arc_easy.acc`."""
    if not tasks or find_spec("lm_eval") is None:
        return []
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    index = _open_manager(tuple(tasks)).task_index
    names = []
    for task in (name for name in map(name_task, tasks) if name in index):
        for config in _list_configs(index, task):
            usual = DEFAULT_METRIC_REGISTRY.get(config.get("output_type", "generate_until"), [])
            metrics = [item["metric"] for item in config.get("metric_list") or ()] or usual
            filters = [item["name"] for item in config.get("filter_list") or ()] or ["none"]
            names += [_name_score(config["task"], m, f) for m in metrics for f in filters]
        group = index[task].cfg or {}
        for item in group.get("aggregate_metric_list") or ():
            filters = item.get("filter_list", "none")
            names += [_name_score(task, item["metric"], f) for f in _flatten(filters)]
    return names


def _name_score(task: str, metric: str, by: str) -> str:
    return f"harness.{task}.{metric}{'' if by == 'none' else f',{by}'}"


def list_short(metrics: Mapping[str, Any]) -> dict[str, float]:
    """List a stage's scores of tasks for tables: `arc_easy.acc`, without standard errors."""
    return {
        f"{task}.{name}": value
        for task, scores in metrics.get("harness", {}).items()
        for name, value in scores.items()
        if "_stderr" not in name
    }


def name_task(task: str) -> str:
    """Name a task: itself, or the file that has it."""
    return expand_home(task).stem if _is_path(task) else task


def _is_path(task: str) -> bool:
    return task.endswith(".yaml")


@cache
def _open_manager(tasks: tuple[str, ...]) -> Any:
    """Index the folders of the tasks' own files, else all: 14,000 files, which take 10 seconds."""
    from lm_eval import tasks as place
    from lm_eval.tasks import TaskManager

    root = Path(place.__file__).parent
    theirs = [expand_home(task).absolute().parent for task in tasks if _is_path(task)]
    names = {task for task in tasks if not _is_path(task)}
    files = [next(root.rglob(f"{escape(name)}.yaml"), None) for name in sorted(names)]
    folders = [*(file.parent for file in files if file), *theirs]
    manager = TaskManager(include_defaults=False, include_path=folders)
    if names <= {*manager.all_subtasks}:
        return manager
    return TaskManager(include_path=theirs)


def _identify_task(index: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Map each data set of a task, or of a group's tasks, to its commit, or a file's bytes."""
    parts: dict[str, Any] = {}
    for config in _list_configs(index, task):
        if config.get("unsafe_code"):
            raise ValueError(f"{config['task']!r} runs code that a model writes; leave it out")
        data = config.get("dataset_path")
        if data in _OF_FILES:
            named = (config.get("dataset_kwargs") or {}).get("data_files", ())
            parts |= {file: hash_file(Path(file)) for file in _flatten(named)}
        elif data is not None:
            parts[data] = hub.resolve_commit(data, "main", "dataset")
    return parts


def _list_configs(index: Mapping[str, Any], spec: Any) -> Iterator[Mapping[str, Any]]:
    """Give the config of a task, or of each task of a group or a tag."""
    given: Mapping[str, Any] = spec if isinstance(spec, Mapping) else {}
    entry = None if "group" in given else index.get(given["task"] if given else spec)
    config = {**(entry.cfg or {} if entry else {}), **given}
    inside = sorted(entry.tags) if entry and entry.cfg is None else config.get("task")
    if not isinstance(inside, list):
        yield config
        return
    for child in inside:
        yield from _list_configs(index, child)


def _flatten(value: Any) -> Iterator[str]:
    """Give the texts inside of lists and of mappings' values."""
    if isinstance(value, str):
        yield value
        return
    for item in value.values() if isinstance(value, Mapping) else value:
        yield from _flatten(item)


def _identify_code(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Hash what a task's file says, with what it includes, and the code beside it."""
    configs = repr([*_list_configs(index, path.stem)])
    beside = {file.name: hash_file(file) for file in sorted(path.parent.glob("*.py"))}
    return {"config": hashlib.sha256(configs.encode()).hexdigest(), **beside}
