"""A sweep's folder, `sweeps/<recipe>/<time>/`: what was asked, and how far each point is.

The same command finds its folder again by what it asks for, so that it goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from compressor.objective import Goal
from compressor.plan import digest
from compressor.recipe import Composed
from compressor.run import new_folder, read_metrics, table
from compressor.store import Store, write_json

ABOUT, OUTCOME = "sweep.json", "point.json"

State = Literal["waiting", "running", "done", "failed", "pruned"]


@dataclass(frozen=True)
class Standing:
    """How far a point is, as its folder tells."""

    state: State
    stage: str = ""
    """That it is in, or was in when it ended."""
    error: str | None = None
    pruned: str | None = None
    """Why it was stopped early."""
    cached: int = 0
    stages: int = 0
    """Records so far, and how many of them were in the store already."""
    seconds: float = 0.0
    model: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers of the last model that was looked at, and those of the objective by their path."""


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

    def standing(self, name: str, goals: Sequence[Goal]) -> Standing:
        """How far a point is."""
        outcome = self.outcome(name)
        stage = self._stage(name)
        if outcome is None and stage is None:
            return Standing("waiting")
        try:
            records = read_metrics(self.point(name))
        except (OSError, json.JSONDecodeError):
            records = []
        ended = outcome or {"error": None, "seconds": 0.0}
        state: State = "running" if outcome is None else "done"
        if ended["error"] is not None:
            state = "failed"
        elif ended.get("pruned"):
            state = "pruned"
        return Standing(
            state,
            stage=stage or "",
            error=ended["error"],
            pruned=ended.get("pruned"),
            cached=sum(record["cached"] for record in records),
            stages=len(records),
            seconds=ended["seconds"],
            model=_last_row(records).get("model", ""),
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


def _last_row(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = table(records) if records else []
    return rows[-1] if rows else {}


def _numbers(records: Sequence[Mapping[str, Any]], goals: Sequence[Goal]) -> dict[str, float]:
    row = _last_row(records)
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
