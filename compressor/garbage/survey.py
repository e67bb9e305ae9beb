"""What lies in a store: artifacts, and what killed runs left. Nothing is decided or removed here.

No symbolic link is followed but the store itself: what one leads to belongs to somebody else.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from compressor.files import MANIFEST
from compressor.store import COLLECTING, MACHINES, Store, own_text

Kind = Literal["artifact", "checkpoint", "unfinished", "damaged", "temporary", "lock", "trash"]
"""`checkpoint`: what a killed training goes on from. `unfinished`: other work that was not
committed. `temporary`: a file that was being written. `trash`: what an earlier `gc` had renamed."""
KEY = re.compile(r"[0-9a-f]{64}")
TRASH = "trash-"
"""Begins the new name of what `gc` removes, which a full disk has room for: a folder it may not."""
_EARLIEST = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
"""Before this package: a clock that says so was not set, and the time is not known."""


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
        """Seconds since it was used; a time in the future, of a clock that jumped, is now."""
        return max(0.0, now - self.used)


def survey(store: Store) -> list[Item]:
    """Everything in a store, but what is not of its making."""
    if not store.folder.is_dir():
        return []
    found = [
        _artifact(Path(entry.path))
        for entry in _entries(store.folder)
        if KEY.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
    ]
    trash = [_left(place, "trash", None) for place in trashed(store)]
    return [*trash, *_no_older_than_inputs(found), *leftovers(store)]


def _artifact(folder: Path) -> Item:
    size, changed = measured(folder)
    item = Item(folder, "artifact", folder.name, size, changed)
    try:
        about = json.loads(own_text(folder / MANIFEST))
        parts = about.get("key_parts") or {}
        return replace(
            item,
            used=max(changed, _time(about.get("made"))),
            inputs=tuple(_inputs(parts.get("inputs"))),
            stage=str(about.get("stage")),
            name=str(about.get("name")),
        )
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):  # none of ours
        return item


def _inputs(inputs: Any) -> Iterator[str]:
    """Keys, from a mapping of roles or a list of pairs: see `Plan`."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs or ()
    for each in values:
        key = each[-1] if isinstance(each, list) and each else each
        if isinstance(key, str):
            yield key


def _time(written: Any) -> float:
    try:
        return _known(datetime.strptime(written, "%Y-%m-%dT%H:%M:%S%z").timestamp())
    except (TypeError, ValueError):
        return 0.0


def _no_older_than_inputs(items: list[Item]) -> list[Item]:
    """What was made while the clock was set back is as new as the newest it was made from."""
    by_key = {item.key: item for item in items}
    used: dict[str, float] = {}
    for item in items:
        stack = [item]
        while stack:
            now = stack[-1]
            assert now.key is not None
            known = [by_key[key] for key in now.inputs if key in by_key and key != now.key]
            if now.key in used:
                stack.pop()
            elif waiting := [each for each in known if each.key not in used and each not in stack]:
                stack.append(waiting[0])
            else:
                used[now.key] = max([now.used, *(used.get(str(e.key), e.used) for e in known)])
                stack.pop()
    return [replace(item, used=used[str(item.key)]) for item in items]


def trashed(store: Store) -> list[Path]:
    """What a `gc` has renamed and not yet deleted."""
    return [place for place in _children(store.folder) if place.name.startswith(TRASH)]


def leftovers(store: Store) -> Iterator[Item]:
    """What killed runs and damage left."""
    for place in _children(store.folder / "partial"):
        key = place.name.partition(".")[0]
        kind: Kind = "checkpoint" if place.name.endswith(".resume") else "unfinished"
        yield _left(place, kind, key if KEY.fullmatch(key) else None)
    for place in _children(store.folder / "damaged"):
        yield _left(place, "damaged", None)
    for place in _children(store.folder / "locks"):
        asked = place.stem == COLLECTING or place.name.startswith(MACHINES)
        if place.name.endswith(".lock") and not asked:
            yield _left(place, "lock", None)


def _left(place: Path, kind: Kind, key: str | None) -> Item:
    size, used = measured(place)
    return Item(place, kind, key, size, used)


def _children(folder: Path) -> list[Path]:
    """What a folder has; of a link to a folder, nothing."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [Path(entry.path) for entry in _entries(folder)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def measured(place: Path) -> tuple[int, float]:
    """Bytes of a file or of all files in a folder, and when the newest of them was changed.

    What another process removes meanwhile counts as nothing.
    """
    size, changed = 0, 0.0
    folders = [place]
    while folders:
        current = folders.pop()
        try:
            about = current.lstat()
            changed = max(changed, _known(about.st_mtime))
            if current.is_symlink() or not current.is_dir():
                size += about.st_size
                continue
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(Path(entry.path))
                    else:
                        about = entry.stat(follow_symlinks=False)
                        size += about.st_size
                        changed = max(changed, _known(about.st_mtime))
        except FileNotFoundError:
            continue
    return size, changed or time.time()


def _known(moment: float) -> float:
    """A time; infinite where the clock cannot have been set."""
    return moment if moment >= _EARLIEST else float("inf")
