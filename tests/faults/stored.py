"""What a store holds, what has to be so of it, and how its files are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from compressor.core.files import MANIFEST
from compressor.engine.store.store import Store
from tests.harness.artifacts import flip


def artifacts(outputs: Path) -> dict[str, dict[str, str]]:
    """Stage → file → SHA-256 of every artifact, each compared with its files byte by byte.

    `losses.csv` and all else is there; what a run measures of time is in no file.
    """
    store = Store(outputs / "store")
    stages = {}
    for path in sorted(store.folder.glob(f"*/{MANIFEST}")):
        manifest = store.verify(path.parent.name)
        files = manifest["files"].items()
        stages[manifest["name"]] = {name: entry["sha256"] for name, entry in files}
    return stages


def check_store(outputs: Path) -> None:
    """Every artifact is whole, and nobody holds a lock."""
    store = Store(outputs / "store")
    for folder in store.folder.glob(64 * "?"):
        store.verify(folder.name)
    for lock in (store.folder / "locks").glob("*.lock"):
        assert not store.is_locked(lock.stem), lock


def whole_only(outputs: Path) -> None:
    """Neither is there half an artifact or half a checkpoint."""
    check_store(outputs)
    left = [path.name for path in outputs.glob("store/partial/*")]
    assert all(name.endswith((".resume", ".task")) for name in left), left
    assert not list(outputs.glob("store/partial/*.resume/.partial"))


def key_of(outputs: Path, stage: str) -> str:
    """The key of a stage's artifact."""
    for path in (outputs / "store").glob(f"*/{MANIFEST}"):
        if json.loads(path.read_text())["name"] == stage:
            return path.parent.name
    raise KeyError(stage)


DAMAGE: Mapping[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),  # and no line feed alone
    "one bit flipped": flip,
    "deleted": Path.unlink,
}
