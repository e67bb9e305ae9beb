"""Find the artifacts that runs and sweeps refer to, which `gc` keeps. Removes nothing.

A run's `asked.json` has the keys of its whole plan from its first moment. Any 64 hexadecimal digits
in a run's files count as a key: a damaged file keeps what it names all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from compressor.core.errors import StageError
from compressor.engine.store.store import USERS, Store

_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_FILES = frozenset({"metrics.json", "asked.json", "recipe.yaml", "events.jsonl", "sweep.json"})
"""Files of a run or a sweep that can name an artifact."""
_TEMPORARY = re.compile(r"\..+\.(?:json|yaml|html|csv|md|txt)\.\d{1,9}")
"""What `write_text` writes, beside a file of that name; the number is its process's id."""


@dataclass
class References:
    """Which runs and sweeps refer to which artifacts."""

    by_key: dict[str, set[Path]] = field(default_factory=dict)
    """Key → the folders of runs and sweeps that name it."""
    temporary: list[Path] = field(default_factory=list)
    """Files that are being written now, or were when their process was killed."""

    def add(self, keys: Iterable[bytes], owner: Path) -> None:
        for key in keys:
            self.by_key.setdefault(key.decode(), set()).add(owner)


def find_outputs(store: Store, outputs: Path) -> list[Path]:
    """Find every outputs folder whose runs use a store: a store that is a link has more than one.

    Raises StageError where a folder that has used it is missing: what its runs need is unknown.
    """
    folders = {outputs.resolve(), store.folder.resolve().parent}
    notes = store.folder / USERS
    for note in sorted(notes.iterdir()) if notes.is_dir() else ():
        folder = Path(note.read_text(encoding="utf-8").strip())
        if not folder.is_dir():
            raise StageError(
                f"runs under {str(folder)!r} use this store, and that folder cannot be found from "
                f"here; if it is gone for good, remove {str(note)!r}"
            )
        folders.add(folder.resolve())
    return sorted(folders)


def read_references(store: Store, roots: list[Path]) -> References:
    """Read the folders of all runs and sweeps below some outputs folders.

    Follows links to a run's folder and none inside it. Raises StageError where something cannot be
    read: nobody then knows what it keeps.
    """
    reader = _Reader(store.folder.resolve())
    try:
        for root in roots:
            for part in ("runs", "sweeps"):
                if (root / part).is_dir():
                    reader.read(root / part, None)
    except OSError as error:
        raise StageError(f"cannot tell what runs need, so nothing is removed: {error}") from error
    return reader.references


@dataclass
class _Reader:
    store: Path
    references: References = field(default_factory=References)
    seen: set[Path] = field(default_factory=set)

    def read(self, folder: Path, owner: Path | None) -> None:
        """Read a folder and those below it; `owner` is the run or sweep that they are part of."""
        real = folder.resolve()
        if real in self.seen or real.is_relative_to(self.store):
            return
        self.seen.add(real)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        if owner is None and any(entry.name in _FILES for entry in entries):
            owner = folder
        for entry in entries:
            path = Path(entry.path)
            if entry.is_symlink():
                self.references.add(_KEY.findall(os.fsencode(path.readlink())), owner or folder)
                if not path.exists() or (owner is not None and entry.is_dir()):
                    continue
            if entry.is_dir():
                self.read(path, owner)
            elif entry.name in _FILES:
                self.references.add(_read_keys(path), owner or folder)
            elif _TEMPORARY.fullmatch(entry.name):
                self.references.temporary.append(path)


def _read_keys(path: Path) -> Iterator[bytes]:
    """Find every key in a file, which may be long: the events of a day, say."""
    with path.open("rb") as stream:
        for line in stream:
            yield from _KEY.findall(line)


def writer_of(path: Path) -> int:
    """Read the id of the process that wrote a temporary file from its name."""
    return int(path.name.rpartition(".")[2])
