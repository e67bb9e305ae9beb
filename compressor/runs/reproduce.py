"""Run a recorded recipe again in a new store. `reproduction` compares what comes out."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import Any

from compressor.core import machine
from compressor.core.console import Console
from compressor.core.differences import flatten
from compressor.core.errors import RecipeError, nearest
from compressor.core.files import expand_home, write_json
from compressor.core.redaction import REDACTED
from compressor.engine.past_run import ENVIRONMENT, RECIPE, RunRecord
from compressor.engine.plan import Plan, plan
from compressor.engine.run_folder import make_run_folder
from compressor.engine.store.store import Store
from compressor.recipe.compose import validate_values
from compressor.reports.key_diff import Cause, Side, describe, find_cause
from compressor.reports.show import find_changed_versions
from compressor.runs.reproduction import Reproduction, compare_runs
from compressor.runs.runner import execute


@contextmanager
def make_outputs(run: RunRecord, into: Path | None, outputs: Path) -> Iterator[Path]:
    """Make the outputs folder that a reproduction fills; remove it where it stays empty.

    Raises RecipeError where it has anything in it: a store would answer instead of the stages.
    """
    if into is None:
        folder = make_run_folder((run.outputs or outputs) / "reproductions" / run.name).resolve()
    else:
        folder = expand_home(into).absolute()
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RecipeError(f"--into: {into} is not empty; a run is made again in a fresh folder")
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


def restore_recipe(run: RunRecord, secrets: Sequence[str]) -> dict[str, Any]:
    """Take the run's resolved recipe, with what was redacted put in again from KEY=VALUEs.

    Raises RecipeError with what is missing, or was not asked for.
    """
    if not run.recipe:
        raise RecipeError(f"{run.folder / RECIPE} is missing: there is nothing to run again")
    values = dict(run.recipe)
    leaves = flatten(values, in_lists=True)
    redacted = [path for path, leaf in leaves if isinstance(leaf, str) and REDACTED in leaf]
    missing = dict.fromkeys(redacted)
    for item in secrets:
        path, mark, value = item.partition("=")
        if not mark or path not in redacted:
            hint = nearest(path, redacted) if redacted else "nothing of this recipe was redacted"
            raise RecipeError(f"{item!r}: KEY=VALUE is for a secret that was redacted; {hint}")
        values = _replace(values, path.split("."), value)
        missing.pop(path, None)
    if missing:
        command = f"compressor reproduce … {' '.join(f'{path}=…' for path in missing)}"
        raise RecipeError(f"secrets are not recorded; give them again: {command}")
    return values


def _replace(value: Any, path: Sequence[str], text: str) -> Any:
    """Copy `value` with the text at `path` replaced."""
    if not path:
        return text
    if isinstance(value, list):
        index = int(path[0])
        return [_replace(v, path[1:], text) if i == index else v for i, v in enumerate(value)]
    return {**value, path[0]: _replace(value[path[0]], path[1:], text)}


def compare_environments(run: RunRecord) -> list[str]:
    """Say what is not as it was: versions, with pip's command, Python, processor, threads."""
    changes = find_changed_versions(run.packages)
    sentences = [
        f"{name} was {before or 'not installed'} and is {after or 'not installed'}"
        for name, (before, after) in changes.items()
    ]
    if command := format_pip_command({name: before for name, (before, _) in changes.items()}):
        sentences.append(f"this restores them: {command}")
    if not run.packages:
        sentences.append(f"{ENVIRONMENT} has no versions: they cannot be compared")
    recorded, now = run.environment.get("machine") or {}, machine.describe_machine()
    for name, before in recorded.items():
        if before != now.get(name):
            sentences.append(f"the machine's {name} was {before} and is {now.get(name)}")
            if name == "threads":
                sentences.append(f"OMP_NUM_THREADS={before} gives the same sums as then")
    return sentences


def format_pip_command(versions: Mapping[str, str | None]) -> str | None:
    """Write the command that restores versions, if any; `compressor` may be somebody else's."""
    known = {n: v for n, v in versions.items() if v is not None and n != "compressor"}
    return shlex.join(["pip", "install", *map("==".join, known.items())]) if known else None


def _find_directory(run: RunRecord) -> tuple[Path, list[str]]:
    """Find where relative paths of the recipe begin, and what there is to say of it."""
    recorded = run.environment.get("directory")
    if recorded is not None and Path(recorded).is_dir():
        return Path(recorded), []
    reason = "is not recorded" if recorded is None else f"({recorded}) is gone"
    return Path.cwd(), [f"where it was started {reason}; relative paths begin here"]


def reproduce(
    run: RunRecord, folder: Path, values: Mapping[str, Any], console: Console
) -> Reproduction:
    """Run the recipe again with `folder` as its outputs, and compare what came out.

    Raises StageError where a stage fails, and RecipeError where the recipe is no longer valid.
    """
    start, notes = _find_directory(run)
    for text in (*compare_environments(run), *notes):
        console.say(text)
    run = RunRecord.read(run.folder.resolve())  # which a change of directory does not move
    with chdir(start):
        composed = validate_values({**values, "outputs": str(folder)}, run.name, (), ())
        store = Store.of(str(folder))
        planned = plan(composed, store)
        causes = find_changed_keys(run, planned)
        for text in _list_origins(causes):
            console.say(f"not what it was: {text}")
        made = execute(planned, store, None, console)
    reproduction = compare_runs(run, RunRecord.read(made), causes)
    write_json(folder / "reproduction.json", reproduction.as_json())
    return reproduction


def find_changed_keys(run: RunRecord, planned: Plan) -> dict[str, Cause]:
    """Map nodes to why their keys are not the recorded ones, before anything runs."""
    nodes = {node.key: node for node in planned.nodes if node.key is not None}
    later = Side(
        lambda key: nodes[key].key_parts if key in nodes else None,
        lambda key: nodes[key].name if key in nodes else None,
    )
    recorded = run.nodes()
    return {
        node.name: find_cause(node.name, recorded[node.name], key, Side.of(run), later)
        for key, node in nodes.items()
        if recorded.get(node.name, key) != key
    }


def _list_origins(causes: Mapping[str, Cause]) -> Iterator[str]:
    """Say where differences of keys began."""
    for name, cause in causes.items():
        if reason := "; ".join(map(describe, cause.differences)) or cause.unknown:
            yield f"{name}: {reason}"
