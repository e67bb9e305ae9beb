"""Keep artifacts under their keys, each committed whole or not at all.

An artifact comes into the store in six steps. A process that is killed between any two of them
leaves nothing that counts as an artifact:

1. lock: one process makes a key, others wait for it (`Store.lock`);
2. begin: the stage gets an empty folder, `partial/<key>` (`Store.begin`);
3. write: the stage's files are flushed to the disk, and digested;
4. manifest: `manifest.json` lists them with their SHA-256, and is written last;
5. rename: `partial/<key>` becomes `<key>`, at once since both are on one file system;
6. forget: what the stage could have resumed from is removed.

`Store.commit` does the last four. What an artifact means is known to stages alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.core.errors import DamagedArtifact, RecipeError
from compressor.core.files import (
    MANIFEST,
    expand_home,
    hash_file,
    sync_to_disk,
    to_json,
    write_text,
)

SELF = "sha256"
"""Where a manifest has the digest of all else that it says."""
KEY = re.compile(r"[0-9a-f]{64}")
GC_LOCK = "gc"
"""Held by a run while it writes down the keys of its plan, and by `gc` while it reads these."""
MACHINE_LOCKS = "machines-"
"""Begins the names of locks by which the machines of one run see each other come and go."""
USERS = "outputs"
"""The folder of notes on who uses a store that is a link: see `Store.hold_off_gc`."""
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


def writer_lock(key: str) -> str:
    """Name the lock of the one process that writes an artifact's files."""
    return f"{key}.writer"


@dataclass(frozen=True)
class Store:
    """A folder of artifacts that any number of processes may share."""

    folder: Path

    @classmethod
    def of(cls, outputs: str) -> Store:
        """Give the store under a recipe's `outputs`. Raises RecipeError where that is no folder."""
        folder = expand_home(outputs)
        if "\0" in outputs or (outputs.startswith("~") and folder == Path(outputs)):
            raise RecipeError(f"outputs: {outputs!r} is no folder's name")
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise RecipeError(f"outputs: {str(nearest)!r} is a file, not a folder")
        return cls(folder / "store")

    def path(self, key: str) -> Path:
        return self.folder / key

    def list_keys(self) -> list[str]:
        """List everything that has an artifact's name, damaged or not."""
        try:
            with os.scandir(self.folder) as entries:
                return sorted(entry.name for entry in entries if KEY.fullmatch(entry.name))
        except FileNotFoundError:
            return []

    # Make an artifact

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Hold the sole right to make `key`; call `on_wait` if another process has it.

        The operating system frees the lock when its process ends, however that ends.
        """
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def begin(self, key: str) -> Path:
        """Make an empty folder to write `key` in. Call it under `lock(key)`."""
        partial = self.folder / "partial" / key
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def resume_folder(self, key: str) -> Path:
        """Give the folder of what a stage can resume from after a kill; removed by the commit."""
        return self.folder / "partial" / f"{key}.resume"

    def task_folder(self, key: str) -> Path:
        """Give the folder of the task and logs of a stage's processes; removed by the commit."""
        return self.folder / "partial" / f"{key}.task"

    def abandon(self, key: str) -> None:
        """Remove what a failed stage wrote, but not what the next try can resume from."""
        shutil.rmtree(self.folder / "partial" / key, ignore_errors=True)

    def commit(self, key: str, partial: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        """Make the files in `partial` the artifact `key`, and return its manifest."""
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): _seal(path) for path in paths}
        # What a reader will get: JSON's keys are texts, and its lists are no tuples.
        manifest: dict[str, Any] = json.loads(json.dumps({"key": key, **about, "files": files}))
        manifest[SELF] = manifest_digest(manifest)
        write_text(partial / MANIFEST, to_json(manifest))
        _give_permissions_of(partial / MANIFEST, paths)
        self.set_aside(key)  # whatever is in the way has no valid manifest
        partial.rename(self.path(key))
        sync_to_disk(self.folder)
        self._forget(key)
        return manifest

    def _forget(self, key: str) -> None:
        for folder in (self.resume_folder(key), self.task_folder(key)):
            shutil.rmtree(folder, ignore_errors=True)

    def forget_committed(self, key: str) -> None:
        """Remove what could be resumed from where the artifact exists already.

        A kill between rename and forget leaves it, as does a try in several processes.
        """
        if any(folder.exists() for folder in (self.resume_folder(key), self.task_folder(key))):
            with suppress(Timeout, OSError), self._file_lock(key).acquire(timeout=0):
                if self.has(key):
                    self._forget(key)

    # Read an artifact

    def has(self, key: str) -> bool:
        """Return whether the artifact exists and, by the sizes of its files, is whole."""
        try:
            self.verify(key, sizes_alone=True)
        except (DamagedArtifact, FileNotFoundError):
            return False
        return True

    def manifest(self, key: str) -> dict[str, Any]:
        """Read a manifest. Raises FileNotFoundError, or DamagedArtifact where it is no manifest."""
        try:
            text = (self.path(key) / MANIFEST).read_text(encoding="utf-8")
            manifest: dict[str, Any] = json.loads(text)
            if manifest["key"] != key:
                raise DamagedArtifact(key, "its manifest is another's")
            # The first versions wrote none.
            if SELF in manifest and manifest[SELF] != manifest_digest(manifest):
                raise DamagedArtifact(key, "its manifest has changed since it was written")
            if not isinstance(manifest["files"], dict):
                raise TypeError("`files` is no mapping")
        except (ValueError, KeyError, TypeError) as error:  # of JSON, of UTF-8
            raise DamagedArtifact(key, "its manifest cannot be read") from error
        return manifest

    def verify(self, key: str, *, sizes_alone: bool = False) -> dict[str, Any]:
        """Compare every file with the manifest. Raises FileNotFoundError and DamagedArtifact.

        With `sizes_alone` no file is read, and a changed byte is not seen.
        """
        manifest = self.manifest(key)
        for name, entry in manifest["files"].items():
            path = self.path(key) / name
            if not path.is_file():
                raise DamagedArtifact(key, f"{name} is missing")
            if path.stat().st_size != entry["bytes"]:
                raise DamagedArtifact(key, f"{name} has another size than when it was written")
            if not sizes_alone and hash_file(path) != entry["sha256"]:
                raise DamagedArtifact(key, f"{name} has changed since it was written")
        return manifest

    def mark_used(self, key: str) -> None:
        """Have `gc` count an artifact's age from now on."""
        with suppress(OSError):  # of another user, or in a read-only store
            os.utime(self.path(key) / MANIFEST)

    # Set damage aside

    def set_aside(self, key: str) -> Path | None:
        """Move a damaged artifact out of the way, for a person to look at."""
        if not os.path.lexists(self.path(key)):  # a link to nowhere is in the way too
            return None
        target = self.folder / "damaged" / f"{key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(target)
        return target

    def set_aside_if_damaged(self, key: str) -> Path | None:
        """Look again under the lock of `key`: another process may have made it again meanwhile."""
        try:
            self.verify(key)
        except (DamagedArtifact, FileNotFoundError):
            return self.set_aside(key)
        return None

    def find_unlisted(self, key: str) -> list[str]:
        """Name the files, but hidden ones, that the manifest does not list.

        A file beside a model's weights can change what is loaded.
        """
        folder, listed = self.path(key), {*self.manifest(key)["files"], MANIFEST}
        files = [path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()]
        names = {f.as_posix() for f in files if not any(part[0] == "." for part in f.parts)}
        return sorted(names - listed)

    def set_unlisted_aside(self, key: str) -> list[str]:
        """Move unlisted files out of an artifact, and name them."""
        names = self.find_unlisted(key)
        for name in names:
            target = self.folder / "damaged" / f"{key}-{time.time_ns()}" / name
            target.parent.mkdir(parents=True)
            (self.path(key) / name).rename(target)
        return names

    # Share a store with other runs, and with `gc`

    @contextmanager
    def hold_off_gc(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Keep `gc` waiting while a run or sweep writes down the keys that it counts on.

        What existed before may be gone inside; what exists inside stays while a run names it. In a
        store that is a link it is noted whose runs use it: `gc` may start from elsewhere.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self.lock(GC_LOCK, on_wait))
                place = str(self.folder.parent.resolve())
                note = self.folder / USERS / hashlib.sha256(place.encode()).hexdigest()[:16]
                if self.folder.is_symlink() and not note.is_file():
                    note.parent.mkdir(exist_ok=True)
                    write_text(note, f"{place}\n")
            except OSError as error:
                if error.errno not in _READ_ONLY:  # there `gc` can remove nothing either
                    raise
            yield

    def is_locked(self, key: str) -> bool:
        """Return whether a process holds the lock of `key`. Makes no lock file."""
        if not self._lock_path(key).exists():
            return False
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def try_lock(self, key: str) -> Iterator[bool]:
        """Hold the lock of `key` and leave no lock file; give False where another process has it.

        Whoever waits with the file open sees that it has lost its name, and makes a new one.
        """
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                raise
            yield True  # a full disk has no room for a new lock file, so nobody has one
            return
        try:
            yield True
        finally:
            self._lock_path(key).unlink(missing_ok=True)
            lock.release()

    def _lock_path(self, key: str) -> Path:
        return self.folder / "locks" / f"{key}.lock"

    def _file_lock(self, key: str) -> FileLock:
        path = self._lock_path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of what a manifest says beside it."""
    content = {name: value for name, value in manifest.items() if name != SELF}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _seal(path: Path) -> dict[str, Any]:
    """Flush a file to the disk, and describe it for the manifest."""
    sync_to_disk(path)
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def _give_permissions_of(manifest: Path, paths: list[Path]) -> None:
    """Give files the permissions of one that we have written ourselves, by the user's umask.

    Some libraries (safetensors) let the owner alone read theirs: a group could share no store.
    """
    mode = stat.S_IMODE(manifest.stat().st_mode)
    for path in paths:
        if stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
