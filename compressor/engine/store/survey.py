"""List what lies in a store: artifacts, and what killed runs left. Decides and removes nothing.

No link is followed but the store itself: what one leads to belongs to somebody else.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from compressor.core.files import MANIFEST
from compressor.engine.store.store import GC_LOCK, KEY, MACHINE_LOCKS, Store

Kind = Literal["artifact", "checkpoint", "unfinished", "damaged", "temporary", "lock", "trash"]
"""`checkpoint`: what a killed training resumes from. `unfinished`: other work that was not
committed. `temporary`: a file that was being written. `trash`: what an earlier `gc` had renamed."""
TRASH = "trash-"
"""Begins the new name of what `gc` removes. A full disk may have no room for a folder of these."""
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
"""Before this package existed: a clock that says so was not set."""


@dataclass(frozen=True)
class Item:
    """One thing in a store that can be removed by itself."""

    path: Path
    kind: Kind
    key: str | None
    bytes: int
    used: float
    """When it was made or last used by a run, in seconds since 1970; infinite where unknown."""
    inputs: tuple[str, ...] = ()
    """Keys of what an artifact was made from."""
    stage: str | None = None
    name: str | None = None
    """The stage's name in the recipe that made it."""

    def age(self, now: float) -> float:
        """Compute the seconds since it was used; after a clock has jumped ahead, none."""
        return max(0.0, now - self.used)


def survey(store: Store) -> list[Item]:
    """List everything in a store that is of its making."""
    paths = [store.path(key) for key in store.list_keys()]
    artifacts = [_read_artifact(path) for path in paths if path.is_dir() and not path.is_symlink()]
    trash = [measure_item(path, "trash") for path in list_trash(store)]
    return [*trash, *_no_older_than_inputs(artifacts), *list_leftovers(store)]


def _read_artifact(folder: Path) -> Item:
    item = measure_item(folder, "artifact", folder.name)
    try:
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        inputs = (about.get("key_parts") or {}).get("inputs") or {}  # of roles, or a list of pairs
        return replace(
            item,
            used=max(item.used, _parse_time(about.get("made"))),
            inputs=tuple(map(str, dict(inputs).values())),
            stage=str(about.get("stage")),
            name=str(about.get("name")),
        )
    except (OSError, ValueError, AttributeError, TypeError):  # damaged
        return item


def _parse_time(text: Any) -> float:
    try:
        return _trusted_time(datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp())
    except (TypeError, ValueError):
        return 0.0


def _no_older_than_inputs(items: list[Item]) -> list[Item]:
    """Make what was made while the clock was set back as new as the newest of its inputs."""
    by_key = {item.path.name: item for item in items}

    @cache
    def last_used(key: str) -> float:
        item = by_key[key]
        return max([item.used, *(last_used(name) for name in item.inputs if name in by_key)])

    return [replace(item, used=last_used(key)) for key, item in by_key.items()]


def list_trash(store: Store) -> list[Path]:
    """List what a `gc` has renamed and not yet deleted."""
    return sorted(store.folder.glob(f"{TRASH}*"))


def list_leftovers(store: Store) -> Iterator[Item]:
    """List what killed runs and damage left."""
    for path in _list_folder(store.folder / "partial"):
        key = path.name.partition(".")[0]
        kind: Kind = "checkpoint" if path.name.endswith(".resume") else "unfinished"
        yield measure_item(path, kind, key if KEY.fullmatch(key) else None)
    for path in _list_folder(store.folder / "damaged"):
        yield measure_item(path, "damaged")
    for path in _list_folder(store.folder / "locks"):
        is_shared = path.stem == GC_LOCK or path.name.startswith(MACHINE_LOCKS)
        if path.suffix == ".lock" and not is_shared:
            yield measure_item(path, "lock")


def _list_folder(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []


def measure_item(path: Path, kind: Kind, key: str | None = None) -> Item:
    size, changed = measure(path)
    return Item(path, kind, key, size, changed)


def measure(path: Path) -> tuple[int, float]:
    """Sum up the bytes of a file or of all files in a folder, and give the newest time of change.

    What another process removes meanwhile counts as nothing.
    """
    size, changed = 0, 0.0
    below = (
        f"{folder}/{name}"
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
    )
    for entry in (str(path), *below):
        with suppress(FileNotFoundError):
            about = os.lstat(entry)
            changed = max(changed, _trusted_time(about.st_mtime))
            size += 0 if stat.S_ISDIR(about.st_mode) else about.st_size
    return size, changed or time.time()


def _trusted_time(moment: float) -> float:
    """Give a time, or infinity where the clock cannot have been set."""
    return moment if moment >= _EARLIEST else float("inf")
