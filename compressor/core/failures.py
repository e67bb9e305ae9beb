"""Explain errors of a disk or memory that ran out, in whatever a library raised, with the cure."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from compressor.core.numbers import format_bytes
from compressor.core.redaction import redact_text

_CODE = re.compile(r"\((?:os )?error (\d+)\)|\[Errno (\d+)\]")
"""How Rust's libraries (safetensors, tokenizers) and Python's texts name an error of the system."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("std::bad_alloc", "unable to allocate", "failed to allocate", "os error 12)"),
)
"""Words of torch, numpy, Arrow, the system and C++, in lower case."""
_SIGNAL = re.compile(r"Signal (\d+) \(SIG\w+\)|exitcode\s*:\s*-(\d+)")
"""How torch's launcher logs which signal ended a worker."""


def explain_error(error: BaseException, folder: Path | None = None) -> str | None:
    """Say what ran out or was refused, where, and what to do; None for any other error.

    `folder`: where it was writing, for errors of libraries that do not name the file.
    """
    causes = list(_walk_causes(error))
    for cause in causes:
        if (explanation := _explain_file_error(cause, folder)) is not None:
            return explanation
    for cause in filter(_is_memory_error, causes):
        return f"out of memory: {f'{type(cause).__name__}: {cause}'.splitlines()[0][:200]}"
    return None


def describe_error(error: BaseException, folder: Path | None = None) -> str:
    """Say in a line why something failed, with a cure where there is one, without secrets."""
    explanation = explain_error(error, folder)
    return redact_text(explanation or f"{type(error).__name__}: {error}".splitlines()[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether `explain_error` says that memory ran out."""
    return (explain_error(error) or "").startswith("out of memory")


def explain_signal(code: int, log: str = "") -> str | None:
    """Say which signal ended a process, by its exit code or a launcher's log; None if none did."""
    match = _SIGNAL.search(log)
    number = -code if code < 0 else int(match[1] or match[2]) if match else 0
    if not number:
        return None
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    hint = ", often by the system when memory runs out: see `dmesg`"
    return f"was killed by signal {number} ({name}){hint if number == signal.SIGKILL else ''}"


def _walk_causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it came from, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _explain_file_error(error: BaseException, folder: Path | None) -> str | None:
    code = _find_code(error)
    if code not in _FULL | _REFUSED:
        return None
    name = getattr(error, "filename", None)
    place = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else folder
    file = place or "a file"
    if code == errno.EROFS:
        return f"{file}: its file system is read-only; outputs=DIR writes elsewhere"
    if code in _REFUSED:
        return f"{file}: this user may not write or read it ({os.strerror(code)})"
    if code == errno.EFBIG:
        what = "the largest size of a file here is reached (see `ulimit -f`)"
    elif code == errno.EDQUOT:
        what = "this user's share of the disk is full"
    else:
        what = _describe_full_disk(place)
    again = "make room, or set outputs=DIR elsewhere; the same command goes on from here"
    return f"{file}: {what}; {again}"


def _find_code(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if (match := _CODE.search(str(error))) is not None:
        return int(match[1] or match[2])
    # C++ gives nothing but these words.
    return errno.ENOSPC if "No space left on device" in str(error) else None


def _describe_full_disk(place: Path | None) -> str:
    """Say what a file system has run out of: room, or its number of files."""
    if place is None:
        return "the disk is full"
    folder = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    about = os.statvfs(folder)
    total, free = (format_bytes(n * about.f_frsize) for n in (about.f_blocks, about.f_bavail))
    inodes = f" and {about.f_favail:,} of {about.f_files:,} inodes" if about.f_files else ""
    return f"the disk is full; without what was half written {free} of {total}{inodes} are free"


def _is_memory_error(error: BaseException) -> bool:
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":  # torch's
        return True
    of_system = getattr(error, "errno", None) == errno.ENOMEM
    return of_system or any(words in f"{kind}: {error}".lower() for words in _MEMORY)
