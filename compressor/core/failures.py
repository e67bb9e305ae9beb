"""What a machine can run out of, found in whatever a library raised, and told with what to do.

Files that cannot be written and memory that cannot be had. Nothing is caught or tried again here.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from compressor.core.redaction import redact_text

_CODE = re.compile(r"\((?:os )?error (\d+)\)|\[Errno (\d+)\]")
"""How Rust's libraries (safetensors, tokenizers) and Python's texts name an error of the system."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("std::bad_alloc", "unable to allocate", "failed to allocate"),
)
"""Of torch, numpy, Arrow, the system and C++; compared in lower case."""
_SIGNAL = re.compile(r"Signal (\d+) \(SIG\w+\)|exitcode\s*:\s*-(\d+)")
"""How torch's launcher tells which signal ended a worker."""
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def told(error: BaseException, folder: Path | None = None) -> str | None:
    """What was short or refused, where, and what to do; None for an error of another kind.

    `folder`: where it was writing, for errors of libraries that do not name the file.
    """
    for each in _causes(error):
        if (found := _of_files(each, folder)) is not None:
            return found
    for each in _causes(error):
        text = f"{type(each).__name__}: {each}"
        if _is_of_memory(each, text.lower()):
            return f"out of memory: {text.splitlines()[0][:200]}"
    return None


def describe_error(error: BaseException, folder: Path | None = None) -> str:
    """Say in a line why something failed, with a cure where there is one, without secrets."""
    return redact_text(told(error, folder) or f"{type(error).__name__}: {error}".splitlines()[0])


def is_of_memory(error: BaseException) -> bool:
    """Whether `told` says that memory was short."""
    return (told(error) or "").startswith("out of memory")


def ended_by(code: int, log: str = "") -> str | None:
    """Which signal ended a process, by its exit code or a launcher's log; None where none did."""
    found = _SIGNAL.search(log)
    number = -code if code < 0 else int(found[1] or found[2]) if found is not None else 0
    if not number:
        return None
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    hint = ""
    if number == signal.SIGKILL:
        hint = ", often the system's for want of memory: `dmesg` tells"
    return f"was killed by signal {number} ({name}){hint}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from, the outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _of_files(error: BaseException, folder: Path | None) -> str | None:
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := _CODE.search(str(error))) is not None:
        code = int(found[1] or found[2])
    if code is None and "No space left on device" in str(error):  # of C++, by its words alone
        code = errno.ENOSPC
    if code not in _FULL | _REFUSED:
        return None
    named = getattr(error, "filename", None)
    place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else folder
    what = str(place) if place is not None else "a file"
    if code == errno.EROFS:
        return f"{what}: its file system is read-only; outputs=DIR writes elsewhere"
    if code in _REFUSED:
        return f"{what}: this user may not write or read it ({os.strerror(code)})"
    again = "make room, or give outputs=DIR elsewhere; the same command goes on from here"
    if code == errno.EFBIG:
        return f"{what}: the largest size of a file here is reached (`ulimit -f` tells it); {again}"
    if code == errno.EDQUOT:
        return f"{what}: this user's share of the disk is full; {again}"
    return f"{what}: {_how_full(place)}; {again}"


def _how_full(place: Path | None) -> str:
    """What of a file system is used up: room, or its number of files."""
    if place is None:
        return "the disk is full"
    there = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
    about = os.statvfs(there)
    total, free = (_bytes(count * about.f_frsize) for count in (about.f_blocks, about.f_bavail))
    files = f" and {about.f_favail:,} of {about.f_files:,} inodes" if about.f_files else ""
    return f"the disk is full; without what was half written {free} of {total}{files} are free"


def _bytes(count: float) -> str:
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def _is_of_memory(error: BaseException, text: str) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return of_system or "os error 12)" in text or any(words in text for words in _MEMORY)
