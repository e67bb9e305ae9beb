"""A sweep's folder, `sweeps/<recipe>/<time>/`, which the same command finds again: its points."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from compressor.core.errors import RecipeError
from compressor.core.files import write_json
from compressor.core.numbers import is_number
from compressor.engine.keys import digest
from compressor.engine.past_run import Record, RunRecord
from compressor.engine.provenance import ASKED
from compressor.engine.run_folder import ABOUT, OUTCOME, make_run_folder
from compressor.engine.store.store import Store
from compressor.recipe.compose import ComposedRecipe
from compressor.recipe.objective import Goal
from compressor.reports.tables import list_models
from compressor.reports.write import CARD, REPORT
from compressor.runs.sweeps.points import Point
from compressor.runs.sweeps.state import PointStatus, State, Sweep, choose_objectives


@dataclass(frozen=True)
class SweepFolder:
    """Where a sweep's points have their folders."""

    path: Path

    @classmethod
    def open(cls, outputs: Path, recipe: str, request: Any) -> SweepFolder:
        """Open the newest folder that was made for the same request, or make one.

        Of two processes that ask for the same at once, the second finds what the first has made.
        """
        identity, parent = digest(request), outputs / "sweeps" / recipe
        with Store(outputs / "store").lock(f"sweep-{identity}", lambda: None):
            for about in sorted(parent.glob(f"*/{ABOUT}"), reverse=True):
                # Others are half written, or another program's.
                with suppress(ValueError, KeyError, TypeError, OSError):
                    if json.loads(about.read_text(encoding="utf-8"))["identity"] == identity:
                        return cls(about.parent)
            folder = cls(make_run_folder(parent))
            now = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(folder.path / ABOUT, {"identity": identity, "started": now, "points": {}})
            return folder

    def read(self) -> dict[str, Any]:
        """Read `sweep.json`."""
        values: dict[str, Any] = json.loads((self.path / ABOUT).read_text(encoding="utf-8"))
        return values

    def update(self, **values: Any) -> None:
        """Change what `sweep.json` says."""
        write_json(self.path / ABOUT, self.read() | values)

    @contextmanager
    def lock(self, store: Store, say_waiting: Any) -> Iterator[None]:
        """Hold the right to run this sweep: another process with the same command waits."""
        with store.lock(f"sweep-{digest(str(self.path.resolve()))}", say_waiting):
            yield

    def record(self, name: str) -> RunRecord:
        """Find what a point's folder has now."""
        return RunRecord(self.path / name)

    def read_records(self, name: str) -> list[Record]:
        """Read the records of a point's stages; none where they are damaged."""
        try:
            return self.record(name).records
        except RecipeError:
            return []

    def forget(self, name: str) -> None:
        """Remove what an earlier try of a point left, so that it is not taken for one to come."""
        records = (OUTCOME, "metrics.json", "events.jsonl", "recipe.yaml", "error.txt")
        for file in (*records, ASKED, REPORT, CARD):
            (self.path / name / file).unlink(missing_ok=True)

    def is_done(self, name: str, store: Store) -> bool:
        """Return whether a point ended well, and all that it made is still in the store."""
        outcome, records = self.record(name).outcome, self.read_records(name)
        if outcome is None or outcome["error"] is not None or outcome.get("pruned"):
            return False
        return bool(records) and all(store.has(record["key"]) for record in records)

    def read_sweep(
        self, recipe: str, description: str, points: Sequence[Point], goals: Sequence[Goal]
    ) -> Sweep:
        """Read how far each of these points is."""
        about, statuses = self.read(), [self.read_status(point, goals) for point in points]
        return Sweep(
            recipe,
            statuses,
            [(goal.path, goal.direction) for goal in goals] or choose_objectives(statuses),
            description=description,
            command=str(about.get("command", "")),
            started=datetime.fromisoformat(about["started"]),
        )

    def read_status(self, point: Point, goals: Sequence[Goal]) -> PointStatus:
        """Read how far a point is."""
        record = self.record(point.name)
        outcome, stage = record.outcome, record.last_stage
        if outcome is None and stage is None:
            return PointStatus(point.name, point.differs)
        records = self.read_records(point.name)
        end = outcome or {"error": None, "seconds": 0.0}
        state: State = "running" if outcome is None else "done"
        if end["error"] is not None:
            state = "failed"
        elif end.get("pruned"):
            state = "pruned"
        return PointStatus(
            point.name,
            point.differs,
            state,
            stage=stage,
            error=end["error"],
            pruned=end.get("pruned"),
            cached=sum(record["cached"] for record in records),
            stages=len(records),
            seconds=end["seconds"],
            metrics=_read_numbers(records, goals),
        )


def _read_numbers(records: Sequence[Mapping[str, Any]], goals: Sequence[Goal]) -> dict[str, float]:
    rows = list_models(records) if records else []
    values = {
        **(rows[-1] if rows else {}),
        **{goal.path: goal.find_value(records) for goal in goals},
    }
    return {key: value for key, value in values.items() if is_number(value)}


def identify_sweep(composed: Sequence[ComposedRecipe]) -> list[Any]:
    """List what decides a sweep's results: its points' recipes.

    Not where or how they run, nor in which order: `shuffle(…)` has another one each time.
    """
    free = {"outputs", "launch"}
    values = [{k: v for k, v in recipe.values.items() if k not in free} for recipe in composed]
    return sorted(values, key=digest)
