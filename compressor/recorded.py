"""How long stages took before, as the store's manifests tell: read once, and noted in one file.

A plan of a store with 10,000 artifacts would else open 10,000 files, and so would each point of a
sweep. The file is no more than a memory of the manifests: without it, or where it is damaged, they
are read again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from compressor.files import MANIFEST
from compressor.store import Store, own_text

NOTES = "seconds.jsonl"
"""The file in the store: key, kind, name and seconds of an artifact a line."""
_KEY = re.compile(r"[0-9a-f]{64}")
_SPARE = 1_000
"""Notes of artifacts that are gone stay until they are so many, and most."""


class Planned(Protocol):
    """A stage as it was planned: a node, or what stays of it."""

    @property
    def key(self) -> str | None: ...

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Recorded:
    """Seconds that stages took before, as the store tells."""

    by_key: Mapping[str, float]
    by_name: Mapping[tuple[str, str], float]
    """(stage's kind, its name in the recipe) → the median."""

    @classmethod
    def read(cls, store: Store) -> Recorded:
        """What all artifacts of the store took; one that cannot be read says nothing."""
        known = _noted(store.folder / NOTES)
        there = [each.name for each in _artifacts(store.folder)]
        new = {key: found for key in there if key not in known and (found := _told(store, key))}
        if new:
            _note(store.folder / NOTES, new, anew=len(known) > 2 * len(there) + _SPARE)
        known |= new
        by_name: dict[tuple[str, str], list[float]] = {}
        by_key: dict[str, float] = {}
        for key in there:
            if key in known:
                kind, name, by_key[key] = known[key]
                by_name.setdefault((kind, name), []).append(by_key[key])
        return cls(by_key, {name: median(each) for name, each in by_name.items()})

    def seconds(self, stage: Planned) -> float | None:
        """What this very stage took, or the median of those of its kind and name."""
        of_name = self.by_name.get((stage.kind, stage.name))
        return of_name if stage.key is None else self.by_key.get(stage.key, of_name)


_Took = tuple[str, str, float]
"""A stage's kind, its name in the recipe, seconds."""


def _artifacts(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [each for each in entries if _KEY.fullmatch(each.name)]
    except FileNotFoundError:
        return []


def _told(store: Store, key: str) -> _Took | None:
    """What a manifest says."""
    try:
        about = json.loads(own_text(store.path(key) / MANIFEST))
        return str(about["stage"]), str(about["name"]), float(about["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _noted(path: Path) -> dict[str, _Took]:
    """The notes; a line that two processes wrote into is none."""
    found: dict[str, _Took] = {}
    try:
        lines = own_text(path).splitlines()
    except (OSError, UnicodeDecodeError):
        return found
    for line in lines:
        with suppress(ValueError, TypeError, RecursionError):
            key, kind, name, seconds = json.loads(line)
            found[str(key)] = (str(kind), str(name), float(seconds))
    return found


def _note(path: Path, new: Mapping[str, _Took], *, anew: bool) -> None:
    """Add what was read. `anew`: forget all, since most are of artifacts that are gone."""
    text = "".join(json.dumps([key, *took]) + "\n" for key, took in new.items())
    with suppress(OSError):  # it can be had again
        if anew:
            path.unlink()
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            with os.fdopen(os.open(path, flags, 0o666), "a", encoding="utf-8") as stream:
                stream.write(text)
