"""The content-addressed store: artifacts under their keys, committed whole or not at all.

An artifact is a folder with a `manifest.json`, written last, that has a SHA-256 of every file.
Work in progress lives in `partial/<key>`, on the same file system, so that a commit is one
rename. What an artifact means is known to stages alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from compressor.errors import DamagedArtifact, RecipeError, StageError
from compressor.files import MANIFEST, expand_home, file_digest, flush, write_json, write_text

COLLECTING = "gc"
"""The lock of the store that a run holds while it writes down the keys of its plan, and `gc` while
it reads what runs have written: each sees all that the other has done, or nothing of it."""
MACHINES = "machines-"
"""Begins the names of locks by which the machines of one run see each other: to hold one for a
moment, as who asks for it does, is to come and go."""
KEEPERS = "outputs"
"""The folder of notes on who uses a store that is a link: see `Store.keeping`."""
SELF = "sha256"
"""Where a manifest has the digest of all else that it says."""
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
_AS_IT_IS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Of a path that somebody else may have made: no link is followed, no pipe is waited for."""
_NOT_A_FILE = {errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
"""What reading a manifest says where a link, a file or a folder stands in its place."""


def writer_lock(key: str) -> str:
    """The name of the lock that the one process that writes an artifact's files holds."""
    return f"{key}.writer"


@dataclass(frozen=True)
class Store:
    """A folder of artifacts that any number of processes may share."""

    folder: Path

    @classmethod
    def of(cls, outputs: str) -> Store:
        """The store under a recipe's `outputs`. Raises RecipeError where that is no folder."""
        folder = expand_home(outputs)
        if "\0" in outputs or (outputs.startswith("~") and folder == Path(outputs)):
            raise RecipeError(f"outputs: {outputs!r} is no folder's name")
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise RecipeError(f"outputs: {str(there)!r} is a file, not a folder")
        return cls(folder / "store")

    def path(self, key: str) -> Path:
        return self.folder / key

    def has(self, key: str) -> bool:
        """Whether the artifact is there and, by its manifest's sizes, whole."""
        try:
            self._check_sizes(key)
        except (DamagedArtifact, FileNotFoundError):
            return False
        return True

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest. Raises FileNotFoundError, or DamagedArtifact where it is not one."""
        try:
            loaded: dict[str, Any] = json.loads(own_text(self.path(key) / MANIFEST))
            if loaded["key"] != key or not isinstance(loaded["files"], dict):
                raise DamagedArtifact(key, "its manifest is another's")
            # One from before it had a digest of its own is taken as it is.
            if SELF in loaded and loaded[SELF] != manifest_digest(loaded):
                raise DamagedArtifact(key, "its manifest has changed since it was written")
            if not all(map(_is_entry, loaded["files"].items())):
                raise DamagedArtifact(key, "its manifest names what is no file of its own")
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # of JSON, of UTF-8
            raise DamagedArtifact(key, "its manifest cannot be read") from error
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            raise DamagedArtifact(key, f"its manifest is no file: {error.strerror}") from error
        return loaded

    def _check_sizes(self, key: str) -> dict[str, Any]:
        manifest = self.manifest(key)
        for name, entry in manifest["files"].items():
            path = self.path(key) / name
            if path.is_symlink() or not path.is_file():
                raise DamagedArtifact(key, f"{name} is missing")
            if path.stat().st_size != entry["bytes"]:
                raise DamagedArtifact(key, f"{name} has another size than when it was written")
        return manifest

    def verify(self, key: str, *, sizes_alone: bool = False) -> dict[str, Any]:
        """Read every file and compare it with the manifest. Raises DamagedArtifact.

        `sizes_alone`: read none, which a changed byte passes.
        """
        manifest = self._check_sizes(key)
        if sizes_alone:
            return manifest
        for name, entry in manifest["files"].items():
            if file_digest(self.path(key) / name) != entry["sha256"]:
                raise DamagedArtifact(key, f"{name} has changed since it was written")
        return manifest

    def set_aside(self, key: str) -> Path | None:
        """Move a damaged artifact out of the way, for a person to look at."""
        if not os.path.lexists(self.path(key)):  # a link to nowhere is in the way too
            return None
        target = self.folder / "damaged" / f"{key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(target)
        return target

    def strange(self, key: str) -> list[str]:
        """Names of files in a whole artifact that its manifest does not name.

        Beside a model a file can change what is loaded. Hidden ones are nobody's input.
        """
        folder, named = self.path(key), {*self.manifest(key)["files"], MANIFEST}
        found = [p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
        names = [path.relative_to(folder) for path in found]
        return sorted(
            name.as_posix()
            for name in names
            if name.as_posix() not in named and not any(p.startswith(".") for p in name.parts)
        )

    def set_strange_aside(self, key: str) -> list[str]:
        """Move what is `strange` out of an artifact, and give the names."""
        strange = self.strange(key)
        for name in strange:
            target = self.folder / "damaged" / f"{key}-{time.time_ns()}" / name
            target.parent.mkdir(parents=True)
            (self.path(key) / name).rename(target)
        return strange

    @contextmanager
    def lock(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the one right to write `key`; `waiting` is called once if another has it.

        The lock is the operating system's: it ends with the process that holds it, however that
        process ends.
        """
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def is_locked(self, key: str) -> bool:
        """Whether some process holds the right to write `key`."""
        lock = self._file_lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    @contextmanager
    def lock_at_once(self, key: str) -> Iterator[bool]:
        """Hold the right to write `key`, and leave no lock file; False where another has it.

        Who waits with the file open finds that it has no name any more, and makes a new one.
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
            yield True  # a full disk has no room for a lock: whoever held it would have one
            return
        try:
            yield True
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()

    @contextmanager
    def keeping(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Inside, a run or sweep writes down the keys that it counts on, and no `gc` removes any.

        What was there before may be gone inside; what is there inside stays while it is named.
        """
        with ExitStack() as held:
            try:
                held.enter_context(self.lock(COLLECTING, waiting))
                self._note_outputs()
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise  # else nothing can be removed here either, and what is there can be used
            yield

    def _note_outputs(self) -> None:
        """Where the store is a link, tell whoever collects it from elsewhere whose runs use it."""
        if self.folder.is_symlink():
            place = str(self.folder.parent.resolve())
            name = hashlib.sha256(place.encode()).hexdigest()[:16]
            note = self.folder / KEEPERS / name
            if not note.is_file():
                note.parent.mkdir(exist_ok=True)
                write_text(note, f"{place}\n")

    def touch(self, key: str) -> None:
        """Note that an artifact is used: `gc` counts its age from then on."""
        with suppress(OSError):  # another user's, or of a store that can only be read
            os.utime(self.path(key) / MANIFEST)

    def is_locked_now(self, key: str) -> bool:
        """`is_locked`, which makes no file where nobody has ever locked `key`."""
        return (self.folder / "locks" / f"{key}.lock").exists() and self.is_locked(key)

    def _file_lock(self, key: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def begin(self, key: str) -> Path:
        """An empty folder to write `key` in. Call it under `lock(key)`.

        Raises StageError where it would lie behind a link, which might lead anywhere.
        """
        for name in ("partial", "damaged", "locks"):
            if (self.folder / name).is_symlink():
                raise StageError(f"{self.folder / name} is a link: expected a folder of the store")
        partial = self.folder / "partial" / key
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def resume(self, key: str) -> Path:
        """Where a stage keeps what it needs to go on after it was killed; gone once committed."""
        return self.folder / "partial" / f"{key}.resume"

    def task(self, key: str) -> Path:
        """Where the processes that make it have their task and logs; gone once committed."""
        return self.folder / "partial" / f"{key}.task"

    def tidy(self, key: str) -> None:
        """Remove what is left to go on from where there is an artifact already: by a process that
        was killed between the two, or by a try in several processes before one that was alone.
        """
        if any(path.exists() for path in (self.resume(key), self.task(key))):
            # OSError: of a store that can only be read.
            with suppress(Timeout, OSError), self._file_lock(key).acquire(timeout=0):
                if self.has(key):
                    self._forget(key)

    def _forget(self, key: str) -> None:
        for path in (self.resume(key), self.task(key)):
            shutil.rmtree(path, ignore_errors=True)

    def abandon(self, key: str) -> None:
        """Remove what a failed try wrote, but not what the next one can go on from."""
        shutil.rmtree(self.folder / "partial" / key, ignore_errors=True)

    def commit(self, key: str, partial: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        """Make the files in `partial` the artifact `key`. Returns its manifest."""
        files = {}
        mode = _file_mode(partial)
        for path in sorted(item for item in partial.rglob("*") if item.is_file()):
            if stat.S_IMODE(path.stat().st_mode) != mode:
                path.chmod(mode)
            flush(path)
            name = path.relative_to(partial).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
        # As it will be read: JSON has texts for keys, and lists for tuples.
        manifest: dict[str, Any] = json.loads(json.dumps({"key": key, **about, "files": files}))
        manifest[SELF] = manifest_digest(manifest)
        write_json(partial / MANIFEST, manifest)
        target = self.path(key)
        self.set_aside(key)  # nothing, or what has no valid manifest: this has been made anew
        partial.rename(target)
        flush(self.folder)
        self._forget(key)
        return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says beside it."""
    said = {name: value for name, value in manifest.items() if name != SELF}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_entry(item: tuple[str, Any]) -> bool:
    """Whether a manifest's entry is of a file below the artifact's folder."""
    name, entry = item
    path = PurePosixPath(name)
    parts = path.parts and all(p != ".." and len(p.encode()) < 256 for p in path.parts)
    inside = parts and not path.is_absolute() and "\0" not in name
    sizes = isinstance(entry, dict) and isinstance(entry.get("bytes"), int)
    return bool(inside) and sizes and isinstance(entry.get("sha256"), str)


def _file_mode(folder: Path) -> int:
    """The permissions that a file of this user's gets, by the mask that is set.

    Some libraries (safetensors) make theirs for the owner alone, whatever the mask says, and a
    group could not use the store that it shares.
    """
    probe = folder / f".{MANIFEST}.mode"
    probe.touch()
    try:
        return stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()


def own_text(path: Path) -> str:
    """The text of a regular file. Raises OSError for a link, and for a pipe without waiting."""
    descriptor = os.open(path, os.O_RDONLY | _AS_IT_IS)
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.ENXIO, "no regular file", str(path))
        return stream.read()
