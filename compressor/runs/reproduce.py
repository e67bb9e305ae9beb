"""`reproduce`: a run made again from what it recorded, in a store of its own, and held to it.

What decides a result is compared; how long it took is shown. The comparison is in `reproduction`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import RecipeError, nearest
from compressor.core.files import expand_home
from compressor.core.redaction import REDACTED
from compressor.engine.past_run import ENVIRONMENT, RECIPE, PastRun
from compressor.engine.provenance import Difference
from compressor.reports.key_diff import Cause, Side, cause, written
from compressor.reports.show import installed, packages
from compressor.runs.reproduction import Reproduction, reproduction

if TYPE_CHECKING:
    from compressor.core.console import Console
    from compressor.engine.plan import Plan


def into(run: PastRun, given: Path | None, outputs: Path) -> Path:
    """The outputs folder that a reproduction fills, made here; absolute.

    Raises RecipeError where it has anything in it: a store would answer instead of the stages.
    """
    from compressor.engine.run_folder import make_run_folder

    if given is None:
        return make_run_folder((run.outputs or outputs) / "reproductions" / run.recipe).resolve()
    folder = expand_home(given).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"--into: {given} is not empty; a run is made again in a fresh folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def recipe_values(run: PastRun, given: Sequence[str]) -> dict[str, Any]:
    """The run's resolved recipe, with what was redacted put in again from `given` KEY=VALUEs.

    Raises RecipeError that names what must still be given, and what is not to be.
    """
    if not run.values:
        raise RecipeError(f"{run.folder / RECIPE} is missing: there is nothing to run again")
    values = dict(run.values)
    hidden = list(_redacted(values))
    for item in given:
        path, mark, value = item.partition("=")
        if not mark or path not in hidden:
            what = nearest(path, hidden) if hidden else "nothing of this recipe was redacted"
            raise RecipeError(f"{item!r}: KEY=VALUE is for a secret that was redacted; {what}")
        values = _with(values, path.split("."), value)
    left = [path for path in hidden if path not in {item.partition("=")[0] for item in given}]
    if left:
        again = " ".join(f"{path}=…" for path in left)
        raise RecipeError(
            f"secrets are not recorded; give them again: compressor reproduce … {again}"
        )
    return values


def _redacted(value: Any, path: str = "") -> Iterator[str]:
    """Key paths of texts that hold what was redacted."""
    if isinstance(value, Mapping | list):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _redacted(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and REDACTED in value:
        yield path


def _with(value: Any, path: Sequence[str], new: str) -> Any:
    """`value` with the text at `path` replaced."""
    if not path:
        return new
    if isinstance(value, list):
        at = int(path[0])
        return [_with(v, path[1:], new) if i == at else v for i, v in enumerate(value)]
    return {**value, path[0]: _with(value[path[0]], path[1:], new)}


def surroundings(run: PastRun) -> list[str]:
    """Sentences on what is not as it was: versions, with the command that restores them; Python,
    processor, threads.
    """
    from compressor.core import machine

    found = []
    differ = installed(packages(run))
    for name, (before, after) in differ.items():
        found.append(f"{name} was {before or 'not installed'} and is {after or 'not installed'}")
    if command := format_pip_command({name: before for name, (before, _) in differ.items()}):
        found.append(f"this restores them: {command}")
    if not packages(run):
        found.append(f"{ENVIRONMENT} has no versions: they cannot be compared")
    recorded, now = run.environment.get("machine") or {}, machine.describe_machine()
    for name, before in recorded.items():
        if before != now.get(name):
            found.append(f"the machine's {name} was {before} and is {now.get(name)}")
            if name == "threads":
                found.append(f"OMP_NUM_THREADS={before} gives the same sums as then")
    return found


def format_pip_command(recorded: Mapping[str, str | None]) -> str | None:
    """Write the command that restores versions; None where there is none to restore.

    compressor itself is left out: one of that name on an index may be somebody else's.
    """
    wanted = [
        f"{name}=={version}"
        for name, version in recorded.items()
        if version is not None and name != "compressor"
    ]
    return shlex.join(["pip", "install", *wanted]) if wanted else None


def directory(run: PastRun) -> tuple[Path, str | None]:
    """Where relative paths of the recipe begin, and what there is to say of it."""
    recorded = run.environment.get("directory")
    if recorded is None:
        return Path.cwd(), "where it was started is not recorded; relative paths begin here"
    if not Path(recorded).is_dir():
        return Path.cwd(), f"{recorded}, where it was started, is gone; relative paths begin here"
    return Path(recorded), None


def reproduce(
    run: PastRun, folder: Path, values: Mapping[str, Any], console: Console
) -> Reproduction:
    """Run the recipe again with `folder` as its outputs, and compare what came out.

    Raises StageError where a stage fails, and RecipeError where the recipe is no longer valid.
    """
    from compressor.core.files import write_json
    from compressor.engine.plan import plan
    from compressor.engine.store.store import Store
    from compressor.recipe.compose import validate_values
    from compressor.runs.runner import execute

    start, note = directory(run)
    for text in (*surroundings(run), *([note] if note else [])):
        console.say(text)
    run = PastRun.read(run.folder.resolve())  # which a change of directory does not move
    with chdir(start):
        composed = validate_values({**values, "outputs": str(folder)}, run.recipe, (), ())
        store = Store.of(str(folder))
        planned = plan(composed, store)
        causes = changed(run, planned)
        for text in _began(causes):
            console.say(f"not what it was: {text}")
        made = execute(planned, store, None, console)
    found = reproduction(run, PastRun.read(made), causes)
    write_json(folder / "reproduction.json", found.as_json())
    return found


def changed(run: PastRun, planned: Plan) -> dict[str, Cause]:
    """Node → why its key is not the recorded one, before anything runs."""
    parts = {node.key: node.key_parts for node in planned.nodes if node.key is not None}
    names = {node.key: node.name for node in planned.nodes if node.key is not None}
    earlier, later = Side(run.key_parts, run.name_of), Side(parts.get, names.get)
    recorded = run.nodes()
    return {
        node.name: cause(node.name, recorded[node.name], node.key, earlier, later)
        for node in planned.nodes
        if node.key is not None and recorded.get(node.name, node.key) != node.key
    }


def _began(causes: Mapping[str, Cause]) -> list[str]:
    """Where differences of keys began, each once."""
    found: dict[str, None] = {}
    for name, each in causes.items():
        own: Sequence[Difference] = each.differences
        if own:
            found[f"{name}: {'; '.join(map(written, own))}"] = None
        elif each.unknown is not None:
            found[f"{name}: {each.unknown}"] = None
    return list(found)


@contextmanager
def kept_if_filled(folder: Path) -> Iterator[None]:
    """Remove a folder, made for what comes inside, that is still empty at the end."""
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()
