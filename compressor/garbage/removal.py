"""What `compressor gc` removes, and how, so that no run loses what it counts on.

Under one lock of the store, which a run holds while it writes down the keys of its plan, all runs
are read and what no run names is renamed: a run sees an artifact before it is gone
for good or not at all. Only then are files deleted. A `gc` that is killed leaves no half artifact,
and the next one empties the trash.
"""

from __future__ import annotations

import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from compressor.errors import StageError
from compressor.garbage.named import Named, named, outputs_of, written_by
from compressor.garbage.survey import TRASH, Item, measured, survey, trashed
from compressor.store import COLLECTING, Store, writer_lock

_WRITING_SECONDS = 24 * 3600.0
"""A temporary file that is older belongs to no process of any machine: writing takes seconds."""


@dataclass(frozen=True)
class Asked:
    """What may go. Without either limit: all that no run names."""

    older_than: float | None = None
    """Seconds since it was last used."""
    max_size: int | None = None
    """Bytes that the store may have: the oldest go until then."""


@dataclass(frozen=True)
class Removal:
    """What goes, and why."""

    item: Item
    why: str


@dataclass
class Collected:
    """What a `gc` did or, as a dry run, would do."""

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
        return sum(each.item.bytes for each in self.removed if each.item.kind != "temporary")


def collect(
    store: Store, outputs: Path, asked: Asked, *, dry_run: bool, say: Callable[[str], None]
) -> Collected:
    """Remove what may go, or only find it. Raises StageError where what runs keep is unknown."""
    for name in ("partial", "damaged", "locks"):
        if (store.folder / name).is_symlink():
            raise StageError(f"{store.folder / name} is a link: nothing behind it is removed")
    if dry_run or not store.folder.is_dir():
        return _chosen(store, outputs, asked, _Removed(store, dry=True))
    waiting = "another process begins a run or collects in this store; waiting for it"
    with store.lock(COLLECTING, lambda: say(waiting)):
        removed = _Removed(store, dry=False)
        found = _chosen(store, outputs, asked, removed)
    found.failed += _empty_trash(store)
    return found


def _chosen(store: Store, outputs: Path, asked: Asked, removed: _Removed) -> Collected:
    """Decide of each thing whether it goes, and have it removed."""
    now = time.time()
    keepers = named(store, outputs_of(store, outputs))
    items = survey(store)
    temporary = [Item(place, "temporary", None, *measured(place)) for place in keepers.temporary]
    found = Collected(bytes_before=sum(item.bytes for item in items))
    left = found.bytes_before
    for item in sorted([*items, *temporary], key=lambda item: (item.kind == "artifact", item.used)):
        why = _why(item, keepers, asked, now)
        small = asked.max_size is not None and left <= asked.max_size
        if why.kept is not None:
            found.kept[why.kept] += 1
        elif small and item.kind in {"artifact", "checkpoint", "damaged"}:
            found.kept["small enough already"] += 1
        elif (refused := removed.remove(item)) is None:
            found.removed.append(Removal(item, why.goes))
            left -= item.bytes if item.kind != "temporary" else 0  # which lies in a run's folder
        elif refused == IN_USE:
            found.kept[IN_USE] += 1
        else:
            found.failed.append(refused)
    found.largest = _held_alone(items, keepers)
    return found


@dataclass(frozen=True)
class _Why:
    goes: str = ""
    kept: str | None = None


IN_USE = "in use by a process"


def _why(item: Item, keepers: Named, asked: Asked, now: float) -> _Why:
    """Why one thing goes or stays, as far as runs and its age tell."""
    if item.kind in {"trash", "lock"}:
        return _Why("an earlier gc was removing it" if item.kind == "trash" else "nobody holds it")
    if item.kind == "temporary":
        writing = psutil.pid_exists(written_by(item.path)) or item.age(now) < _WRITING_SECONDS
        return _Why(kept="being written") if writing else _Why("its process has ended")
    if item.kind == "unfinished":
        return _Why("a run that has ended left it half made")
    if item.key is not None and item.key in keepers.by_key:
        what = "artifacts" if item.kind == "artifact" else "checkpoints"
        return _Why(kept=f"{what} that runs name")
    if asked.older_than is not None and item.age(now) < asked.older_than:
        return _Why(kept="too young")
    return _Why("damaged" if item.kind == "damaged" else "no run names it")


def _held_alone(items: list[Item], keepers: Named) -> list[tuple[Path, int]]:
    """Each run's and sweep's folder with the bytes that nothing else keeps."""
    sizes: Counter[Path] = Counter()
    for item in items:
        owners = keepers.by_key.get(item.key or "", set())
        if len(owners) == 1:
            sizes[next(iter(owners))] += item.bytes
    return sizes.most_common()


@dataclass
class _Removed:
    """Takes things out of a store at once, by a rename; what a process uses stays."""

    store: Store
    dry: bool

    def remove(self, item: Item) -> str | None:
        """None where it is gone, or would be; else why not."""
        try:
            if item.kind == "lock":
                return self._remove_lock(item.path)
            with ExitStack() as locks:
                names = (item.key, writer_lock(item.key)) if item.key is not None else ()
                if not all(locks.enter_context(self._alone(name)) for name in names):
                    return IN_USE
                if self.dry or item.kind == "trash":
                    return None
                if item.kind == "temporary":
                    item.path.unlink(missing_ok=True)
                else:
                    self._to_trash(item.path)
        except OSError as error:
            return f"{item.path}: {error.strerror or error}"
        return None

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Whether no other process holds a lock; inside, none can take it."""
        if self.dry:
            yield not self.store.is_locked_now(name)
            return
        with self.store.lock_at_once(name) as mine:
            yield mine

    def _remove_lock(self, path: Path) -> str | None:
        name = path.name.removesuffix(".lock")
        with self._alone(name) as mine:  # which removes the file
            return None if mine else IN_USE

    def _to_trash(self, path: Path) -> None:
        path.rename(self.store.folder / f"{TRASH}{path.name}-{uuid.uuid4().hex}")


def _empty_trash(store: Store) -> list[str]:
    """Delete what was renamed; what could not be deleted, and why."""
    failed: list[str] = []

    def note(_: object, path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):  # another gc was quicker
            failed.append(f"{path}: {getattr(error, 'strerror', None) or error}")

    for place in trashed(store):
        if place.is_dir() and not place.is_symlink():
            _delete(place, note)
        else:
            place.unlink(missing_ok=True)
    return failed


def _delete(place: Path, note: Callable[[object, str, BaseException], None]) -> None:
    if sys.version_info >= (3, 12):
        shutil.rmtree(place, onexc=note)
    else:
        shutil.rmtree(place, onerror=lambda what, path, error: note(what, path, error[1]))
