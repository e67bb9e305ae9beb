"""What a store holds, and how its files are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from compressor.engine.store.store import Store


def artifacts(outputs: Path) -> dict[str, dict[str, str]]:
    """Stage → file → SHA-256 of every artifact, each compared with its files byte by byte.

    `losses.csv` and all else is there; what a run measures of time is in no file.
    """
    store = Store(outputs / "store")
    stages = {}
    for path in sorted(store.folder.glob("*/manifest.json")):
        manifest = store.verify(path.parent.name)
        stages[manifest["name"]] = {n: entry["sha256"] for n, entry in manifest["files"].items()}
    return stages


def whole_only(outputs: Path) -> None:
    """Assert that there is no half artifact, no half checkpoint, and no lock that is held."""
    store = Store(outputs / "store")
    if not store.folder.is_dir():
        return
    keys = [p.name for p in store.folder.iterdir() if len(p.name) == 64]
    for key in keys:
        store.verify(key)
    partial = store.folder / "partial"
    left = [p.name for p in partial.iterdir()] if partial.is_dir() else []
    assert all(name.endswith((".resume", ".task")) for name in left), left
    assert not list(partial.glob("*.resume/.partial"))
    for lock in (store.folder / "locks").glob("*.lock"):
        assert not store.is_locked(lock.name.removesuffix(".lock")), lock


def key_of(outputs: Path, stage: str) -> str:
    """The key of a stage's artifact."""
    for path in (outputs / "store").glob("*/manifest.json"):
        if json.loads(path.read_text())["name"] == stage:
            return path.parent.name
    raise KeyError(stage)


def flip(path: Path) -> None:
    """Change one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: Mapping[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-2]),  # and no line feed alone
    "one bit flipped": flip,
    "deleted": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "a link to nowhere in its place": _link_to_nowhere,
}
