"""Whether what a store holds is what was written, and what lies there beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compressor import machine
from compressor.doctor.finding import Finding, State
from compressor.errors import DamagedArtifact
from compressor.files import MANIFEST
from compressor.garbage.survey import KEY, Item, leftovers, measured, trashed
from compressor.garbage.told import size
from compressor.recorded import NOTES
from compressor.store import KEEPERS, Store

AREA = "store"
_GC = "compressor gc"
_AGAIN = "the next run that needs it sets it aside and makes it again; --repair does so now"
_OURS = {"partial", "damaged", "locks", KEEPERS, NOTES}


def artifacts(
    store: Store, *, quick: bool, repair: bool, advance: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Every artifact against its manifest, in as many threads as there are cores.

    `advance(done, of)` is called after each. What a `gc` removes meanwhile is no fault.
    """
    keys = [key for key in _names(store) if KEY.fullmatch(key)]
    wrong: list[Finding] = []
    threads = machine.cores()  # SHA-256 and reading leave the interpreter's lock
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(lambda key: _artifact(store, key, quick=quick, repair=repair), keys)
        for done, each in enumerate(found, 1):
            wrong += each
            advance(done, len(keys))
    how = "files have the sizes" if quick else "bytes have the SHA-256"
    whole = len(keys) - len({each.place for each in wrong if each.state == "error"})
    yield Finding(AREA, "ok", f"{whole:,} of {len(keys):,} artifacts: {how} of their manifests")
    yield from wrong


def _names(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir()) if store.folder.is_dir() else []


def _artifact(store: Store, key: str, *, quick: bool, repair: bool) -> list[Finding]:
    place = store.path(key)
    if place.is_symlink():
        return [Finding(AREA, "error", "is a link, and no artifact", str(place), "remove it")]
    try:
        store.verify(key, sizes_alone=quick)
        extra = store.set_strange_aside(key) if repair else store.strange(key)
    except (DamagedArtifact, OSError) as error:
        if not place.exists():  # removed meanwhile
            return []
        reason = error.reason if isinstance(error, DamagedArtifact) else str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"it has no {MANIFEST}"
        return [_aside(store, key, reason) if repair else _damaged(place, reason)]
    if not extra:
        return []
    message = f"has {len(extra)} files that its manifest does not name: {', '.join(extra[:3])}"
    cure = "the next run that reads it sets them aside: they can change what is loaded"
    return [Finding(AREA, "warning", message, str(place), "set aside" if repair else cure)]


def _damaged(place: Path, reason: str) -> Finding:
    return Finding(AREA, "error", reason, str(place), _AGAIN)


def _aside(store: Store, key: str, reason: str) -> Finding:
    """Set an artifact aside, if it is still damaged and no process works on it."""
    place = store.path(key)
    with store.lock_at_once(key) as mine:
        if not mine:
            return Finding(AREA, "warning", f"{reason}; a process is making it again", str(place))
        try:
            store.verify(key)
        except DamagedArtifact:
            aside = store.set_aside(key)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                return _damaged(place, reason)
            aside = store.set_aside(key)
        else:
            aside = None
    where = f"; set aside as {aside}" if aside is not None else ""
    return Finding(AREA, "warning", f"{reason}{where}", str(place), "the next run makes it again")


def _files(folder: Path) -> set[str]:
    """Every file below a folder, as a manifest names it; links are files, and not followed."""
    return {
        (Path(place) / name).relative_to(folder).as_posix()
        for place, folders, files in os.walk(folder)
        for name in (*files, *(each for each in folders if (Path(place) / each).is_symlink()))
    }


def left_behind(store: Store) -> Iterator[Finding]:
    """Half artifacts, checkpoints, damaged ones, and what is not of the store's making."""
    known = {
        "unfinished": "of runs that ended before they were done",
        "checkpoint": "of trainings that were killed: the same run goes on from them",
        "damaged": "set aside, damaged or strange to their artifact: look at them, or remove them",
    }
    items = list(leftovers(store))
    for kind, message in known.items():
        those = [item for item in items if item.kind == kind]
        free = [item for item in those if not _in_use(store, item)]
        if busy := len(those) - len(free):
            yield Finding(AREA, "ok", f"{busy} {kind}: a process is at work")
        if free:
            total = sum(item.bytes for item in free)
            text = f"{len(free)} {kind} ({size(total)}) {message}"
            state: State = "ok" if kind == "checkpoint" else "warning"
            yield Finding(AREA, state, text, str(free[0].path.parent), _GC)
    if trash := trashed(store):
        total = sum(measured(place)[0] for place in trash)
        text = f"{len(trash)} ({size(total)}) that a killed gc was removing"
        yield Finding(AREA, "warning", text, str(store.folder), _GC)
    names = [n for n in _names(store) if not KEY.fullmatch(n) and n not in _OURS]
    if others := [name for name in names if store.folder / name not in trash]:
        text = f"{len(others)} entries are not of the store: {', '.join(others[:3])}"
        yield Finding(AREA, "warning", text, str(store.folder), "gc leaves them alone")


def _in_use(store: Store, item: Item) -> bool:
    return item.key is not None and store.is_locked_now(item.key)


def links(outputs: Path) -> Iterator[Finding]:
    """The links of runs and sweeps that lead nowhere."""
    total, lost = 0, dict[Path, int]()
    for part in ("runs", "sweeps"):
        for place, folders, files in os.walk(outputs / part):
            for name in (*folders, *files):
                path = Path(place) / name
                if path.is_symlink():
                    total += 1
                    if not path.exists():
                        run = path.parent.parent if path.parent.name == "stages" else path.parent
                        lost[run] = lost.get(run, 0) + 1
    yield Finding("runs", "ok", f"{total - sum(lost.values()):,} of {total:,} links lead somewhere")
    for run, count in sorted(lost.items()):
        text = f"{count} links lead nowhere: the artifacts are gone"
        cure = f"compressor reproduce {run}, or remove the folder"
        yield Finding("runs", "warning", text, str(run), cure)
