"""Artifacts and runs without any training: committed by the real store, with few bytes."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from compressor.core.files import MANIFEST, write_json
from compressor.engine.store.store import Store

DAY = 86400.0


def key_of(number: int | str) -> str:
    return hashlib.sha256(f"artifact {number}".encode()).hexdigest()


def commit(
    store: Store,
    number: int | str,
    *,
    size: int = 1000,
    days: float = 0.0,
    inputs: Mapping[str, str] | None = None,
    files: int = 1,
) -> str:
    """An artifact of `files` files with `size` bytes in all, last used some days ago; its key."""
    key = key_of(number)
    partial = store.begin(key)
    for file in range(files):
        (partial / f"weights-{file}").write_bytes(os.urandom(size // files))
    moment = time.time() - days * DAY
    about = {
        "stage": "load",
        "name": f"number {number}",
        "seconds": 1.0,
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment)),
        "key_parts": {"inputs": dict(inputs or {})},
        "model": {},
        "metrics": {},
    }
    store.commit(key, partial, about)
    for path in (*store.path(key).iterdir(), store.path(key)):
        os.utime(path, (moment, moment))
    return key


def name_in_run(outputs: Path, key: str, run: str = "mine/2026-01-01_00-00-00") -> Path:
    """A run's folder that names a key in its records."""
    folder = outputs / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", [{"key": key}])
    return folder


def manifest_of(store: Store, key: str) -> Path:
    return store.path(key) / MANIFEST


def flip(path: Path) -> None:
    """Change one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
