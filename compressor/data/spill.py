"""Token ids of many rows in little memory: four bytes a token, on disk where they are many.

A list of Python's integers takes 36 bytes a token: 100,000 rows of 512 tokens were 1.8 GB.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, overload

SPILL_BYTES = 256 * 2**20
"""What is kept in memory: 67 M tokens. What is beyond lies in a temporary file without a name."""

_INTEGER = "i"

_BYTES = array(_INTEGER).itemsize


class IdRows(Sequence[list[int]]):
    """Rows of token ids, in their order; each is read as a list of its own.

    Where they are many, the last ones are in a temporary file, which is gone with this object.
    """

    def __init__(self, rows: Iterable[Sequence[int]] = (), *, spill: int = SPILL_BYTES) -> None:
        """`spill`: bytes that are kept in memory at most."""
        self._ids, self._ends, self._spill = array(_INTEGER), array("q", [0]), spill
        self._file: Any = None
        self.extend(rows)

    def extend(self, rows: Iterable[Sequence[int]]) -> None:
        """Add rows at the end."""
        added = array(_INTEGER)
        for row in rows:
            added.extend(row)
            self._ends.append(self._ends[-1] + len(row))
        if self._file is None and (len(self._ids) + len(added)) * _BYTES <= self._spill:
            self._ids.extend(added)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="compressor-")  # noqa: SIM115  # ours to keep
        self._file.write(added.tobytes())
        self._file.flush()

    def lengths(self) -> list[int]:
        """Count the tokens of each row."""
        return [end - start for start, end in pairwise(self._ends)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, place: int) -> list[int]: ...
    @overload
    def __getitem__(self, place: slice) -> list[list[int]]: ...
    def __getitem__(self, place: int | slice) -> list[int] | list[list[int]]:
        if isinstance(place, slice):
            return [self[row] for row in range(*place.indices(len(self)))]
        row = place + len(self) if place < 0 else place
        if not 0 <= row < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        start, end, here = self._ends[row], self._ends[row + 1], len(self._ids)
        if start < here or start == end:
            return self._ids[start:end].tolist()
        ids, size = array(_INTEGER), (end - start) * _BYTES
        ids.frombytes(os.pread(self._file.fileno(), size, (start - here) * _BYTES))
        return ids.tolist()

    def __eq__(self, other: object) -> bool:
        """Tell whether `other` has the same rows, as a list of lists, say."""
        if not isinstance(other, Sequence) or len(other) != len(self):
            return False
        return all(mine == list(theirs) for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


_PAGEOUT = 21
"""MADV_PAGEOUT of Linux 5.4 and later: unlike MADV_DONTNEED it loses nothing, whatever is there."""


def release_pages(columns: Any) -> None:
    """Let the pages of a mapped file go that columns of an Arrow table (`ChunkedArray`s) lie in.

    They stay resident otherwise. Where the system does not know the advice, nothing happens.
    """
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # not Linux
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for column in columns:
        for chunk in column.chunks:
            for buffer in filter(None, chunk.buffers()):
                start = buffer.address - buffer.address % mmap.PAGESIZE
                advise(start, buffer.address + buffer.size - start, _PAGEOUT)
