"""Which artifacts runs and sweeps name: those stay. Nothing is removed here, no JSON is parsed.

A run's folder has the keys of its whole plan from its first moment (`asked.json`), so that a run
that has only begun keeps what it counts on. Any 64 hexadecimal digits in a run's files count as a
key: a file that is damaged, or of another version, keeps what it names all the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from compressor.errors import StageError
from compressor.store import KEEPERS, Store

_KEY = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_FILES = frozenset({"metrics.json", "asked.json", "recipe.yaml", "events.jsonl", "sweep.json"})
"""Of a run or a sweep: the files that can name an artifact."""
_TEMPORARY = re.compile(r"\..+\.(\d{1,9})")
"""What `compressor.store.write_text` writes, beside a file of that name: its process's id."""
_WRITTEN = (".json", ".yaml", ".html", ".csv", ".md", ".txt")
_BLOCK_BYTES = 1 << 20


@dataclass
class Named:
    """What the runs and sweeps of some outputs folders name."""

    by_key: dict[str, set[Path]] = field(default_factory=dict)
    """Key → the runs' and sweeps' folders that name it."""
    temporary: list[Path] = field(default_factory=list)
    """Files that were being written when their process ended, or are being written now."""

    def add(self, keys: Iterator[str], owner: Path) -> None:
        for key in keys:
            self.by_key.setdefault(key, set()).add(owner)


def outputs_of(store: Store, outputs: Path) -> list[Path]:
    """Every folder whose runs use a store: a store that is a link has more than one.

    Raises StageError where one that has used it is not there: what its runs name is unknown.
    """
    found = {outputs.resolve(), store.folder.resolve().parent}
    notes = store.folder / KEEPERS
    for note in sorted(notes.iterdir()) if notes.is_dir() else ():
        try:
            place = Path(note.read_text(encoding="utf-8").strip())
        except (UnicodeDecodeError, IsADirectoryError) as error:
            raise StageError(f"{note} does not tell whose runs use this store: {error}") from error
        if not place.is_dir():
            raise StageError(
                f"the runs under {str(place)!r} use this store, and that folder is not to be found "
                f"from here; where it is gone for good, remove {str(note)!r}"
            )
        found.add(place.resolve())
    return sorted(found)


def named(store: Store, roots: list[Path]) -> Named:
    """What stands in the folders of all runs and sweeps below some outputs folders.

    Links to the folders of runs are followed, those in them are not. Raises StageError where a
    folder or a file of a run cannot be read: nobody then knows what it keeps.
    """
    reader = _Reader(store.folder.resolve())
    try:
        for root in roots:
            for part in ("runs", "sweeps"):
                if (root / part).is_dir():
                    reader.read(root / part, None)
    except OSError as error:
        raise StageError(f"what a run keeps is unknown, so nothing is removed: {error}") from error
    return reader.found


@dataclass
class _Reader:
    store: Path
    found: Named = field(default_factory=Named)
    seen: set[Path] = field(default_factory=set)

    def read(self, folder: Path, owner: Path | None) -> None:
        """Look at a folder and those below it. `owner`: the run or sweep that it is a part of."""
        real = folder.resolve()
        if real in self.seen or real.is_relative_to(self.store):
            return
        self.seen.add(real)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        if owner is None and any(entry.name in _FILES for entry in entries):
            owner = folder
        for entry in entries:
            place = Path(entry.path)
            if entry.is_symlink():
                keys = _KEY.findall(os.fsencode(place.readlink()))
                self.found.add(map(bytes.decode, keys), owner or folder)
                if not place.exists():  # it leads nowhere, or to itself
                    continue
                if owner is not None and entry.is_dir():  # only the name counts
                    continue
            if entry.is_dir():
                self.read(place, owner)
            elif entry.name in _FILES and entry.is_file():
                self.found.add(_keys(place), owner or folder)
            elif _TEMPORARY.fullmatch(entry.name) and place.stem.endswith(_WRITTEN):
                self.found.temporary.append(place)


def _keys(path: Path) -> Iterator[str]:
    """Every key in a file, which may be long: of a day's events, say."""
    with path.open("rb") as stream:
        rest = b""
        while block := stream.read(_BLOCK_BYTES):
            text = rest + block
            yield from map(bytes.decode, _KEY.findall(text))
            rest = text[-128:]


def written_by(path: Path) -> int:
    """The id of the process that wrote a temporary file."""
    return int(path.name.rpartition(".")[2])
