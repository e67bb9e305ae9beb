"""The store: whole artifacts or none, one writer, damage found."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from compressor.errors import DamagedArtifact
from compressor.files import MANIFEST, file_digest, write_text
from compressor.store import SELF, Store, manifest_digest

KEY, OTHER = "ab" * 32, "cd" * 32


def made(folder: Path, text: str = "hello") -> Store:
    store = Store(folder / "store")
    partial = store.begin(KEY)
    (partial / "model").mkdir()
    (partial / "model" / "weights").write_text(text)
    store.commit(KEY, partial, {"stage": "load"})
    return store


def test_a_committed_artifact_is_whole_and_says_what_is_in_it(tmp_path: Path) -> None:
    """The manifest has size and SHA-256 of every file, and nothing is left in `partial`."""
    store = made(tmp_path)
    manifest = store.verify(KEY)
    expected = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert manifest["files"] == {"model/weights": {"bytes": 5, "sha256": expected}}
    assert list((tmp_path / "store" / "partial").iterdir()) == []


def test_what_was_begun_and_not_committed_is_no_artifact(tmp_path: Path) -> None:
    """A killed writer leaves nothing that counts, and the next one starts clean."""
    store = Store(tmp_path / "store")
    (store.begin(KEY) / "half").write_text("x")
    assert not store.has(KEY)
    assert list(store.begin(KEY).iterdir()) == []


def test_what_a_failed_try_can_go_on_from_stays_until_there_is_an_artifact(tmp_path: Path) -> None:
    """A checkpoint outlives the try that failed, another artifact's too, and ends with a commit."""
    store = Store(tmp_path / "store")
    for key in (KEY, OTHER):
        store.begin(key)
        for place in (store.resume(key), store.task(key)):
            place.mkdir()
    store.abandon(KEY)
    assert not (tmp_path / "store" / "partial" / KEY).exists()
    assert store.resume(KEY).is_dir() and store.task(KEY).is_dir()
    made(tmp_path)
    assert not store.resume(KEY).exists() and not store.task(KEY).exists()
    assert store.resume(OTHER).is_dir() and (tmp_path / "store" / "partial" / OTHER).is_dir()


def test_an_artifacts_files_have_the_permissions_that_the_user_gives(tmp_path: Path) -> None:
    """A library that makes its files for the owner alone does not keep a group out."""
    store = Store(tmp_path / "store")
    old = os.umask(0o027)
    try:
        partial = store.begin(KEY)
        (partial / "weights").write_text("x")
        (partial / "weights").chmod(0o600)
        store.commit(KEY, partial, {"stage": "load"})
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.path(KEY).iterdir()}
    assert modes == {"weights": 0o640, MANIFEST: 0o640}


@pytest.mark.parametrize("damage", ["truncate", "delete", "flip", "manifest", "link"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    """A file cut, gone, changed in place, made a link, or an edited manifest: no artifact."""
    store = made(tmp_path)
    path = store.path(KEY) / "model" / "weights"
    if damage == "truncate":
        path.write_text("hell")
    elif damage == "delete":
        path.unlink()
    elif damage == "flip":
        path.write_text("jello")
    elif damage == "manifest":
        (store.path(KEY) / MANIFEST).write_text('{"key": "other", "files": {}}')
    else:
        path.unlink()
        (tmp_path / "elsewhere").write_text("hello")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedArtifact):
        store.verify(KEY)
    assert store.has(KEY) == (damage == "flip")  # sizes alone cannot see a flipped byte


def test_a_damaged_artifact_is_set_aside_not_deleted(tmp_path: Path) -> None:
    """A person can look at it; its place is free for the next."""
    store = made(tmp_path)
    aside = store.set_aside(KEY)
    assert aside is not None
    assert (aside / "model" / "weights").read_text() == "hello"
    assert not store.path(KEY).exists()


def _hold(folder: str, started: str) -> None:
    with Store(Path(folder)).lock(KEY, lambda: None):
        Path(started).touch()
        time.sleep(60)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """One writer for a key at a time; a writer that is killed takes its lock with it."""
    context = multiprocessing.get_context("spawn")
    started = tmp_path / "started"
    other = context.Process(target=_hold, args=(str(tmp_path / "store"), str(started)))
    other.start()
    try:
        deadline = time.monotonic() + 30
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        waited: list[bool] = []

        def kill() -> None:
            waited.append(True)
            other.kill()

        with Store(tmp_path / "store").lock(KEY, kill):
            assert waited == [True]
    finally:
        other.kill()
        other.join()


def test_the_manifest_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    """Indented, with what the engine said of it."""
    store = made(tmp_path)
    text = (store.path(KEY) / MANIFEST).read_text()
    assert json.loads(text)["stage"] == "load"
    assert text.count("\n") > 5


def test_what_stands_in_an_artifacts_place_is_set_aside_by_a_commit(tmp_path: Path) -> None:
    """A folder without a manifest, as of a copy that was broken off."""
    store = Store(tmp_path / "store")
    (store.path(KEY) / "model").mkdir(parents=True)
    (store.path(KEY) / "model" / "half").write_text("x")
    made(tmp_path)
    assert store.verify(KEY)["files"].keys() == {"model/weights"}
    assert [path.read_text() for path in (store.folder / "damaged").rglob("half")] == ["x"]


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret"])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    """Whoever wrote it took care of its digest."""
    store = made(tmp_path)
    (store.folder / "secret").write_text("x")
    manifest = store.manifest(KEY)
    manifest["files"][name] = {"bytes": 1, "sha256": file_digest(store.folder / "secret")}
    manifest[SELF] = manifest_digest(manifest)
    (store.path(KEY) / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedArtifact, match="names what is no file of its own"):
        store.verify(KEY)


def test_who_reads_a_file_that_is_written_anew_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    """The new one takes its place, whole."""
    write_text(tmp_path / "card.md", "old")
    with (tmp_path / "card.md").open() as reader:
        write_text(tmp_path / "card.md", "new and longer")
        assert reader.read() == "old"
    assert (tmp_path / "card.md").read_text() == "new and longer"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_half(tmp_path: Path) -> None:
    """UTF-8 has no half of a surrogate pair: the write ends in its middle."""
    write_text(tmp_path / "card.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "card.md", "new" * 100_000 + "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "old"
