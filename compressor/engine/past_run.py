"""Read the folder of a run or of a sweep's point, and find such folders. Writes nothing.

A folder may be damaged, half written, or of an earlier version: errors name the file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.core.errors import DamagedArtifact, RecipeError, Unreachable, nearest
from compressor.core.files import expand_home
from compressor.core.processes import is_running
from compressor.core.progress import parse_event
from compressor.engine.provenance import ASKED
from compressor.engine.run_folder import ABOUT, OUTCOME
from compressor.engine.store.store import Store
from compressor.stages.base import stage_kinds

RECIPE, METRICS = "recipe.yaml", "metrics.json"
ENVIRONMENT, EVENTS = "environment.json", "events.jsonl"
_TIME = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?")
"""The name that `run_folder.make_run_folder` gives."""
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built

Record = dict[str, Any]
KeyParts = Mapping[str, Any]
End = Literal["finished", "failed", "interrupted", "running", "stopped early"]
_ENDS: Mapping[str, End] = {
    "done": "finished",
    "failed": "failed",
    "interrupted": "interrupted",
    "stopped": "stopped early",
}
"""What `run_ended` says → what a person reads."""


class _MetricsRecord(BaseModel):
    """What is relied on of a record in `metrics.json`."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    stage: str
    label: str
    model: str | None
    key: str
    cached: bool
    parameters: int | None
    nonzero: int | None
    nonzero_ratio: float | None
    bytes: int | None
    seconds: float
    made_in_seconds: float
    metrics: dict[str, Any]


@dataclass(frozen=True)
class RunStatus:
    """How a run ended, by its events."""

    ended: End
    stage: str | None = None
    """The stage that failed, or was under way."""
    reason: str | None = None

    def __str__(self) -> str:
        where = f" in {self.stage}" if self.stage is not None else ""
        return f"{self.ended}{where}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True)
class RunRecord:
    """One run's folder. Each file is read when it is first asked for: RecipeError names it."""

    folder: Path

    @classmethod
    def read(cls, folder: Path, *values: Any, **named_values: Any) -> Self:
        """Read a run's folder whole. Raises RecipeError that says what is wrong with which file.

        `values` are of a class that adds fields.
        """
        if not any((folder / name).is_file() for name in (RECIPE, METRICS)):
            exists = "it has neither metrics.json nor recipe.yaml"
            reason = exists if folder.is_dir() else "there is no such folder"
            raise RecipeError(f"{folder} is no run's directory: {reason}")
        run = cls(folder, *values, **named_values)
        _ = run.records, run.environment, run.recipe, run.events, run.request
        return run

    @cached_property
    def records(self) -> list[Record]:
        """The records of the stages that ended; empty where none did."""
        return _read_records(self.folder / METRICS)

    @cached_property
    def environment(self) -> dict[str, Any]:
        return _read_mapping(self.folder / ENVIRONMENT)

    @cached_property
    def request(self) -> dict[str, Any]:
        """What `provenance.describe_request` said; empty in runs of earlier versions."""
        return _read_mapping(self.folder / ASKED)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe, secrets redacted; empty where there is none."""
        return _read_mapping(self.folder / RECIPE, _read_yaml)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The events, without what a killed process may leave: half a line."""
        return [event for event in map(parse_event, self._event_lines()) if event is not None]

    def _event_lines(self) -> list[bytes]:
        path = self.folder / EVENTS
        return path.read_bytes().splitlines() if path.is_file() else []

    def require_records(self) -> None:
        """Raise RecipeError where no stage has ended."""
        if not self.records:
            missing = "is empty" if (self.folder / METRICS).is_file() else "is missing"
            raise RecipeError(f"{self.folder}: metrics.json {missing}: no stage of this run ended")

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.recipe.get("name") or self.folder.absolute().parent.name)

    @cached_property
    def start_time(self) -> datetime:
        """When it was started, in local time with its zone."""
        try:
            return datetime.fromisoformat(self.environment["started"]).astimezone()
        except (KeyError, TypeError, ValueError, RecipeError):
            return datetime.fromtimestamp(self.folder.stat().st_mtime).astimezone()

    @property
    def packages(self) -> dict[str, str | None]:
        """The versions that it recorded."""
        packages = self.environment.get("packages")
        return packages if isinstance(packages, dict) else {}

    @property
    def status(self) -> RunStatus:
        """How it ended, or that it runs, since its last start: a sweep's point may have several."""
        kinds = [event.get("event") for event in self.events]
        starts = [index for index, kind in enumerate(kinds) if kind == "run_started"]
        events = self.events[starts[-1] :] if starts else []
        last: dict[str | None, dict[str, Any]] = {event.get("event"): event for event in events}
        if (ended := last.get("run_ended")) is not None:
            failed = last.get("stage_failed", {})
            end = _ENDS.get(str(ended.get("state")), "failed")
            if end == "finished":
                return RunStatus(end)
            return RunStatus(end, failed.get("name"), failed.get("error") or ended.get("error"))
        stage, done = last.get("stage_started", {}).get("name"), last.get("stage_ended", {})
        process = last.get("run_started", {}).get("process")
        try:
            runs = process is not None and is_running(process)
        except (KeyError, TypeError, ValueError):  # a damaged line
            runs = False
        under_way = stage if stage != done.get("name") else None
        return RunStatus("running" if runs else "interrupted", under_way)

    @property
    def outcome(self) -> dict[str, Any] | None:
        """What a sweep's point left at its end; None where it has not come to one."""
        try:
            outcome: dict[str, Any] = json.loads((self.folder / OUTCOME).read_text("utf-8"))
            return outcome if {"error", "seconds"} <= outcome.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    @property
    def last_stage(self) -> str | None:
        """The stage that was started last, "" before the first; None where the run has not begun.

        Parses one line: a sweep asks this of each point again and again.
        """
        for line in reversed(self._event_lines()):
            if b'"stage_started"' in line and (event := parse_event(line)) is not None:
                return str(event["name"])
        has_begun = any((self.folder / name).is_file() for name in (EVENTS, RECIPE))
        return "" if has_begun else None

    @cached_property
    def store(self) -> Store | None:
        """The store that it links to, found from a link, or from where the folder lies."""
        for _, link in self.links():
            if link.is_symlink():
                target = Path(os.path.normpath(link.parent / link.readlink()))
                if target.parent.is_dir():  # else the run has been moved without it
                    return Store(target.parent)
        for parent in self.folder.absolute().parents:
            if (parent / "store").is_dir():
                return Store(parent / "store")
        return None

    @cached_property
    def outputs(self) -> Path | None:
        """The folder that holds its store, and the runs and sweeps beside it."""
        return self.store.folder.parent if self.store is not None else None

    def links(self) -> Iterator[tuple[str, Path]]:
        """Give (node's name, link to its artifact), in the order of the run."""
        folder = self.folder / "stages"
        for link in sorted(folder.iterdir()) if folder.is_dir() else ():
            number, _, name = link.name.partition("-")
            if number.isdigit() and name:
                yield name, link

    def artifact(self, record: Mapping[str, Any]) -> Path | None:
        """Find the folder of a record's artifact; None where it has been removed."""
        if self.store is not None and self.store.path(record["key"]).is_dir():
            return self.store.path(record["key"])
        link = next((link for name, link in self.links() if name == record["name"]), None)
        return link if link is not None and link.is_dir() else None

    def manifest(self, key: str) -> dict[str, Any] | None:
        """Read what the store says of an artifact; None where it is gone or cannot be read."""
        if self.store is None:
            return None
        try:
            return self.store.manifest(key)
        except (DamagedArtifact, OSError):
            return None

    def key_parts(self, key: str) -> KeyParts | None:
        """Find what a key was made of: in the store, or by planning the recipe again, or None."""
        parts = (self.manifest(key) or {}).get("key_parts")
        return parts if isinstance(parts, dict) else self._planned_parts.get(key)

    @cached_property
    def _planned_parts(self) -> dict[str, KeyParts]:
        """Key → parts, as the recipe would be planned here and now."""
        from compressor.engine.plan import plan
        from compressor.recipe.compose import validate_values

        if self.store is None:
            return {}
        try:
            composed = validate_values(self.recipe, self.name, (), ())
            nodes = plan(composed, self.store).nodes
        except (RecipeError, Unreachable, OSError, KeyError, TypeError, ValueError):
            return {}  # it cannot be planned any more
        return {node.key: node.key_parts for node in nodes if node.key is not None}

    def name_of(self, key: str) -> str | None:
        """Find what this run calls an artifact, or else what the one that made it did."""
        # Events first: of a report on all models at once they have the stage's own name.
        for entry in (*self.events, *self.records):
            if entry.get("key") == key and "name" in entry:
                return str(entry["name"])
        manifest = self.manifest(key)
        return str(manifest["name"]) if manifest is not None and "name" in manifest else None

    def nodes(self) -> dict[str, str]:
        """Map each node whose stage was started, ended or not, to its key."""
        events = [e for e in self.events if e.get("event") == "stage_started"]
        keys = {str(e["name"]): str(e["key"]) for e in events if {"name", "key"} <= e.keys()}
        known = set(keys.values())
        return keys | {r["name"]: r["key"] for r in self.records if r["key"] not in known}

    def window(self, name: str | None = None) -> tuple[float, float]:
        """Find when a node's stage, or the whole run, began and ended, in seconds since 1970."""
        events = [e for e in self.events if name is None or e.get("name") == name]
        times = [e["time"] for e in events if isinstance(e.get("time"), int | float)]
        return (min(times), max(times)) if times else (self.start_time.timestamp(), float("inf"))

    def record(self, name: str) -> Record | None:
        """Find the record of a node; the first one, of a report on all models at once."""
        key = self.nodes().get(name)
        named = [record for record in self.records if record["name"] == name]
        records = named or [record for record in self.records if record["key"] == key]
        return records[0] if records else None


def _read_records(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    records = _read_json(path)
    if not isinstance(records, list):
        raise RecipeError(f"{path}: expected a list of records")
    for number, record in enumerate(records):
        try:
            kind = _MetricsRecord.model_validate(record).stage
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the record"
            name = f" ({record['name']})" if isinstance(record, dict) and "name" in record else ""
            raise RecipeError(f"{path}: record {number}{name}: {where}: {first['msg']}") from error
        if kind not in stage_kinds():
            hint = nearest(kind, stage_kinds())
            raise RecipeError(f"{path}: record {number}: no stage {kind!r} here; {hint}")
    return records


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, or nested too deep
        raise RecipeError(f"{path} is not JSON: {error}") from error


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _YAML)  # noqa: S506  # a safe one
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _read_mapping(path: Path, read: Callable[[Path], Any] = _read_json) -> dict[str, Any]:
    values = read(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected a mapping")
    return values


def list_run_folders(outputs: Path) -> Iterator[Path]:
    """Find every run's folder below an outputs folder, points of sweeps included."""
    for part in ("runs", "sweeps"):
        for place, folders, files in os.walk(outputs / part):
            if RECIPE in files or METRICS in files:
                folders.clear()
                yield Path(place)


def sort_key(folder: Path) -> tuple[str, int]:
    """Order folders named by their time: `…-10` is after `…-2`."""
    match = _TIME.fullmatch(folder.name)
    return (match[1], int(match[2] or 1)) if match else (folder.name, 0)


def find_run(name: str, outputs: Path) -> Path:
    """Find the run that a person means: its folder, or the latest run of a recipe of that name.

    A sweep's folder is given back as it is. Raises RecipeError with the nearest name.
    """
    folder = expand_home(name)
    if _is_run_or_sweep(folder):
        return folder
    runs = outputs / "runs"
    recipe = name.removesuffix(".yaml").strip("/")
    parents = (folder, runs / recipe, runs / Path(recipe).name)
    newest = next(filter(None, map(_find_newest, parents)), None)
    if newest is not None or folder.is_dir():
        return newest or folder
    recipes = {
        run.parent.relative_to(runs).as_posix()
        for run in list_run_folders(outputs)
        if runs in run.parents and run.parent != runs
    }
    reason = f"and there are no runs under {str(runs)!r}"
    if recipes:
        reason = f"nor a recipe with runs under {str(runs)!r}; {nearest(recipe, recipes)}"
    elsewhere = name.removeprefix("outputs=") if name.startswith("outputs=") else "DIR"
    raise RecipeError(
        f"{name!r} is no run's directory, {reason} (elsewhere: --outputs {elsewhere})"
    )


def _is_run_or_sweep(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (RECIPE, METRICS, ABOUT))


def _find_newest(parent: Path) -> Path | None:
    """Find the latest run in a recipe's folder."""
    folders = parent.iterdir() if parent.is_dir() else ()
    runs = [run for run in folders if _TIME.fullmatch(run.name) and _is_run_or_sweep(run)]
    return max(runs, key=sort_key, default=None)
