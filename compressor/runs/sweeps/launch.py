"""Run points through a launcher of Hydra's, which decides where: here, in others, on a cluster."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich.markup import escape

from compressor.core.console import Console
from compressor.core.errors import EarlyStop, RecipeError, StageError, Unreachable, nearest
from compressor.core.failures import describe_error
from compressor.core.files import write_json, write_traceback
from compressor.core.packages import suggest_install
from compressor.core.printing import print_error
from compressor.core.processes import end_with, forget_launchers, is_running
from compressor.core.progress import Progress, Watch
from compressor.core.redaction import redact_text
from compressor.engine.keys import digest
from compressor.engine.past_run import EVENTS, RunRecord
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
class PointLauncher:
    """A launcher that is ready to run points into a sweep's folder."""

    launcher: Launcher
    folder: Path
    here: bool
    """Whether points run in this process, one after another, and can talk to the person."""
    jobs: int = 0
    """How many it was given so far."""

    def run(self, points: Sequence[Point]) -> None:
        """Run points, and return when all have ended. A point's failure is in its folder.

        Raises StageError where the launcher itself fails: a worker that was killed, say.
        """
        jobs = [
            [*allow_new_keys(point.overrides), f"hydra.sweep.subdir={quote_text(point.name)}"]
            for point in points
        ]
        try:
            results = self.launcher.launch(jobs, self.jobs)
        except KeyboardInterrupt:
            deadline = time.monotonic() + _KILLED_SECONDS
            for point in points:
                _report_killed(self.folder / point.name, deadline)
            raise
        except Exception as error:  # what a launcher's library raises
            hint = "what it had started may still run; the same command goes on from there"
            raise StageError(f"the launcher stopped: {describe_error(error)} ({hint})") from error
        finally:
            self.jobs += len(points)
        for point, result in zip(points, results, strict=False):
            if result.status == JobStatus.FAILED:  # outside of what its folder tells
                raise StageError(f"{point.name}: {describe_error(result._return_value)}")


def _report_killed(folder: Path, deadline: float) -> None:
    """End the events of a point whose process was killed, and write its report.

    Leaves alone what still runs at the `deadline`, and a cluster's job: it outlives the command.
    """
    events = [e for e in RunRecord(folder).events if e["event"] in {"run_started", "run_ended"}]
    process = (events[-1].get("process") or {}) if events else {}
    if process.get("host") != platform.node():  # or it has ended
        return
    while is_running(process):
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
    path = folder / EVENTS
    Progress(Console(), path, quiet=True).emit("run_ended", state="interrupted", error=None)
    write_reports(folder, "interrupted")


@contextmanager
def open_launcher(
    recipe: str,
    overrides: Sequence[str],
    settings: Sequence[str],
    folder: Path,
    base: ComposedRecipe,
    *,
    quiet: bool,
    digests: Mapping[str, str] | None = None,
    watch: Callable[[str], Watch] | None = None,
) -> Iterator[PointLauncher]:
    """Open the launcher that a recipe, or `settings` (overrides of `hydra`), names.

    `overrides`: those of any point; a recipe may not compose without. `digests` and `watch`: see
    `PointTask`. Raises RecipeError.
    """
    root, name = find_recipe(recipe)
    place = f"hydra.sweep.dir={quote_text(str(folder.absolute()))}"
    everything = [*overrides, *settings]
    with start_hydra(root) as loader:
        with _explain_problems(root, name, everything, base.sources):
            hydras = complete_overrides(name, [*everything, place])
            config = loader.load_configuration(name, hydras, run_mode=RunMode.MULTIRUN)
            here = config.hydra.launcher._target_ == _IN_THIS_PROCESS
            task = PointTask(recipe, base.recipe.outputs, digests or {}, here, quiet, watch)
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks(config)),
                task_function=task,
                config=config,
            )
        yield PointLauncher(launcher, folder, here)


@contextmanager
def _explain_problems(
    root: Path, name: str, overrides: Sequence[str], sources: Sequence[Source]
) -> Iterator[None]:
    """Turn what Hydra raises into a RecipeError: a setting or a launcher that is not there."""
    try:
        yield
    except COMPOSITION_ERRORS as error:
        missing = getattr(error, "missing_cfg_file", None) or ""
        launcher = missing.removeprefix("hydra/launcher/")
        if launcher in PLUGINS:
            cure = suggest_install(PLUGINS[launcher])
            raise RecipeError(f"hydra/launcher: {launcher!r} is not installed: {cure}") from error
        if launcher != missing:
            hint = nearest(launcher, LAUNCHERS)
            raise RecipeError(f"hydra/launcher: no launcher {launcher!r}; {hint}") from error
        problem = explain_composition_error(error, root, name, overrides, sources)
        raise RecipeError([problem]) from error


def read_swept(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Read `hydra.sweeper.params` of a recipe, as overrides."""
    params = _read_config(recipe, overrides, "hydra.sweeper.params")
    return [f"{key}={value}" for key, value in (params or {}).items()]


def is_search(recipe: str, overrides: Sequence[str]) -> bool:
    """Return whether a multirun of a recipe is a search: it has a `search`, valid or not."""
    return _read_config(recipe, overrides, "search") is not None


def _read_config(recipe: str, overrides: Sequence[str], key: str) -> Any:
    """Read what a multirun's config has at `key`, without the values that are swept."""
    refuse_overrides(overrides)
    _refuse_settings(overrides)
    root, name = find_recipe(recipe)
    with start_hydra(root) as loader, _explain_problems(root, name, overrides, ()):
        refuse_bad_defaults(root, name)
        refuse_code([Source(root / f"{name}.yaml", "")])
        hydras = complete_overrides(name, overrides)
        config = loader.load_configuration(name, hydras, run_mode=RunMode.MULTIRUN)
        value = OmegaConf.select(config, key)
        # Not resolved: planning a point refuses what a recipe may not read, in any of its files.
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _refuse_settings(overrides: Sequence[str]) -> None:
    """Raise RecipeError for what Hydra would take, and then neither it nor a sweep understands."""
    for text in overrides:
        key = override.key_or_group if (override := parse_override(text)) else text
        if key.startswith("hydra.sweeper.params"):
            raise RecipeError(f"{text!r} is for a recipe: here give the key itself, as in seed=1,2")
        if key in {"hydra.launcher", "hydra.sweeper"}:
            meant = text.lstrip("+~").replace(".", "/", 1)
            raise RecipeError(f"{text!r}: is chosen with a slash: {meant}")


@dataclass(frozen=True)
class PointTask:
    """Runs one point, wherever it was launched. What came of it is in its folder."""

    recipe: str
    outputs: str
    digests: Mapping[str, str]
    """Name of a point → the digest of its values; a point fails whose recipe was edited since."""
    here: bool
    """Whether it runs in the command's process, and not beside other points."""
    quiet: bool
    watch: Callable[[str], Watch] | None = None
    """Makes what hears the events of the point with a name."""
    cwd: str = field(default_factory=lambda: str(Path.cwd()))
    command: int = field(default_factory=os.getpid)
    """The process that the sweep was asked of; what it started itself ends with it."""

    def __call__(self, _: DictConfig) -> None:
        """Run the point that Hydra's configuration names, after any job that still runs it."""
        forget_launchers()
        os.chdir(self.cwd)  # a launcher's worker may have begun elsewhere
        if os.getppid() == self.command:  # joblib's, of which nothing else would say that nobody
            end_with(self.command)  # waits
        settings = HydraConfig.get()
        folder = Path(settings.runtime.output_dir)
        overrides = tuple(str(item).removeprefix("++") for item in settings.overrides.task)
        message = f"{folder.name}: a job of an earlier command still runs this point; waiting"
        key = f"point-{digest(str(folder.resolve()))}"
        with (
            Store.of(self.outputs).lock(key, lambda: print(message, file=sys.stderr, flush=True)),
            self._open_console(folder) as (console, errors),
        ):
            self._run(folder, overrides, console, errors)

    @contextmanager
    def _open_console(self, folder: Path) -> Iterator[tuple[Console, TextIO]]:
        """Open what a point and its errors are printed on: beside other points, a log."""
        if self.here:
            console = Console(width=None if sys.stdout.isatty() else 200, quiet=self.quiet)
            console.rule(escape(folder.name), style="dim")
            yield console, sys.stderr
            return
        with (folder / LOG).open("w", encoding="utf-8", buffering=1) as log:
            yield Console(file=log, width=200), log

    def _run(
        self, folder: Path, overrides: tuple[str, ...], console: Console, errors: TextIO
    ) -> None:
        started = time.monotonic()
        outcome: dict[str, Any] = {"error": None, "pruned": None}
        (folder / OUTCOME).unlink(missing_ok=True)
        try:
            self._execute(folder, overrides, console)
        except EarlyStop as reason:
            outcome["pruned"] = str(reason)
            console.say(f"stopped early: {reason}")
        except Exception as error:  # noqa: BLE001  # a point that fails does not stop the others
            if isinstance(error, RecipeError | StageError | Unreachable):
                outcome["error"] = redact_text(str(error))
            else:
                outcome["error"] = describe_error(error)
                write_traceback(folder / "error.txt", error)
            print_error(outcome["error"], errors)
        outcome["overrides"] = list(overrides)
        outcome["seconds"] = round(time.monotonic() - started, 3)
        write_json(folder / OUTCOME, outcome)

    def _execute(self, folder: Path, overrides: tuple[str, ...], console: Console) -> None:
        composed = compose(self.recipe, overrides)
        planned = self.digests.get(folder.name)
        if planned is not None and digest(composed.values) != planned:
            raise RecipeError(
                "the recipe has changed since the sweep began: give the command again"
            )
        store = Store.of(composed.recipe.outputs)
        watch = self.watch(folder.name) if self.watch is not None else None
        execute(plan(composed, store), store, folder, console, quiet=self.quiet, watch=watch)
