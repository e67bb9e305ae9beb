"""A run that was made, read from its folder, and where such folders are. Nothing is written here.

A folder may be damaged, half written, or of an earlier version: what is missing is told in a
sentence that names the file, and what can be read is.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.core.errors import DamagedArtifact, RecipeError, Unreachable, nearest
from compressor.core.files import expand_home
from compressor.engine.run_folder import ABOUT
from compressor.engine.store.store import Store
from compressor.stages.base import stage_kinds

RECIPE, METRICS, ENVIRONMENT, EVENTS = (
    "recipe.yaml",
    "metrics.json",
    "environment.json",
    "events.jsonl",
)
_TIME = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:-(\d+))?")
"""The name of a run's folder: `compressor.engine.run_folder.make_run_folder`."""

Record = dict[str, Any]
KeyParts = Mapping[str, Any]


class _Written(BaseModel):
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
class PastRun:
    """One run's folder, as it is now."""

    folder: Path
    records: list[Record]
    """Of the stages that ended; empty where none did."""
    environment: dict[str, Any]
    values: dict[str, Any]
    """The resolved recipe, secrets redacted; empty where there is none."""
    events: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> PastRun:
        """Read a run's folder. Raises RecipeError that says what is wrong with which file."""
        if not folder.is_dir():
            raise RecipeError(f"{folder} is no run's directory: there is no such folder")
        if not any((folder / name).is_file() for name in (RECIPE, METRICS)):
            about = "it has neither metrics.json nor recipe.yaml"
            raise RecipeError(f"{folder} is no run's directory: {about}")
        return cls(
            folder,
            _records(folder / METRICS),
            _mapping(folder / ENVIRONMENT),
            _recipe(folder / RECIPE),
            _events(folder / EVENTS),
        )

    def require_records(self) -> None:
        """Raise RecipeError where no stage has ended."""
        if not self.records:
            missing = "is empty" if (self.folder / METRICS).is_file() else "is missing"
            raise RecipeError(f"{self.folder}: metrics.json {missing}: no stage of this run ended")

    @property
    def recipe(self) -> str:
        """The recipe's name."""
        return str(self.values.get("name") or self.folder.absolute().parent.name)

    @cached_property
    def started(self) -> datetime:
        """When it was started, in local time with its zone."""
        try:
            return datetime.fromisoformat(self.environment["started"]).astimezone()
        except (KeyError, TypeError, ValueError):  # the folder's own time is the nearest known
            return datetime.fromtimestamp(self.folder.stat().st_mtime).astimezone()

    @cached_property
    def store(self) -> Store | None:
        """The store that it links to, found from a link, or from where the folder lies."""
        for _, place in self._links():
            if place.is_symlink():
                target = Path(os.path.normpath(place.parent / place.readlink()))
                if target.parent.is_dir():  # else the run has been moved without it
                    return Store(target.parent)
        for above in self.folder.absolute().parents:
            if (above / "store").is_dir():
                return Store(above / "store")
        return None

    @cached_property
    def outputs(self) -> Path | None:
        """The folder that holds its store, and the runs and sweeps beside it."""
        return self.store.folder.parent if self.store is not None else None

    def _links(self) -> Iterator[tuple[str, Path]]:
        """(node's name, link to its artifact), in the order of the run."""
        folder = self.folder / "stages"
        for place in sorted(folder.iterdir()) if folder.is_dir() else ():
            number, _, name = place.name.partition("-")
            if number.isdigit() and name:
                yield name, place

    def artifact(self, record: Mapping[str, Any]) -> Path | None:
        """The folder of a record's artifact; None where it has been removed."""
        if self.store is not None and (self.store.path(record["key"])).is_dir():
            return self.store.path(record["key"])
        found = next((place for name, place in self._links() if name == record["name"]), None)
        return found if found is not None and found.is_dir() else None

    def manifest(self, key: str) -> dict[str, Any] | None:
        """What the store says of an artifact; None where it is gone or cannot be read."""
        if self.store is None:
            return None
        try:
            return self.store.manifest(key)
        except (DamagedArtifact, OSError):
            return None

    def key_parts(self, key: str) -> KeyParts | None:
        """What a key was made of: from the store, or from planning the recipe again where that
        gives the same key; None where neither is to be had.
        """
        manifest = self.manifest(key)
        parts = manifest.get("key_parts") if manifest is not None else None
        if isinstance(parts, dict):
            return parts
        return self._planned.get(key)

    @cached_property
    def _planned(self) -> dict[str, KeyParts]:
        """Key → parts, as the recipe would be planned here and now."""
        from compressor.engine.plan import plan
        from compressor.recipe.compose import validate_values

        if self.store is None:
            return {}
        try:
            composed = validate_values(self.values, self.recipe, (), ())
            nodes = plan(composed, self.store).nodes
        except (RecipeError, Unreachable, OSError, KeyError, TypeError, ValueError):
            return {}  # it cannot be planned any more
        return {node.key: node.key_parts for node in nodes if node.key is not None}

    def name_of(self, key: str) -> str | None:
        """What this run calls an artifact, or else what the one that made it did."""
        # Events first: of a report on all models at once they have the stage's own name.
        for each in (*self.events, *self.records):
            if each.get("key") == key and "name" in each:
                return str(each["name"])
        manifest = self.manifest(key)
        return str(manifest["name"]) if manifest is not None and "name" in manifest else None

    def nodes(self) -> dict[str, str]:
        """Node → key of every stage that was started, ended or not."""
        told = [e for e in self.events if e.get("event") == "stage_started"]
        begun = {str(e["name"]): str(e["key"]) for e in told if {"name", "key"} <= e.keys()}
        known = set(begun.values())
        return begun | {r["name"]: r["key"] for r in self.records if r["key"] not in known}

    def window(self, name: str | None = None) -> tuple[float, float]:
        """When a node's stage began and ended, or the whole run, in seconds since 1970."""
        own = [e for e in self.events if name is None or e.get("name") == name]
        times = [e["time"] for e in own if isinstance(e.get("time"), int | float)]
        return (min(times), max(times)) if times else (self.started.timestamp(), float("inf"))

    def record(self, name: str) -> Record | None:
        """The record of a node; the first one, of a report on all models at once."""
        for record in self.records:
            if record["name"] == name:
                return record
        key = self.nodes().get(name)
        return next((record for record in self.records if record["key"] == key), None)


def _records(path: Path) -> list[Record]:
    if not path.is_file():
        return []
    loaded = _json(path)
    if not isinstance(loaded, list):
        raise RecipeError(f"{path}: expected a list of records")
    for number, record in enumerate(loaded):
        try:
            kind = _Written.model_validate(record).stage
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the record"
            name = f" ({record['name']})" if isinstance(record, dict) and "name" in record else ""
            raise RecipeError(f"{path}: record {number}{name}: {where}: {first['msg']}") from error
        if kind not in stage_kinds():
            hint = nearest(kind, stage_kinds())
            raise RecipeError(f"{path}: record {number}: no stage {kind!r} here; {hint}")
    return loaded


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, or nested too deep
        raise RecipeError(f"{path} is not JSON: {error}") from error


def _mapping(path: Path) -> dict[str, Any]:
    loaded = _json(path) if path.is_file() else {}
    if not isinstance(loaded, dict):
        raise RecipeError(f"{path}: expected a mapping")
    return loaded


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}") from error
    if not isinstance(loaded, dict):
        raise RecipeError(f"{path}: expected a mapping")
    return loaded


def _events(path: Path) -> list[dict[str, Any]]:
    """The events; half a line, which a killed process may leave, is none."""
    found = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            found.append(event)
    return found


def run_folders(outputs: Path) -> Iterator[Path]:
    """Every run's folder below an outputs folder, points of sweeps included."""
    for part in ("runs", "sweeps"):
        for place, folders, files in os.walk(outputs / part):
            if RECIPE in files or METRICS in files:
                folders.clear()
                yield Path(place)


def order(folder: Path) -> tuple[str, int]:
    """What folders named by their time are sorted by: `…-10` is after `…-2`."""
    found = _TIME.fullmatch(folder.name)
    return (found[1], int(found[2] or 1)) if found else (folder.name, 0)


def find(given: str, outputs: Path) -> Path:
    """The run that a person means: its folder, or the latest run of a recipe of that name.

    A sweep's folder is given back as it is. Raises RecipeError with the nearest name.
    """
    folder = expand_home(given)
    if any((folder / name).is_file() for name in (RECIPE, METRICS, ABOUT)):
        return folder
    runs = outputs / "runs"
    name = given.removesuffix(".yaml").strip("/")
    newest = _newest(folder) or _newest(runs / name) or _newest(runs / Path(name).name)
    if newest is not None or folder.is_dir():
        return newest or folder
    recipes = {
        each.parent.relative_to(runs).as_posix()
        for each in run_folders(outputs)
        if runs in each.parents and each.parent != runs
    }
    if not recipes:
        reason = f"and there are no runs under {str(runs)!r} (--outputs names another folder)"
        raise RecipeError(f"{given!r} is no run's directory, {reason}")
    raise RecipeError(
        f"{given!r} is no run's directory, nor a recipe with runs under {str(runs)!r}; "
        f"{nearest(name, recipes)}"
    )


def _newest(recipe: Path) -> Path | None:
    """The latest run in a recipe's folder."""
    if not recipe.is_dir():
        return None
    runs = [
        each
        for each in recipe.iterdir()
        if _TIME.fullmatch(each.name)
        and any((each / name).is_file() for name in (RECIPE, METRICS, ABOUT))
    ]
    return max(runs, key=order, default=None)
