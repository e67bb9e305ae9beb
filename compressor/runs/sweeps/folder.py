"""A sweep's folder, `sweeps/<recipe>/<time>/`: what was asked, and how far each point is.

The same command finds its folder again by what it asks for, so that it goes on there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from compressor.core.files import write_json
from compressor.engine.keys import digest
from compressor.engine.provenance import ASKED
from compressor.engine.run_folder import ABOUT, OUTCOME, make_run_folder, read_metrics
from compressor.engine.store.store import Store
from compressor.recipe.compose import ComposedRecipe
from compressor.recipe.objective import Goal
from compressor.reports.tables import table
from compressor.reports.write import CARD, REPORT
from compressor.runs.sweeps.points import Point
from compressor.runs.sweeps.state import Standing, State


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's points have their folders."""

    path: Path

    @classmethod
    def open(cls, outputs: Path, recipe: str, asked: Any) -> SweepFolder:
        """The newest folder that was made for the same, or a new one.

        Of two processes that ask for the same at once, the second finds what the first has made.
        """
        identity = digest(asked)
        with Store(outputs / "store").lock(f"sweep-{identity}", lambda: None):
            return cls._found_or_made(outputs / "sweeps" / recipe, identity)

    @classmethod
    def _found_or_made(cls, parent: Path, identity: str) -> SweepFolder:
        for about in sorted(parent.glob(f"*/{ABOUT}"), reverse=True):
            try:
                if json.loads(about.read_text(encoding="utf-8"))["identity"] == identity:
                    return cls(about.parent)
            except (ValueError, KeyError, TypeError, OSError):  # half written, or another's
                continue
        folder = cls(make_run_folder(parent))
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
        with store.lock(f"sweep-{digest(str(self.path.resolve()))}", waiting):
            yield

    def point(self, name: str) -> Path:
        return self.path / name

    def outcome(self, name: str) -> dict[str, Any] | None:
        """What a point left at its end; None where it has not come to one."""
        try:
            loaded: dict[str, Any] = json.loads(
                (self.point(name) / OUTCOME).read_text(encoding="utf-8")
            )
            return loaded if {"error", "seconds"} <= loaded.keys() else None
        except (OSError, ValueError, AttributeError):
            return None

    def forget(self, name: str) -> None:
        """Remove what an earlier try of a point left, so that it is not taken for one to come."""
        own = (OUTCOME, "metrics.json", "events.jsonl", "recipe.yaml", "error.txt")
        for left in (*own, ASKED, REPORT, CARD):
            (self.point(name) / left).unlink(missing_ok=True)

    def is_done(self, name: str, store: Store) -> bool:
        """Whether a point ended well, and all that it made is still in the store."""
        outcome = self.outcome(name)
        if outcome is None or outcome["error"] is not None or outcome.get("pruned"):
            return False
        try:
            return all(store.has(record["key"]) for record in read_metrics(self.point(name)))
        except (OSError, ValueError):
            return False

    def standing(self, point: Point, goals: Sequence[Goal]) -> Standing:
        """How far a point is."""
        outcome, stage = self.outcome(point.name), self._stage(point.name)
        if outcome is None and stage is None:
            return Standing(point.name, point.differs)
        try:
            records = read_metrics(self.point(point.name))
        except (OSError, ValueError):
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
            text = (self.point(name) / "events.jsonl").read_text("utf-8", errors="replace")
        except OSError:
            return "" if (self.point(name) / "recipe.yaml").is_file() else None
        for line in reversed(text.splitlines()):
            if '"stage_started"' in line:
                with suppress(ValueError, KeyError):  # half a line, of a process that was killed
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
    named = {goal.path: goal.find_value(records) for goal in goals}
    return found | {path: value for path, value in named.items() if value is not None}


def asked(composed: Sequence[ComposedRecipe]) -> list[Any]:
    """What decides a sweep's results: its points' recipes, but not where or how they run, nor in
    which order: `shuffle(…)` has another one each time.
    """
    free = {"outputs", "launch"}
    kept = [{k: v for k, v in each.values.items() if k not in free} for each in composed]
    return sorted(kept, key=digest)
