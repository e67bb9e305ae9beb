"""Links, pipes and texts where a store or a run has files: none is followed or waited for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from compressor.errors import StageError
from compressor.files import MANIFEST
from compressor.garbage.removal import Asked, collect
from compressor.recorded import Recorded
from compressor.redaction import redacted, redacted_text
from compressor.store import SELF, Store
from tests.faults.artifacts import DAY, commit, key_of, manifest_of, name_in_run
from tests.faults.forked import Forked


def collected(outputs: Path) -> list[Path]:
    found = collect(Store(outputs / "store"), outputs, Asked(), dry_run=False, say=lambda _: None)
    return [each.item.path for each in found.removed]


def test_gc_removes_no_file_that_a_link_in_a_run_leads_to(tmp_path: Path) -> None:
    """It took files that are named as its own temporary ones are for such, wherever they lay."""
    elsewhere = tmp_path / "elsewhere" / "notes"
    elsewhere.mkdir(parents=True)
    outputs = tmp_path / "outputs"
    commit(Store(outputs / "store"), 0)
    run = name_in_run(outputs, key_of(0))
    own = run / ".metrics.json.999999"
    for file in (elsewhere / ".notes.txt.999999", own):
        file.write_text("x")
        os.utime(file, (time.time() - 3 * DAY,) * 2)
    (run / "link").symlink_to(elsewhere.parent, target_is_directory=True)
    assert collected(outputs) == [own]
    assert (elsewhere / ".notes.txt.999999").exists()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, '{"key_parts": {"inputs": 5}}', '{"key_parts": 3}', "\x00"]
)
def test_gc_gets_past_a_manifest_that_says_nothing(text: str, tmp_path: Path) -> None:
    """One ended it with a traceback."""
    store = Store(tmp_path / "store")
    commit(store, 0)
    manifest_of(store, key_of(0)).write_text(text)
    assert collected(tmp_path) == [store.path(key_of(0))]


def test_a_manifest_that_is_a_pipe_or_a_link_is_none(tmp_path: Path) -> None:
    """A pipe was waited for, for ever; what a link leads to was taken for the artifact's own."""
    store = Store(tmp_path / "store")
    for number in (0, 1):
        commit(store, number)
        manifest = manifest_of(store, key_of(number))
        manifest.rename(tmp_path / f"{number}.json")
    os.mkfifo(store.path(key_of(0)) / MANIFEST)
    (store.path(key_of(1)) / MANIFEST).symlink_to(tmp_path / "1.json")
    assert not store.has(key_of(0)) and not store.has(key_of(1))
    assert Recorded.read(store).by_key == {}


def test_what_recorded_times_are_noted_in_is_no_link(tmp_path: Path) -> None:
    """Even `plan` wrote names of a stranger's manifests through a link, to a shell's start-up file
    for example.
    """
    store, target = Store(tmp_path / "store"), tmp_path / "profile"
    commit(store, 0)
    target.write_text("own\n")
    (store.folder / "seconds.jsonl").symlink_to(target)
    assert key_of(0) in Recorded.read(store).by_key
    assert target.read_text() == "own\n"


@pytest.mark.parametrize("name", ["partial", "damaged", "locks"])
def test_no_artifact_is_begun_behind_a_link(name: str, tmp_path: Path) -> None:
    """What lay there under the same name was removed."""
    store, elsewhere = Store(tmp_path / "store"), tmp_path / "elsewhere"
    (elsewhere / key_of(0)).mkdir(parents=True)
    (elsewhere / key_of(0) / "file").write_text("x")
    store.folder.mkdir()
    (store.folder / name).symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(StageError, match="is a link"):
        store.begin(key_of(0))
    assert (elsewhere / key_of(0) / "file").exists()


def test_an_old_manifest_with_nan_does_not_end_a_cached_run(
    whole: Path, tmp_path: Path, forked: Forked
) -> None:
    """Versions before wrote NaN into JSON; a run that met one ended in a traceback."""
    shutil.copytree(whole, tmp_path / "old", symlinks=True)
    for path in (tmp_path / "old/outputs/store").glob(f"*/{MANIFEST}"):
        about = json.loads(path.read_text())
        del about[SELF]
        about["metrics"]["of_before"] = float("nan")
        path.write_text(json.dumps(about))
    found = forked("run", "mini.yaml", "-q", cwd=tmp_path / "old")
    assert found.code == 0, found.err
    (records,) = {*(tmp_path / "old/outputs/runs/mini").glob("*/metrics.json")} - {
        tmp_path / "old" / path.relative_to(whole)
        for path in (whole / "outputs/runs/mini").glob("*/metrics.json")
    }
    assert all(each["metrics"]["of_before"] is None for each in json.loads(records.read_text()))


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone mounts a folder so that it is read-only")
def test_what_a_store_has_can_be_used_where_it_can_only_be_read(
    whole: Path, tmp_path: Path, forked: Forked
) -> None:
    """A run wanted the lock that keeps `gc` away, which nobody could take there."""
    shutil.copytree(whole, tmp_path / "own", symlinks=True)
    store = tmp_path / "own/outputs/store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (store / "x").touch()
        found = forked("run", "mini.yaml", "-q", cwd=tmp_path / "own")
    finally:
        subprocess.run(["umount", store], check=True)
    assert found.code == 0, found.err
    assert "run: " in found.out


def test_sentences_on_tokens_and_basic_things_are_no_secrets() -> None:
    """Words after "basic" and numbers after "token:" were taken out of descriptions and errors."""
    for text in (
        "A basic fine-tuning of bills",
        "max_length counts the decoder start token: 0 is below 1",
        "unexpected token: '}'",
        "ms per token: 3.2",
    ):
        assert redacted_text(text) == text
        assert redacted({"description": text}) == {"description": text}
    for secret in (
        "Authorization: Basic YWxhZGRpbg==",
        "sent Bearer abcdef0123456789",
        "token: s3cret-and-long",
    ):
        assert "<redacted>" in redacted_text(secret), secret
