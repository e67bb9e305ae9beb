"""The store: whole artifacts or none, one writer, damage noticed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.core.errors import DamagedArtifact
from compressor.core.files import MANIFEST
from compressor.engine.store.store import SELF, Store

KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def commit(store: Store) -> Store:
    """Commit one file of five bytes."""
    partial = store.begin(KEY)
    (partial / "model").mkdir()
    (partial / "model" / "weights").write_text("hello")
    store.commit(KEY, partial, {"stage": "load"})
    return store


def test_a_committed_artifact_is_whole_and_says_what_is_in_it(store: Store) -> None:
    """A readable manifest has each file's size and SHA-256; nothing is left in `partial`.

    What was begun and not committed is no artifact, and the next writer starts clean.
    """
    manifest = commit(store).verify(KEY)
    digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest["files"] == {"model/weights": {"bytes": 5, "sha256": digest}}
    assert list((store.folder / "partial").iterdir()) == []
    text = (store.path(KEY) / MANIFEST).read_text()
    assert json.loads(text)["stage"] == "load" and text.count("\n") > 5
    (store.begin(OTHER) / "half").write_text("x")
    assert not store.has(OTHER)
    assert list(store.begin(OTHER).iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model/weights", "hell"),
        ("model/weights", None),
        ("model/weights", "jello"),
        (MANIFEST, '{"key": "other", "files": {}}'),
        (MANIFEST, '{"key": '),
        (MANIFEST, "[]"),
        (MANIFEST, json.dumps({"key": KEY, "files": None})),
        (MANIFEST, None),
    ],
)
def test_damage_is_noticed(store: Store, name: str, content: str | None) -> None:
    """A file cut, gone or changed in place, a manifest of another, cut or gone: no artifact."""
    path = commit(store).path(KEY) / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises((DamagedArtifact, FileNotFoundError)):
        store.verify(KEY)
    assert store.has(KEY) == (content == "jello")  # sizes alone cannot show a changed byte


def test_a_manifest_that_was_edited_is_noticed(store: Store) -> None:
    """It has a digest of itself; the first versions wrote none, and are held to their files."""
    path = commit(store).path(KEY) / MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"stage": "prune"}))
    with pytest.raises(DamagedArtifact, match="manifest has changed"):
        store.manifest(KEY)
    del manifest[SELF]
    path.write_text(json.dumps(manifest))
    store.verify(KEY)
    manifest["files"]["model/weights"]["sha256"] = 64 * "0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match="model/weights has changed"):
        store.verify(KEY)
