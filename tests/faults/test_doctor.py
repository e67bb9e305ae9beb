"""`compressor doctor` sees each kind of damage, says where and what to do, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compressor.doctor.artifacts import artifacts
from compressor.doctor.examine import examine
from compressor.doctor.finding import Finding
from compressor.doctor.surroundings import versions
from compressor.store import Store
from tests.conftest import compressor
from tests.faults.artifacts import commit, key_of, manifest_of, name_in_run

AREA = "doctor"


def looked_at(outputs: Path, *, quick: bool = False, repair: bool = False) -> list[Finding]:
    store = Store(outputs / "store")
    return examine(store, outputs, Console(quiet=True), quick=quick, repair=repair)


def told(found: list[Finding], state: str) -> list[Finding]:
    """What is not well, of the store and around it; this machine may lack room."""
    return [each for each in found if each.state == state and each.area != "disk"]


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


def test_a_store_in_order_has_nothing_to_tell(outputs: Path) -> None:
    """No warning, no error; as a command, exit code 0, and nothing is changed on the disk."""
    before = sorted(outputs.rglob("*"))
    assert told(looked_at(outputs), "error") == told(looked_at(outputs), "warning") == []
    done = compressor("doctor", "--outputs", str(outputs))
    assert done.code == 0, done.out
    assert "3 of 3 artifacts" in done.out
    assert sorted(outputs.rglob("*")) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "edit", "no manifest", "link"])
def test_damage_is_told_with_its_place_and_what_to_do(
    outputs: Path, damage: str, tell: Any
) -> None:
    """One of three artifacts: that one is named, the others are well; exit code 1."""
    place = Store(outputs / "store").path(key_of(1))
    weights, manifest = place / "weights-1", place / "manifest.json"
    if damage == "flip":
        content = bytearray(weights.read_bytes())
        content[100] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        os.truncate(weights, 10)
    elif damage == "delete":
        weights.unlink()
    elif damage == "edit":
        manifest.write_text(manifest.read_text().replace(key_of(1), key_of(7)))
    elif damage == "no manifest":
        manifest.unlink()
    else:
        shutil.move(place, outputs / "elsewhere")
        place.symlink_to(outputs / "elsewhere")
    (error,) = told(looked_at(outputs), "error")
    assert (error.area, error.place) == ("store", str(place))
    assert error.cure
    assert told(looked_at(outputs), "warning") == []
    quick = told(looked_at(outputs, quick=True), "error")
    assert len(quick) == (damage != "flip")  # sizes alone do not show a changed byte
    if damage == "flip":
        done = compressor("doctor", "--json", "--outputs", str(outputs))
        assert done.code == 1
        assert [each["place"] for each in json.loads(done.out) if each["state"] == "error"] == [
            str(place)
        ]
    tell(AREA, f"an artifact: {damage}", "exit 1: the artifact, what is wrong, what to do")


def test_repair_sets_aside_what_is_damaged_and_nothing_else(outputs: Path) -> None:
    """What `Store.has` then denies is made again; the damaged bytes are there to be looked at."""
    store = Store(outputs / "store")
    (store.path(key_of(1)) / "weights-0").write_text("x" * 333)
    found = looked_at(outputs, repair=True)
    assert told(found, "error") == []
    assert [store.has(key_of(number)) for number in range(3)] == [True, False, True]
    (aside,) = (store.folder / "damaged").iterdir()
    assert (aside / "weights-0").read_text() == "x" * 333
    after = told(looked_at(outputs), "warning")
    assert [(each.place, each.cure) for each in after] == [
        (str(store.folder / "damaged"), "compressor gc")
    ]


def test_what_is_left_or_does_not_belong_is_a_warning(outputs: Path, tell: Any) -> None:
    """Half artifacts, trash, files that no manifest names, links to nowhere: none is an error."""
    store = Store(outputs / "store")
    (store.begin(key_of(5)) / "half").write_text("x")
    (store.folder / "trash-x").mkdir()
    (store.folder / "notes").mkdir()
    (store.path(key_of(1)) / "extra").write_text("x")
    (store.path(key_of(2)) / "link").symlink_to(outputs)
    shutil.rmtree(store.path(key_of(0)))
    found = looked_at(outputs)
    assert told(found, "error") == []
    assert sorted((each.area, each.place) for each in told(found, "warning")) == sorted(
        [
            ("store", str(store.path(key_of(1)))),
            ("store", str(store.path(key_of(2)))),
            ("store", str(store.folder / "partial")),
            ("store", str(store.folder)),
            ("store", str(store.folder)),
            ("runs", str(outputs / "runs/mine/2026-01-01_00-00-00")),
        ]
    )
    assert all(each.cure for each in told(found, "warning"))
    tell(AREA, "leftovers, strange files, links to nowhere", "a warning with what to do", 6)


def test_a_lock_is_told_with_the_process_that_holds_it(outputs: Path) -> None:
    """And what is half made under it is no leftover."""
    store = Store(outputs / "store")
    store.begin(key_of(5))
    code = (
        "import sys; from pathlib import Path; from compressor.store import Store\n"
        "with Store(Path(sys.argv[1])).lock(sys.argv[2], lambda: None):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder), key_of(5)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        found = looked_at(outputs)
        (held,) = [each for each in found if each.area == "locks" and each.place]
        assert held.place == key_of(5)
        assert f"process {holder.pid}" in held.message
        assert told(found, "warning") == []
    finally:
        holder.communicate()
    assert "nobody holds" in looked_at(outputs)[-1].message


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
    found = list(versions())
    assert [(each.place, each.message) for each in found if each.state == "error"] == [
        ("psutil", "is 5.9.8; expected >=6.0"),
        ("rich", "is not installed; expected >=14.0"),
    ]
    (extra,) = [each for each in found if each.place == "tensorboard"]
    assert (extra.state, extra.message.partition(",")[0]) == ("ok", "not installed")


def test_outputs_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    """A file system that is mounted read-only: which, and what to do."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounts a file system: needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        errors = told(looked_at(disk), "error")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert [(each.area, each.place) for each in errors] == [("outputs", str(disk))]
    assert "Read-only" in errors[0].message


def test_what_a_gc_removes_meanwhile_is_no_damage(outputs: Path) -> None:
    """It was there when the store was listed, and is gone when it is read."""
    store = Store(outputs / "store")

    def remove(done: int, _: int) -> None:
        for number in range(30):  # as gc does, all at once
            if store.path(key_of(number)).is_dir():
                store.path(key_of(number)).rename(store.folder / f"trash-{number}")

    for number in range(3, 30):
        commit(store, number)
    (summary, *rest) = artifacts(store, quick=False, repair=False, advance=remove)
    assert summary.state == "ok"
    assert rest == []
    assert not manifest_of(store, key_of(0)).exists()
