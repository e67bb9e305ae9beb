"""Points through a launcher of Hydra's: in this process, in others, on a cluster.

What runs a point is `run_point`; where it runs decides the launcher that the command names.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from hydra._internal.callbacks import Callbacks
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from compressor.core.console import Console
from compressor.core.errors import RecipeError, StageError, Stopped, Unreachable, nearest
from compressor.core.failures import describe_error
from compressor.core.files import write_json, write_traceback
from compressor.core.packages import installing
from compressor.core.printing import print_error
from compressor.core.processes import end_with, forget_launchers, is_running
from compressor.core.progress import Progress, Watch, parsed_event
from compressor.core.redaction import redact_text
from compressor.engine.keys import digest
from compressor.engine.plan import plan
from compressor.engine.run_folder import OUTCOME
from compressor.engine.store.store import Store
from compressor.recipe.compose import ComposedRecipe, compose
from compressor.recipe.files import Source, find_recipe, refuse_bad_defaults, refuse_code
from compressor.recipe.hydra import (
    COMPOSITION_ERRORS,
    allow_new_keys,
    complete_overrides,
    explain_composition_error,
    parse_override,
    quote_text,
    refuse_overrides,
    start_hydra,
)
from compressor.reports.write import write_reports
from compressor.runs.runner import execute
from compressor.runs.sweeps.points import Point

LOG = "log.txt"
LAUNCHERS = ("basic", "processes", "slurm", "ray_local")
"""Hydra's own and the checked-in ones; those of its plugins are valid too."""
PLUGINS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}
"""A plugin's launcher → the extra of this package that installs it."""
_KILLED_SECONDS = 3.0
"""How long a process that was killed may take to be gone."""
_IN_THIS_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@dataclass
class Launched:
    """A launcher that is ready to run points into a sweep's folder."""

    launcher: Launcher
    folder: Path
    here: bool
    """Whether points run in this process, one after another, and can talk to the person."""
    started: int = 0

    def run(self, points: Sequence[Point]) -> None:
        """Run points, and come back when all have ended. A point's failure is in its folder.

        Raises StageError where the launcher itself fails: a worker that was killed, say. Where it
        is interrupted, and has ended the processes of points with it, these have their reports.
        """
        jobs = [
            [*allow_new_keys(point.overrides), f"hydra.sweep.subdir={quote_text(point.name)}"]
            for point in points
        ]
        try:
            ended = self.launcher.launch(jobs, self.started)
        except KeyboardInterrupt:
            deadline = time.monotonic() + _KILLED_SECONDS
            for point in points:
                _tell_of_killed(self.folder / point.name, deadline)
            raise
        except Exception as error:  # what a launcher's library raises
            reason = describe_error(error)
            more = "what it had started may still run; the same command goes on from there"
            raise StageError(f"the launcher stopped: {reason} ({more})") from error
        finally:
            self.started += len(points)
        for point, job in zip(points, ended, strict=False):
            if job.status == JobStatus.FAILED:  # outside of what its folder tells
                problem = job._return_value
                raise StageError(f"{point.name}: {describe_error(problem)}")


def _tell_of_killed(folder: Path, deadline: float) -> None:
    """End the events of a point whose process was killed, and write its report. A cluster's job,
    which does not end with the command, is left alone, as is one that runs after the `deadline`.
    """
    path = folder / "events.jsonl"
    lines = path.read_bytes().splitlines() if path.is_file() else []
    events = [each for each in map(parsed_event, lines) if each is not None]
    states = {"run_started", "run_ended"}
    last = next((each for each in reversed(events) if each["event"] in states), None)
    if last is None or last["event"] == "run_ended":
        return
    process = last.get("process") or {}
    if process.get("host") != platform.node():
        return
    while is_running(process):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    Progress(Console(), path, quiet=True).event("run_ended", state="interrupted", error=None)
    write_reports(folder, "interrupted")


@contextmanager
def launched(
    recipe: str,
    overrides: Sequence[str],
    settings: Sequence[str],
    folder: Path,
    base: ComposedRecipe,
    *,
    quiet: bool,
    planned: Mapping[str, str] | None = None,
    watch: Callable[[str], Watch] | None = None,
) -> Iterator[Launched]:
    """The launcher that a recipe, or `settings` (overrides of `hydra`), names.

    `overrides`: of any one point, since a recipe may not compose without. `planned`: the digests of
    points' values, see `run_point`. `watch`: from a point's name, what hears its events where it
    runs; it travels there. Raises RecipeError.
    """
    root, name = find_recipe(recipe)
    place = f"hydra.sweep.dir={quote_text(str(folder.absolute()))}"
    every = [*overrides, *settings]
    with start_hydra(root) as loader:
        with _problems_told(root, name, every, base.sources):
            given = complete_overrides(name, [*every, place])
            config = loader.load_configuration(name, given, run_mode=RunMode.MULTIRUN)
            here = config.hydra.launcher._target_ == _IN_THIS_PROCESS
            task = partial(
                run_point,
                recipe=recipe,
                planned=planned or {},
                outputs=base.recipe.outputs,
                cwd=str(Path.cwd()),
                command=os.getpid(),
                here=here,
                quiet=quiet,
                watch=watch,
            )
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks(config)),
                task_function=task,
                config=config,
            )
        yield Launched(launcher, folder, here)


@contextmanager
def _problems_told(
    root: Path, name: str, overrides: Sequence[str], sources: Sequence[Source]
) -> Iterator[None]:
    """Turn what Hydra raises into a RecipeError: a setting or a launcher that is not there."""
    try:
        yield
    except COMPOSITION_ERRORS as error:
        missing = getattr(error, "missing_cfg_file", None) or ""
        launcher = missing.removeprefix("hydra/launcher/")
        if launcher in PLUGINS:
            cure = installing(PLUGINS[launcher])
            raise RecipeError(f"hydra/launcher: {launcher!r} is not installed: {cure}") from error
        if launcher != missing:
            hint = nearest(launcher, LAUNCHERS)
            raise RecipeError(f"hydra/launcher: no launcher {launcher!r}; {hint}") from error
        raise RecipeError(
            [explain_composition_error(error, root, name, overrides, sources)]
        ) from error


def swept_in_recipe(recipe: str, overrides: Sequence[str]) -> list[str]:
    """`hydra.sweeper.params` of a recipe, as overrides."""
    params = _select(recipe, overrides, "hydra.sweeper.params")
    return [f"{key}={value}" for key, value in (params or {}).items()]


def is_search(recipe: str, overrides: Sequence[str]) -> bool:
    """Whether a multirun of a recipe is a search: it has a `search`, valid or not."""
    return _select(recipe, overrides, "search") is not None


def _select(recipe: str, overrides: Sequence[str], key: str) -> Any:
    """What a multirun's config has at `key`, without the values that are swept."""
    refuse_overrides(overrides)
    _refuse_settings(overrides)
    root, name = find_recipe(recipe)
    with start_hydra(root) as loader, _problems_told(root, name, overrides, ()):
        refuse_bad_defaults(root, name)
        refuse_code([Source(root / f"{name}.yaml", "")])
        given = complete_overrides(name, overrides)
        config = loader.load_configuration(name, given, run_mode=RunMode.MULTIRUN)
        found = OmegaConf.select(config, key)
        # Not resolved: planning a point refuses what a recipe may not read, in any of its files.
        return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def _refuse_settings(overrides: Sequence[str]) -> None:
    """Raise RecipeError for what Hydra would take, and then neither it nor a sweep understands."""
    for item in overrides:
        key = found.key_or_group if (found := parse_override(item)) else item
        if key.startswith("hydra.sweeper.params"):
            raise RecipeError(f"{item!r} is for a recipe: here give the key itself, as in seed=1,2")
        if key in {"hydra.launcher", "hydra.sweeper"}:
            meant = item.lstrip("+~").replace(".", "/", 1)
            raise RecipeError(f"{item!r}: is chosen with a slash: {meant}")


def run_point(
    _: DictConfig,
    *,
    recipe: str,
    planned: Mapping[str, str],
    outputs: str,
    cwd: str,
    command: int,
    here: bool,
    quiet: bool,
    watch: Callable[[str], Watch] | None = None,
) -> None:
    """Run one point, wherever it was launched. What came of it is in its folder.

    Beside other points it writes to a log of its own. A job of a sweep whose command was killed may
    still run this very point: it is waited for. `planned`: of points, by name, the digest of their
    values; one that has others now, since a file of the recipe was changed, fails. `command`: the
    process that the sweep was asked of; what it started itself ends with it.
    """
    forget_launchers()
    os.chdir(cwd)  # a launcher's worker may have begun elsewhere
    if os.getppid() == command:  # joblib's, of which nothing else would say that nobody waits
        end_with(command)
    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    store = Store.of(outputs)
    say = f"{folder.name}: a job of an earlier command still runs this point; waiting for it"
    key = f"point-{digest(str(folder.resolve()))}"
    with store.lock(key, lambda: print(say, file=sys.stderr, flush=True)):
        expected = planned.get(folder.name)
        _run_in(folder, recipe, settings, expected, here=here, quiet=quiet, watch=watch)


def _run_in(
    folder: Path,
    recipe: str,
    settings: HydraConf,
    planned: str | None,
    *,
    here: bool,
    quiet: bool,
    watch: Callable[[str], Watch] | None,
) -> None:
    overrides = tuple(str(item).removeprefix("++") for item in settings.overrides.task)
    if here:
        console = Console(width=None if sys.stdout.isatty() else 200, quiet=quiet)
        console.rule(escape(folder.name), style="dim")
        _run(recipe, overrides, planned, folder, console, sys.stderr, quiet=quiet, watch=watch)
        return
    with (folder / LOG).open("w", encoding="utf-8", buffering=1) as log:
        console = Console(file=log, width=200)
        _run(recipe, overrides, planned, folder, console, log, quiet=quiet, watch=watch)


def _run(
    recipe: str,
    overrides: tuple[str, ...],
    planned: str | None,
    folder: Path,
    console: Console,
    errors: TextIO,
    *,
    quiet: bool,
    watch: Callable[[str], Watch] | None,
) -> None:
    started = time.monotonic()
    error = pruned = None
    (folder / OUTCOME).unlink(missing_ok=True)
    try:
        composed = compose(recipe, overrides)
        if planned is not None and digest(composed.values) != planned:
            raise RecipeError(
                "the recipe has changed since the sweep began: give the command again"
            )
        store = Store.of(composed.recipe.outputs)
        hears = watch(folder.name) if watch is not None else None
        execute(plan(composed, store), store, folder, console, quiet=quiet, watch=hears)
    except Stopped as reason:
        pruned = str(reason)
        console.say(f"stopped early: {pruned}")
    except Exception as caught:  # noqa: BLE001  # a point that fails does not stop the others
        error = redact_text(str(caught))
        if not isinstance(caught, RecipeError | StageError | Unreachable):
            error = describe_error(caught)
            write_traceback(folder / "error.txt", caught)
        print_error(error, errors)
    seconds = round(time.monotonic() - started, 3)
    outcome: dict[str, Any] = {
        "overrides": list(overrides),
        "error": error,
        "pruned": pruned,
        "seconds": seconds,
    }
    write_json(folder / OUTCOME, outcome)
