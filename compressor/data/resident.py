"""Tells the system that what was read of a mapped file need not stay in memory."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

_PAGEOUT = 21
"""MADV_PAGEOUT of Linux 5.4 and later: unlike MADV_DONTNEED it loses nothing, whatever is there."""


def let_go(columns: Any) -> None:
    """Let the pages go that columns of an Arrow table (`ChunkedArray`s) lie in.

    A process that reads a mapped file from end to end else has all of it resident. Where the
    system does not know the advice, nothing happens; what is read again is read from the file.
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
