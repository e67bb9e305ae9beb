"""`compressor doctor` sees each kind of damage, says where and what to do, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from compressor.engine.store.integrity import Finding, check_artifacts, check_versions, examine
from compressor.engine.store.store import Store
from tests.harness.artifacts import commit, flip, key_of, manifest_of, name_in_run
from tests.harness.command import compressor


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """A store of three artifacts, and a run that links to the first."""
    store = Store(tmp_path / "store")
    for number in range(3):
        commit(store, number, files=3)
    run = name_in_run(tmp_path, key_of(0))
    (run / "stages").mkdir()
    (run / "stages" / "00-load").symlink_to(os.path.relpath(store.path(key_of(0)), run / "stages"))
    return tmp_path


def findings(outputs: Path, state: str, **options: bool) -> list[Finding]:
    """What is in some state, of the store and around it; this machine may lack room."""
    every = examine(Store(outputs / "store"), outputs, **options)
    return [finding for finding in every if finding.state == state and finding.area != "disk"]


def test_a_store_in_order_has_nothing_to_report(outputs: Path) -> None:
    """No warning, no error; as a command, exit code 0, and nothing is changed on the disk."""
    before = sorted(outputs.rglob("*"))
    done = compressor("doctor", "--outputs", str(outputs))
    assert done.code == 0, done.out
    assert "3 of 3 artifacts" in done.out and " 0 error" in done.out
    assert sorted(outputs.rglob("*")) == before
    assert findings(outputs, "error") == findings(outputs, "warning") == []


@pytest.mark.parametrize("damage", ["flip", "no manifest"])
def test_damage_is_reported_with_its_place_and_what_to_do(outputs: Path, damage: str) -> None:
    """One of three artifacts: that one is named, the others are well; exit code 1."""
    place = Store(outputs / "store").path(key_of(1))
    if damage == "flip":
        flip(place / "weights-1")
    else:
        (place / "manifest.json").unlink()
    (error,) = findings(outputs, "error")
    assert (error.area, error.place) == ("store", str(place)) and error.cure
    assert findings(outputs, "warning") == []
    quick = findings(outputs, "error", quick=True)
    assert len(quick) == (damage != "flip")  # sizes alone do not show a changed byte
    if damage == "flip":
        done = compressor("doctor", "--json", "--outputs", str(outputs))
        errors = [row["place"] for row in json.loads(done.out) if row["state"] == "error"]
        assert (done.code, errors) == (1, [str(place)])


def test_repair_sets_aside_what_is_damaged_and_nothing_else(outputs: Path) -> None:
    """What `Store.has` then denies is made again; the damaged bytes are there to be looked at."""
    store = Store(outputs / "store")
    (store.path(key_of(1)) / "weights-0").write_text("x" * 333)
    assert findings(outputs, "error", repair=True) == []
    assert [store.has(key_of(number)) for number in range(3)] == [True, False, True]
    (aside,) = (store.folder / "damaged").iterdir()
    assert (aside / "weights-0").read_text() == "x" * 333
    after = [(finding.place, finding.cure) for finding in findings(outputs, "warning")]
    assert after == [(str(store.folder / "damaged"), "compressor gc")]


def test_what_is_left_or_does_not_belong_is_a_warning(outputs: Path) -> None:
    """Half artifacts, trash, unlisted files, links to nowhere: none is an error; what a process is
    at work on is neither.
    """
    store = Store(outputs / "store")
    (store.begin(key_of(5)) / "half").write_text("x")
    (store.folder / "trash-x").mkdir()
    (store.folder / "notes").mkdir()
    (store.path(key_of(1)) / "extra").write_text("x")
    shutil.rmtree(store.path(key_of(0)))
    assert findings(outputs, "error") == []
    warnings = findings(outputs, "warning")
    expected = [
        ("runs", str(outputs / "runs/mine/2026-01-01_00-00-00")),
        ("store", str(store.folder)),
        ("store", str(store.folder)),
        ("store", str(store.path(key_of(1)))),
        ("store", str(store.folder / "partial")),
    ]
    assert sorted((w.area, w.place) for w in warnings) == sorted(expected)
    assert all(warning.cure for warning in warnings)
    with store.lock(key_of(5), lambda: None):
        places = [warning.place for warning in findings(outputs, "warning")]
    assert str(store.folder / "partial") not in places


def test_a_package_that_is_too_old_or_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against what this package's own metadata ask for; an extra's packages are not needed."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "psutil":
            return "5.9.8"
        if name in {"rich", "tensorboard"}:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    checked = list(check_versions())
    assert [(row.place, row.message) for row in checked if row.state == "error"] == [
        ("psutil", "is 5.9.8; expected >=6.0"),
        ("rich", "is not installed; expected >=14.0"),
    ]
    (extra,) = [finding for finding in checked if finding.place == "tensorboard"]
    assert (extra.state, extra.message.partition(";")[0]) == ("ok", "not installed")


def test_what_a_gc_removes_meanwhile_is_no_damage(outputs: Path) -> None:
    """It was there when the store was listed, and is gone when it is read."""
    store = Store(outputs / "store")

    def remove(*_: Any) -> None:
        for key in store.list_keys():  # as gc does, all at once
            store.path(key).rename(store.folder / f"trash-{key}")

    for number in range(3, 30):
        commit(store, number)
    (summary,) = check_artifacts(store, quick=False, repair=False, advance=remove)
    assert summary.state == "ok"
    assert not manifest_of(store, key_of(0)).exists()
