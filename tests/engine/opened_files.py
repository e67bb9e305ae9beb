"""Which files a command opens: from Python, by an audit hook in each of its processes; and by any
library in any language, below folders that the kernel watches.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN, _IN_ISDIR = 0x20, 0x40000000
_EVENT = struct.Struct("iIII")
HOOK = """
import os, sys

log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        reads = arguments[2] & os.O_ACCMODE != os.O_WRONLY
        if reads:
            os.write(log, os.path.realpath(os.fsencode(arguments[0])) + b"\\n")


sys.addaudithook(note)
"""


def hook_variables(folder: Path) -> dict[str, str]:
    """Give variables under which every Python notes files that it opens to read: `read_noted`."""
    (folder / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "OPENED": str(folder / "opened")}


def read_noted(folder: Path) -> set[Path]:
    return {Path(line) for line in (folder / "opened").read_text().splitlines()}


@contextmanager
def watch_files(top: Path) -> Iterator[Callable[[], set[Path]]]:
    """Have Linux tell of each file below `top` that anybody opens, to read or to write."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    folders = {
        libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_OPEN): folder
        for folder in (top, *(path for path in top.rglob("*") if path.is_dir()))
    }
    assert descriptor >= 0 and min(folders) > 0, os.strerror(ctypes.get_errno())

    def opened() -> set[Path]:
        paths = set()
        try:
            while events := os.read(descriptor, 1 << 16):
                while events:
                    watch, mask, _, length = _EVENT.unpack_from(events)
                    name, events = events[16 : 16 + length].rstrip(b"\0"), events[16 + length :]
                    if not mask & _IN_ISDIR:
                        paths.add(folders[watch] / os.fsdecode(name))
        except BlockingIOError:
            return paths
        return paths

    try:
        yield opened
    finally:
        os.close(descriptor)
