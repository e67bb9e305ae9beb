"""The content-addressed store: artifacts under their keys, committed whole or not at all.

An artifact is a folder with a `manifest.json`, written last, that has a SHA-256 of every file.
Work in progress lives in `partial/<key>`, on the same file system, so that a commit is one
rename. What an artifact means is known to stages alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from compressor.errors import DamagedArtifact, RecipeError
from compressor.home import expanded

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Store:
    """A folder of artifacts that any number of processes may share."""

    folder: Path

    @classmethod
    def of(cls, outputs: str) -> Store:
        """The store under a recipe's `outputs`. Raises RecipeError where that is no folder."""
        folder = expanded(outputs)
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
            loaded: dict[str, Any] = json.loads((self.path(key) / MANIFEST).read_text("utf-8"))
            if loaded["key"] != key or not isinstance(loaded["files"], dict):
                raise DamagedArtifact(key, "its manifest is another's")
        except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
            raise DamagedArtifact(key, "its manifest cannot be read") from error
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

    def verify(self, key: str) -> dict[str, Any]:
        """Read every file and compare it with the manifest. Raises DamagedArtifact."""
        manifest = self._check_sizes(key)
        for name, entry in manifest["files"].items():
            if file_digest(self.path(key) / name) != entry["sha256"]:
                raise DamagedArtifact(key, f"{name} has changed since it was written")
        return manifest

    def set_aside(self, key: str) -> Path | None:
        """Move a damaged artifact out of the way, for a person to look at."""
        if not self.path(key).exists():
            return None
        target = self.folder / "damaged" / f"{key}-{time.time_ns()}"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(target)
        return target

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

    def _file_lock(self, key: str) -> FileLock:
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{key}.lock")

    def begin(self, key: str) -> Path:
        """An empty folder to write `key` in. Call it under `lock(key)`."""
        partial = self.folder / "partial" / key
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def resume(self, key: str) -> Path:
        """Where a stage keeps what it needs to go on after it was killed; gone once committed."""
        return self.folder / "partial" / f"{key}.resume"

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
        manifest = {"key": key, **about, "files": files}
        write_json(partial / MANIFEST, manifest)
        target = self.path(key)
        self.set_aside(key)  # nothing, or what has no valid manifest: this has been made anew
        partial.rename(target)
        flush(self.folder)
        shutil.rmtree(self.resume(key), ignore_errors=True)
        return manifest


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's entries, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:  # a full disk, say, which half a file would keep full
        temporary.unlink(missing_ok=True)
        raise
