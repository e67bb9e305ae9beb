"""A sweep's folder, `sweeps/<recipe>/<time>/`: what was asked, and how far each point is.

The same command finds its folder again by what it asks for, so that it goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from compressor.objective import Goal
from compressor.plan import digest
from compressor.recipe import Composed
from compressor.run import new_folder, read_metrics, table
from compressor.store import Store, write_json
from compressor.sweeps.points import Point
from compressor.sweeps.state import Standing, State

ABOUT, OUTCOME = "sweep.json", "point.json"


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's points have their folders."""

    path: Path

    @classmethod
    def open(cls, outputs: Path, recipe: str, asked: Any) -> SweepFolder:
        """The newest folder that was made for the same, or a new one."""
        parent, identity = outputs / "sweeps" / recipe, digest(asked)
        for about in sorted(parent.glob(f"*/{ABOUT}"), reverse=True):
            try:
                if json.loads(about.read_text(encoding="utf-8"))["identity"] == identity:
                    return cls(about.parent)
            except (json.JSONDecodeError, KeyError, TypeError, OSError):
                continue
        folder = cls(new_folder(parent))
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder.path / ABOUT, {"identity": identity, "started": started, "points": {}})
        return folder

    def about(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        return loaded

    def update(self, **values: Any) -> None:
        """Change what `sweep.json` says."""
        write_json(self.path / ABOUT, self.about() | values)

    @contextmanager
    def alone(self, store: Store, waiting: Any) -> Iterator[None]:
        """Hold the right to run this sweep: another process with the same command waits."""
        with store.lock(f"sweep-{digest(str(self.path.absolute()))}", waiting):
            yield

    def point(self, name: str) -> Path:
        return self.path / name

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What a point left at its end; None where it has not come to one."""
        try:
            loaded: dict[str, Any] = json.loads(
                (self.point(name) / OUTCOME).read_text(encoding="utf-8")
            )
        except (OSError, json.JSONDecodeError):
            return None
        return loaded

    def is_done(self, name: str, store: Store) -> bool:
        """Whether a point ended well, and all that it made is still in the store."""
        outcome = self.outcome(name)
        if outcome is None or outcome["error"] is not None or outcome.get("pruned"):
            return False
        try:
            return all(store.has(record["key"]) for record in read_metrics(self.point(name)))
        except (OSError, json.JSONDecodeError):
            return False

    def standing(self, point: Point, goals: Sequence[Goal]) -> Standing:
        """How far a point is."""
        outcome, stage = self.outcome(point.name), self._stage(point.name)
        if outcome is None and stage is None:
            return Standing(point.name, point.differs)
        try:
            records = read_metrics(self.point(point.name))
        except (OSError, json.JSONDecodeError):
            records = []
        ended = outcome or {"error": None, "seconds": 0.0}
        state: State = "running" if outcome is None else "done"
        if ended["error"] is not None:
            state = "failed"
        elif ended.get("pruned"):
            state = "pruned"
        return Standing(
            point.name,
            point.differs,
            state,
            stage=stage,
            error=ended["error"],
            pruned=ended.get("pruned"),
            cached=sum(record["cached"] for record in records),
            stages=len(records),
            seconds=ended["seconds"],
            metrics=_numbers(records, goals),
        )

    def _stage(self, name: str) -> str | None:
        """The stage that a point started last; None where it has not begun."""
        try:
            lines = (self.point(name) / "events.jsonl").read_text(encoding="utf-8").splitlines()
        except OSError:
            return "" if (self.point(name) / "recipe.yaml").is_file() else None
        for line in reversed(lines):
            if '"stage_started"' in line:
                return str(json.loads(line)["name"])
        return ""


def _numbers(records: Sequence[Mapping[str, Any]], goals: Sequence[Goal]) -> dict[str, float]:
    rows = table(records) if records else []
    row = rows[-1] if rows else {}
    found = {
        key: value
        for key, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    named = {goal.path: goal.value(records) for goal in goals}
    return found | {path: value for path, value in named.items() if value is not None}


def asked(composed: Sequence[Composed]) -> list[Any]:
    """What decides a sweep's results: its points' recipes, but not where or how they run."""
    free = {"outputs", "launch"}
    return [{k: v for k, v in each.values.items() if k not in free} for each in composed]
