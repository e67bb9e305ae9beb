"""Remove from a store what no run refers to.

A run holds the store's `gc` lock while it writes down the keys of its plan. Under the same lock all
runs are read here, and what none refers to is renamed; files are deleted afterwards. So a run sees
a whole artifact or none, also where a `gc` is killed: the next one empties the trash.
"""

from __future__ import annotations

import re
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from compressor.core.errors import RecipeError
from compressor.engine.store.references import References, find_outputs, read_references, writer_of
from compressor.engine.store.store import GC_LOCK, Store, writer_lock
from compressor.engine.store.survey import TRASH, Item, list_trash, measure_item, survey

IN_USE = "in use by a process"

_WRITING_SECONDS = 24 * 3600.0
"""A temporary file that is older belongs to no process of any machine: writing takes seconds."""

_AMOUNT = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]+)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"b": 1} | {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgtp", 1)
    for binary in ("", "i")
}
_CENTURY, _EXABYTE = 100 * 366 * 86400.0, 10**18


@dataclass(frozen=True)
class Limits:
    """What may be removed; without either limit, all that no run refers to."""

    older_than: float | None = None
    """Seconds since it was last used."""
    max_size: int | None = None
    """Bytes that the store may have: the longest unused go until then."""

    @classmethod
    def parse(cls, older_than: str | None, max_size: str | None) -> Limits:
        """Read limits as a person writes them: `30d`, `20GB`. Raises RecipeError."""
        age = size = None
        if older_than is not None:
            example = "a number and s, m, h, d or w, such as 30d"
            age = _parse_amount("--older-than", older_than, _SECONDS, _CENTURY, example)
        if max_size is not None:
            example = "a number and a unit, such as 500MB or 20GB"
            size = int(_parse_amount("--max-size", max_size, _BYTES, _EXABYTE, example))
        return cls(age, size)


def _parse_amount(
    option: str, text: str, units: Mapping[str, int], limit: float, example: str
) -> float:
    match = _AMOUNT.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise RecipeError(f"{option}: {text!r}: expected {example}")
    if (amount := float(match[1]) * unit) > limit:
        raise RecipeError(f"{option}: {text!r} is too large")
    return amount


@dataclass(frozen=True)
class Removal:
    """What was removed, and why."""

    item: Item
    why: str


@dataclass
class GcResult:
    """What a `gc` did or, in a dry run, would do."""

    removed: list[Removal] = field(default_factory=list)
    kept: Counter[str] = field(default_factory=Counter)
    """Why something stays → how many."""
    failed: list[str] = field(default_factory=list)
    """What could not be removed, with the system's reason."""
    bytes_before: int = 0
    largest: list[tuple[Path, int]] = field(default_factory=list)
    """Runs and sweeps, and the bytes that each alone keeps; the largest first."""

    @property
    def bytes_freed(self) -> int:
        return sum(removal.item.bytes for removal in self.removed)


def collect_garbage(
    store: Store, outputs: Path, limits: Limits, *, dry_run: bool, say: Callable[[str], None]
) -> GcResult:
    """Remove what no run needs. Raises StageError where what runs need cannot be known."""
    if dry_run or not store.folder.is_dir():
        return _collect(store, outputs, limits, dry_run=True)
    waiting = "another process begins a run or collects in this store; waiting for it"
    with store.lock(GC_LOCK, lambda: say(waiting)):
        result = _collect(store, outputs, limits, dry_run=False)
    result.failed += _empty_trash(store)
    return result


def _collect(store: Store, outputs: Path, limits: Limits, *, dry_run: bool) -> GcResult:
    references, items = read_references(store, find_outputs(store, outputs)), survey(store)
    result = GcResult(bytes_before=sum(item.bytes for item in items))
    # Which lie in folders of runs, and free no bytes of the store.
    items += [replace(measure_item(p, "temporary"), bytes=0) for p in references.temporary]
    left, now = result.bytes_before, time.time()
    for item in sorted(items, key=lambda item: (item.kind == "artifact", item.used)):
        goes, why = decide(item, references, limits, left, now)
        if not goes:
            result.kept[why] += 1
        elif (refusal := _remove(store, item, dry_run=dry_run)) is None:
            result.removed.append(Removal(item, why))
            left -= item.bytes
        elif refusal == IN_USE:
            result.kept[IN_USE] += 1
        else:
            result.failed.append(refusal)
    result.largest = _rank_sole_users(items, references)
    return result


def decide(
    item: Item, references: References, limits: Limits, store_bytes: int, now: float
) -> tuple[bool, str]:
    """Decide by runs, age and size whether one thing is removed, and say why."""
    match item.kind:
        case "trash":
            return True, "an earlier gc was removing it"
        case "lock":
            return True, "nobody holds it"
        case "unfinished":
            return True, "a run that has ended left it half made"
        case "temporary":
            is_written = psutil.pid_exists(writer_of(item.path)) or item.age(now) < _WRITING_SECONDS
            return not is_written, "being written" if is_written else "its process has ended"
    if item.key in references.by_key:
        return False, f"{item.kind}s that runs name"
    if limits.older_than is not None and item.age(now) < limits.older_than:
        return False, "too young"
    if limits.max_size is not None and store_bytes <= limits.max_size:
        return False, "small enough already"
    return True, "damaged" if item.kind == "damaged" else "no run names it"


def _remove(store: Store, item: Item, *, dry_run: bool) -> str | None:
    """Rename what no process uses to trash, or only look whether it can be. Returns why not."""
    names = [item.path.stem] if item.kind == "lock" else []
    names += [item.key, writer_lock(item.key)] if item.key is not None else []
    try:
        with ExitStack() as locks:
            for name in names:
                is_held = dry_run and store.is_locked(name)
                if is_held or not (dry_run or locks.enter_context(store.try_lock(name))):
                    return IN_USE
            if item.kind == "temporary" and not dry_run:
                item.path.unlink(missing_ok=True)
            elif item.kind not in {"trash", "lock"} and not dry_run:  # `try_lock` removes a lock
                item.path.rename(store.folder / f"{TRASH}{item.path.name}-{uuid.uuid4().hex}")
    except OSError as error:
        return f"{item.path}: {error.strerror or error}"
    return None


def _empty_trash(store: Store) -> list[str]:
    """Delete what was renamed. Returns what could not be deleted, and why."""
    failed: list[str] = []
    for path in list_trash(store):
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder:
            shutil.rmtree(path, ignore_errors=True)  # all of it that can be
        try:
            shutil.rmtree(path) if is_folder else path.unlink()
        except FileNotFoundError:  # it is gone
            continue
        except OSError as error:
            failed.append(f"{error.filename}: {error.strerror or error}")
    return failed


def _rank_sole_users(items: list[Item], references: References) -> list[tuple[Path, int]]:
    """Give each run's and sweep's folder with the bytes that nothing else keeps."""
    sizes: Counter[Path] = Counter()
    for item in items:
        owners = references.by_key.get(item.key or "", set())
        if len(owners) == 1:
            sizes[next(iter(owners))] += item.bytes
    return sizes.most_common()
