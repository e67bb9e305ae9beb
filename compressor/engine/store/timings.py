"""Tell how long stages took before, from the store's manifests.

A store may have 10,000 of them, so their seconds are cached in one file, which may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Protocol

from compressor.core.files import MANIFEST, write_text
from compressor.engine.store.store import Store

NOTES = "seconds.jsonl"
"""The cache in the store: key, kind, name and seconds of an artifact a line."""
_Timing = tuple[str, str, float]
"""A stage's kind, its name in the recipe, seconds."""


class PlannedStage(Protocol):
    """A stage as it was planned: a node, or what stays of it."""

    @property
    def key(self) -> str | None: ...

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class StageTimings:
    """Seconds that stages took before."""

    by_key: Mapping[str, float]
    by_name: Mapping[tuple[str, str], float]
    """(stage's kind, its name in the recipe) → the median."""

    @classmethod
    def read(cls, store: Store) -> StageTimings:
        """Read the timings of all artifacts, but of those that are damaged."""
        path, keys = store.folder / NOTES, store.list_keys()
        notes = _read_notes(path)
        known = {key: notes.get(key) or _read_timing(store, key) for key in keys}
        timings = {key: timing for key, timing in known.items() if timing is not None}
        if timings != notes:
            lines = [json.dumps([key, *timing]) for key, timing in timings.items()]
            with suppress(OSError):  # it is only a cache
                write_text(path, "\n".join([*lines, ""]))
        by_name: dict[tuple[str, str], list[float]] = {}
        for kind, name, seconds in timings.values():
            by_name.setdefault((kind, name), []).append(seconds)
        return cls(
            {key: seconds for key, (_, _, seconds) in timings.items()},
            {name: median(seconds) for name, seconds in by_name.items()},
        )

    def seconds(self, stage: PlannedStage) -> float | None:
        """Give what this very stage took, or the median of those of its kind and name."""
        typical = self.by_name.get((stage.kind, stage.name))
        return typical if stage.key is None else self.by_key.get(stage.key, typical)


def _read_timing(store: Store, key: str) -> _Timing | None:
    """Read a manifest, if it is not damaged."""
    try:
        about = json.loads((store.path(key) / MANIFEST).read_text(encoding="utf-8"))
        return str(about["stage"]), str(about["name"]), float(about["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_notes(path: Path) -> dict[str, _Timing]:
    """Read the cache, but for damaged lines."""
    notes: dict[str, _Timing] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError):
                key, kind, name, seconds = json.loads(line)
                notes[str(key)] = (str(kind), str(name), float(seconds))
    return notes
