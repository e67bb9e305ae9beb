"""Explain why a stage of a run ran, or where its result came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core.differences import find_differences
from compressor.core.errors import RecipeError, nearest
from compressor.core.files import MANIFEST
from compressor.engine.past_run import METRICS, Record, RunRecord, list_run_folders, sort_key
from compressor.engine.store.store import Store
from compressor.reports.key_diff import Cause, Side, find_cause, list_inputs

if TYPE_CHECKING:
    from compressor.core.console import Console

Reason = Literal["cached", "changed", "made again", "first"]
_UNKNOWN_TIME = "at a time that is not known"


@dataclass(frozen=True)
class Origin:
    """An artifact that a stage is compared with, or that it took."""

    key: str
    made: str | None = None
    """When, by the store."""
    run: Path | None = None
    """The run that made it, where that is known."""
    stage: str | None = None
    """What it is called there."""

    def __str__(self) -> str:
        where = f"by the run {self.run}" if self.run is not None else "by a run that is not known"
        return f"made {self.made or _UNKNOWN_TIME} {where}"

    def as_json(self) -> dict[str, Any]:
        return vars(self) | {"run": None if self.run is None else str(self.run)}


@dataclass(frozen=True)
class Explanation:
    """Why one node of a run ran, or did not have to."""

    name: str
    kind: str | None
    key: str
    reason: Reason
    ended: str
    """`cached` and `run`, as the run's table says; or how the run ended in this stage."""
    origin: Origin | None = None
    """Of a cached one: where it came from. Else what it is compared with."""
    cause: Cause | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Describe it as `why --json` prints it."""
        origin = "from" if self.reason == "cached" else "compared_with"
        values = {key: getattr(self, key) for key in ("kind", "key", "reason", "ended")}
        return {"stage": self.name, **values} | {
            origin: self.origin and self.origin.as_json(),
            "cause": self.cause and self.cause.as_json(),
            "because": self.cause.chains() if self.cause else [],
            "notes": list(self.notes),
        }


def explain_stage(run: RunRecord, stage: str) -> list[Explanation]:
    """Explain why a stage's nodes ran: one, or one for each model that a report looked at.

    Raises RecipeError for a stage that the run has not, with the nearest name.
    """
    keys = run.nodes()
    names = [stage] if stage in keys else [n for n in keys if n.partition("@")[0] == stage]
    if not names and (record := run.record(stage)) is not None:
        names = [run.name_of(record["key"]) or stage]  # a model of a report on all at once
    if not names:
        if not keys:
            run.require_records()
        raise RecipeError(f"{run.folder}: no stage {stage!r} in this run; {nearest(stage, keys)}")
    history = _History(run)
    return [history.explain(name) for name in names]


@dataclass(frozen=True)
class _History:
    """One run among those that lie in the same outputs folder."""

    run: RunRecord

    @cached_property
    def earlier(self) -> list[RunRecord]:
        """Runs that began before this one, the latest first."""
        run = self.run
        folders = list_run_folders(run.outputs) if run.outputs is not None else ()
        others = [RunRecord(f) for f in folders if f.resolve() != run.folder.resolve()]
        runs = sorted(((_order(other), other) for other in others), key=lambda pair: pair[0])
        return [other for order, other in reversed(runs) if order < _order(run)]

    def explain(self, name: str) -> Explanation:
        run, key = self.run, self.run.nodes()[name]
        record = run.record(name)
        if record is not None and record["cached"]:
            origin, notes = self._find_maker(key)
            return Explanation(name, record["stage"], key, "cached", "cached", origin, notes=notes)
        kind = record["stage"] if record is not None else _find_kind(run, name)
        explanation = Explanation(name, kind, key, "first", "run" if record else str(run.status))
        return self._explain_repeat(explanation) or self._explain_change(explanation)

    def _find_maker(self, key: str) -> tuple[Origin, tuple[str, ...]]:
        """Find where an artifact that came from the store was made."""
        manifest = self.run.manifest(key)
        notes = [] if manifest is not None else ["it is no longer in the store"]
        if (damaged := self._find_damaged(key)) is not None:
            notes.append(f"this run found it damaged and made it again; see {damaged}")
        origin = Origin(key, _find_time_made(self.run, key))
        for run in self.earlier:
            for record in _find_records(run.folder, key):
                if not record.get("cached", True):
                    stage = str(record.get("name"))
                    return replace(origin, run=run.folder, stage=stage), tuple(notes)
        return origin, tuple(notes)

    def _explain_repeat(self, explanation: Explanation) -> Explanation | None:
        """Say what became of an artifact of this very key that was there before, if one was."""
        key = explanation.key
        damaged, before = self._find_damaged(key, explanation.name), self._find_run(key)
        if damaged is None and before is None:
            return None
        note = "it was in the store before, and had been removed from it"
        if damaged is not None:
            note = f"it was damaged in the store, and is set aside in {damaged}"
        origin = Origin(key, run=before, stage=self.run.name_of(key))
        return replace(explanation, reason="made again", origin=origin, notes=(note,))

    def _find_run(self, key: str) -> Path | None:
        """Find the latest earlier run that has a record of a key."""
        return next((r.folder for r in self.earlier if _find_records(r.folder, key)), None)

    def _find_damaged(self, key: str, name: str | None = None) -> Path | None:
        """Find where an artifact lies that this run, or one stage of it, found to be damaged."""
        if self.run.store is None:
            return None
        begin, end = self.run.window(name)
        for folder in sorted((self.run.store.folder / "damaged").glob(f"{key}-*")):
            stamp = folder.name.rpartition("-")[2]
            if stamp.isdigit() and begin - 1e-3 <= int(stamp) / 1e9 <= end + 1e-3:
                return folder
        return None

    def _explain_change(self, explanation: Explanation) -> Explanation:
        """Say what differs from the same stage of an earlier run, or the most similar artifact."""
        name, key = explanation.name, explanation.key
        unfinished: list[str] = []
        gone: list[str] = []
        for before in self._runs_with(name):
            old = before.nodes()[name]
            if old == key:  # an artifact of it would have been taken, or been made again
                note = f"began it with the same key and did not end it ({before.status})"
                unfinished.append(f"{before.folder} {note}")
            elif before.key_parts(old) is None:
                gone.append(f"what {before.folder} had is no longer in the store")
            else:
                origin: Origin | None = Origin(
                    old, _find_time_made(before, old), before.folder, name
                )
                side = Side.of(before)
                break
        else:
            origin, side = self._find_most_similar(key), Side.of(self.run)
            if origin is not None and not unfinished:
                gone.append("no earlier run of this recipe is left that had this stage")
        notes = (*unfinished, *gone)
        if origin is None:
            return replace(explanation, reason="changed" if gone else "first", notes=notes)
        cause = find_cause(name, origin.key, key, side, Side.of(self.run))
        return replace(explanation, reason="changed", origin=origin, cause=cause, notes=notes)

    def _runs_with(self, name: str) -> Iterator[RunRecord]:
        """Give earlier runs of the same recipe that had the stage, the latest first."""
        for run in self.earlier:
            try:
                if run.name == self.run.name and name in run.nodes():
                    yield run
            except RecipeError:  # a damaged one has nothing to say
                continue

    def _find_most_similar(self, key: str) -> Origin | None:
        """Find the earlier artifact of the same kind whose parts differ in the fewest places."""
        parts, store = self.run.key_parts(key), self.run.store
        if parts is None or store is None:
            return None
        limit = _find_time_made(self.run, key)
        similar: list[tuple[int, str, Origin]] = []
        for manifest in _read_manifests(store):
            made, others, other = str(manifest["made"]), manifest["key_parts"], manifest["key"]
            is_earlier = other != key if limit is None else made < limit  # of whole seconds
            if others.get("stage") == parts["stage"] and is_earlier:
                count = len(find_differences(_name_inputs(others), _name_inputs(parts)))
                origin = Origin(other, made, stage=str(manifest.get("name")))
                similar.append((count, other, origin))
        if not similar:
            return None
        origin = min(similar, key=lambda entry: entry[:2])[2]
        return replace(origin, run=self._find_run(origin.key))


def _order(run: RunRecord) -> tuple[datetime, tuple[str, int]]:
    return run.start_time, sort_key(run.folder)


def _find_records(folder: Path, key: str) -> list[Record]:
    """Find a run's records of a key; none where the file is damaged."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
        records = json.loads(text) if key in text else []
    except (OSError, ValueError, RecursionError):
        return []
    return [r for r in records if isinstance(r, dict) and r.get("key") == key]


def _read_manifests(store: Store) -> Iterator[dict[str, Any]]:
    for path in sorted(store.folder.glob(f"*/{MANIFEST}")):
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if {"key", "made", "key_parts"} <= manifest.keys():
                yield manifest
        except (OSError, ValueError, AttributeError, RecursionError):
            continue


def _name_inputs(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {**parts, "inputs": list_inputs(parts)}


def _find_time_made(run: RunRecord, key: str) -> str | None:
    manifest = run.manifest(key)
    return None if manifest is None else manifest.get("made")


def _find_kind(run: RunRecord, name: str) -> str | None:
    """Find the kind of a stage that left no record in the recipe."""
    stage = name.partition("@")[0]
    settings = (run.recipe.get("stages") or {}).get(stage) or {}
    return str(settings.get("stage", stage)) if run.recipe else None


def print_explanation(explanation: Explanation, console: Console) -> None:
    """Print an explanation in sentences."""
    name, origin, cause = explanation.name, explanation.origin, explanation.cause
    ended = explanation.ended
    ran = f"{name} ran" if ended in {"run", "cached"} else f"{name} ran ({ended})"
    if explanation.reason == "cached":
        console.say(f"{name} did not run: it came from the store, {origin}")
    elif explanation.reason == "made again":
        assert origin is not None
        where = f" (it was there for {origin.run})" if origin.run is not None else ""
        console.say(f"{ran}, though nothing in its key had changed{where}")
    elif cause is not None:
        assert origin is not None
        for number, chain in enumerate(cause.chains()):
            console.say(f"{ran} because {chain}" if number == 0 else f"  and because {chain}")
        what = f"{origin.stage} of {origin.run}" if origin.run else "an artifact"
        console.say(f"  compared with {what}, made {origin.made or _UNKNOWN_TIME}")
    elif explanation.reason == "first":
        console.say(f"{ran}: the store had no {explanation.kind or 'such'} stage before")
    else:
        console.say(f"{ran}: what it was compared with is gone")
    for note in explanation.notes:
        console.say(f"  {note}")
