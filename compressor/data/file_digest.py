"""The SHA-256 of a data file, read once while the file stays as it is."""

from __future__ import annotations

import hashlib
import time
from functools import lru_cache
from pathlib import Path

_SETTLED_SECONDS = 2.0
"""A file that was changed a moment ago may change again within one tick of its file system's clock:
its times do not tell yet."""
_FILES = 256
"""Digests that are remembered."""


def file_sha256(path: Path) -> str:
    """In hexadecimal. Planning asks for each stage that reads the file, and running twice more:
    of 5 GB each time would take some 5 to 15 s.

    A file counts as the same while its inode, size, and times of content and of status are; the
    last no program can set.
    """
    about = path.stat()
    place = str(path.resolve())
    changed = max(about.st_mtime, about.st_ctime)
    if time.time() - changed < _SETTLED_SECONDS:  # or in the future, of a clock that jumped
        return _read(place)
    known = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    return _remembered(place, known)


@lru_cache(_FILES)
def _remembered(place: str, _: tuple[int, ...]) -> str:
    return _read(place)


def _read(place: str) -> str:
    with Path(place).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
