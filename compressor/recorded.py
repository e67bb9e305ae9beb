"""How long stages took before, as the store's manifests tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from compressor.store import MANIFEST, Store


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
        """Read every manifest of the store; one that cannot be read says nothing."""
        by_key: dict[str, float] = {}
        by_name: dict[tuple[str, str], list[float]] = {}
        for path in store.folder.glob(f"*/{MANIFEST}"):
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
                seconds, name = float(about["seconds"]), (str(about["stage"]), str(about["name"]))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            by_key[path.parent.name] = seconds
            by_name.setdefault(name, []).append(seconds)
        return cls(by_key, {name: median(each) for name, each in by_name.items()})

    def seconds(self, stage: Planned) -> float | None:
        """What this very stage took, or the median of those of its kind and name."""
        of_name = self.by_name.get((stage.kind, stage.name))
        return of_name if stage.key is None else self.by_key.get(stage.key, of_name)
