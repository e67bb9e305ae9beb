"""Optuna's journal in a sweep's folder: a text log that many processes may append to.

Optuna's file backend writes JSON lines and no pickle; of its samplers only `cmaes` stores one, and
is not offered.
"""

from __future__ import annotations

from pathlib import Path

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock

from compressor.errors import StageError

JOURNAL = "search.jsonl"


class SystemLock(BaseJournalFileLock):
    """The operating system's lock, which ends with the process that holds it, however that ends.

    Optuna's own are files that a killed process leaves behind: the next one waits 30 seconds.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_journal(path: Path) -> JournalStorage:
    """The journal, without the half of a line that a killed process may have left at its end.

    Raises StageError where it was changed by another hand.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = SystemLock(path)
    lock.acquire()
    try:
        if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        advice = "move its folder away, and the search begins anew on the same store"
        raise StageError(
            f"{path} is damaged ({type(error).__name__}: {error}); {advice}"
        ) from error
