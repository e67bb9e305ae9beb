"""`why`: what made a stage of a run work again, or where its result came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core.errors import RecipeError, nearest
from compressor.core.files import MANIFEST
from compressor.engine.past_run import METRICS, PastRun, Record, order, run_folders
from compressor.engine.provenance import differences
from compressor.engine.store.store import Store
from compressor.reports.key_diff import Cause, Side, cause, inputs, written
from compressor.reports.show import state

if TYPE_CHECKING:
    from compressor.core.console import Console

Reason = Literal["cached", "changed", "made again", "first"]
_RECIPE_ONLY = {"name", "description", "outputs", "skip", "objective", "search"}
"""Keys of a recipe that no stage's key is made of."""


@dataclass(frozen=True)
class Origin:
    """An artifact that a stage is compared with, or that it took."""

    key: str
    made: str | None = None
    """When, as the store tells it."""
    run: Path | None = None
    """The run that made it, where that is known."""
    stage: str | None = None
    """What it is called there."""

    def __str__(self) -> str:
        where = f"by the run {self.run}" if self.run is not None else "by a run that is not known"
        return f"made {self.made or 'at a time that is not known'} {where}"

    def as_json(self) -> dict[str, Any]:
        run = None if self.run is None else str(self.run)
        return {"key": self.key, "made": self.made, "run": run, "stage": self.stage}


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
        """What `why --json` prints."""
        return {
            "stage": self.name,
            "kind": self.kind,
            "key": self.key,
            "reason": self.reason,
            "ended": self.ended,
            "from" if self.reason == "cached" else "compared_with": (
                None if self.origin is None else self.origin.as_json()
            ),
            "cause": None if self.cause is None else self.cause.as_json(),
            "because": [] if self.cause is None else self.cause.chains(),
            "notes": list(self.notes),
        }


def explain(run: PastRun, stage: str) -> list[Explanation]:
    """Why a stage's nodes ran: one, or one for each model that a report looked at.

    Raises RecipeError for a stage that the run has not, with the nearest name.
    """
    keys = run.nodes()
    named = [stage] if stage in keys else [n for n in keys if n.partition("@")[0] == stage]
    if not named and (record := run.record(stage)) is not None:
        named = [run.name_of(record["key"]) or stage]  # a model of a report on all at once
    if not named:
        if not keys:
            run.require_records()
        raise RecipeError(f"{run.folder}: no stage {stage!r} in this run; {nearest(stage, keys)}")
    history = _History(run)
    return [history.explain(name) for name in named]


class _History:
    """One run among those that lie in the same outputs folder."""

    def __init__(self, run: PastRun) -> None:
        self.run = run
        self.earlier = _earlier(run)

    def explain(self, name: str) -> Explanation:
        run, key = self.run, self.run.nodes()[name]
        record = run.record(name)
        if record is not None and record["cached"]:
            origin, notes = self._maker(key)
            return Explanation(name, record["stage"], key, "cached", "cached", origin, notes=notes)
        kind = record["stage"] if record is not None else _kind(run, name)
        base = Explanation(name, kind, key, "first", "run" if record else str(state(run)))
        again = self._made_again(name, key)
        if again is not None:
            return replace(base, reason="made again", origin=again[0], notes=(again[1],))
        return self._changed(base)

    def _maker(self, key: str) -> tuple[Origin, tuple[str, ...]]:
        """Where an artifact that came from the store was made."""
        manifest = self.run.manifest(key)
        made = None if manifest is None else manifest.get("made")
        notes = [] if manifest is not None else ["it is no longer in the store"]
        if (aside := self._set_aside(key)) is not None:
            notes.append(f"this run found it damaged and made it again; see {aside}")
        for folder in self.earlier:
            for record in _records_with(folder, key):
                if not record.get("cached", True):
                    return Origin(key, made, folder, str(record.get("name"))), tuple(notes)
        return Origin(key, made), tuple(notes)

    def _made_again(self, name: str, key: str) -> tuple[Origin, str] | None:
        """An artifact of this very key that was there before, and what became of it."""
        aside = self._set_aside(key, name)
        before = next((f for f in self.earlier if _records_with(f, key)), None)
        if aside is not None:
            what = f"it was damaged in the store, and is set aside in {aside}"
        elif before is not None:
            what = "it was in the store before, and had been removed from it"
        else:
            return None
        return Origin(key, run=before, stage=self.run.name_of(key)), what

    def _set_aside(self, key: str, name: str | None = None) -> Path | None:
        """Where an artifact lies that this run, or one stage of it, found to be damaged."""
        if self.run.store is None:
            return None
        begin, end = self.run.window(name)
        for place in sorted((self.run.store.folder / "damaged").glob(f"{key}-*")):
            stamp = place.name.rpartition("-")[2]
            if stamp.isdigit() and begin - 1e-3 <= int(stamp) / 1e9 <= end + 1e-3:
                return place
        return None

    def _changed(self, base: Explanation) -> Explanation:
        """What differs from the same stage of an earlier run, or the most similar artifact."""
        unfinished: list[str] = []
        gone: list[str] = []
        later = _side(self.run)
        for before in self._with_stage(base.name):
            key = before.nodes()[base.name]
            if key == base.key:  # an artifact of it would have been taken, or been made again
                what = f"began it with the same key and did not end it ({state(before)})"
                unfinished.append(f"{before.folder} {what}")
                continue
            if before.key_parts(key) is None:
                gone.append(f"what {before.folder} had is no longer in the store")
                gone += _recipes(before, self.run) if len(gone) == 1 else []
                continue
            found = cause(base.name, key, base.key, _side(before), later)
            origin = Origin(key, _made(before, key), before.folder, base.name)
            notes = (*unfinished, *gone)
            return replace(base, reason="changed", origin=origin, cause=found, notes=notes)
        similar = self._most_similar(base)
        if similar is None:
            reason: Reason = "changed" if gone else "first"
            return replace(base, reason=reason, notes=(*unfinished, *gone))
        store = self.run.store
        assert store is not None, "an artifact is in a store"
        found = cause(base.name, similar.key, base.key, later, later)
        none_left = "no earlier run of this recipe is left that had this stage"
        notes = (*unfinished, *gone, *([] if unfinished else [none_left]))
        return replace(base, reason="changed", origin=similar, cause=found, notes=notes)

    def _with_stage(self, name: str) -> Iterator[PastRun]:
        """Earlier runs of the same recipe that had the stage, the latest first."""
        for folder in self.earlier:
            try:
                run = PastRun.read(folder)
            except RecipeError:  # a damaged one has nothing to say
                continue
            if run.recipe == self.run.recipe and name in run.nodes():
                yield run

    def _most_similar(self, base: Explanation) -> Origin | None:
        """The earlier artifact of the same kind whose parts differ in the fewest places."""
        own, store = self.run.key_parts(base.key), self.run.store
        if own is None or store is None:
            return None
        limit = _made(self.run, base.key) or ""
        keys = [record["key"] for record in self.run.records]
        later = keys[keys.index(base.key) :] if base.key in keys else []  # `made` has whole seconds
        found: list[tuple[int, str, Origin]] = []
        for manifest in _manifests(store):
            made, parts, key = str(manifest["made"]), manifest["key_parts"], manifest["key"]
            is_earlier = key != base.key and key not in later and made <= (limit or made)
            if parts.get("stage") != own["stage"] or not is_earlier:
                continue
            count = len(differences(_flat_inputs(parts), _flat_inputs(own)))
            found.append((count, key, Origin(key, made, None, str(manifest.get("name")))))
        if not found:
            return None
        nearest_ = min(found, key=lambda each: each[:2])[2]
        maker = next((f for f in self.earlier if _records_with(f, nearest_.key)), None)
        return replace(nearest_, run=maker)


def _earlier(run: PastRun) -> list[Path]:
    """Folders of runs that began before this one, the latest first."""
    if run.outputs is None:
        return []
    own = run.folder.resolve()
    found = [
        (_started(folder), order(folder), folder)
        for folder in run_folders(run.outputs)
        if folder.resolve() != own
    ]
    mine = run.started, order(run.folder)
    return [each[2] for each in sorted(found, reverse=True) if each[:2] < mine]


def _started(folder: Path) -> datetime:
    try:
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        environment = {}
    return PastRun(folder, [], environment if isinstance(environment, dict) else {}, {}).started


def _records_with(folder: Path, key: str) -> list[Record]:
    """A run's records of a key; none where the file is damaged."""
    try:
        text = (folder / METRICS).read_text(encoding="utf-8")
        loaded = json.loads(text) if key in text else []
    except (OSError, ValueError, RecursionError):
        return []
    return [r for r in loaded if isinstance(r, dict) and r.get("key") == key]


def _manifests(store: Store) -> Iterator[dict[str, Any]]:
    for path in sorted(store.folder.glob(f"*/{MANIFEST}")):
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
            if {"key", "made", "key_parts"} <= loaded.keys():
                yield loaded
        except (OSError, ValueError, AttributeError, RecursionError):
            continue


def _flat_inputs(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {**parts, "inputs": inputs(parts)}


def _made(run: PastRun, key: str) -> str | None:
    manifest = run.manifest(key)
    return None if manifest is None else manifest.get("made")


def _kind(run: PastRun, name: str) -> str | None:
    """The kind of a stage that left no record, from the recipe."""
    own = name.partition("@")[0]
    settings = (run.values.get("stages") or {}).get(own) or {}
    return str(settings.get("stage", own)) if run.values else None


def _side(run: PastRun) -> Side:
    return Side(run.key_parts, run.name_of)


def _recipes(before: PastRun, after: PastRun) -> list[str]:
    """What differs between two runs' recipes, where their keys are no longer known."""
    found = [
        written(each)
        for each in differences(before.values, after.values)
        if each.path.partition(".")[0] not in _RECIPE_ONLY
    ]
    return [f"between the recipes differ: {'; '.join(found) or 'nothing'}"]


def print_explanation(found: Explanation, console: Console) -> None:
    """In sentences, for a person."""
    ended = "" if found.ended in {"run", "cached"} else f" ({found.ended})"
    if found.reason == "cached":
        console.say(f"{found.name} did not run: it came from the store, {found.origin}")
    elif found.reason == "made again":
        assert found.origin is not None
        where = f" (it was there for {found.origin.run})" if found.origin.run is not None else ""
        console.say(f"{found.name} ran{ended}, though nothing in its key had changed{where}")
    elif found.cause is not None:
        for number, chain in enumerate(found.cause.chains()):
            start = f"{found.name} ran{ended} because" if number == 0 else "  and because"
            console.say(f"{start} {chain}")
        assert found.origin is not None
        whose = f"{found.origin.stage} of {found.origin.run}" if found.origin.run else "an artifact"
        console.say(
            f"  compared with {whose}, made {found.origin.made or 'at a time that is not known'}"
        )
    elif found.reason == "first":
        console.say(
            f"{found.name} ran{ended}: the store had no {found.kind or 'such'} stage before"
        )
    else:
        console.say(f"{found.name} ran{ended}: what it was compared with is gone")
    for note in found.notes:
        console.say(f"  {note}")
