"""How long stages took before: from the manifests, each of which is read once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.engine.store.store import Store
from compressor.engine.store.timings import NOTES, StageTimings
from tests.harness.artifacts import commit, key_of, manifest_of


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Three artifacts, each of which took a second."""
    store = Store(tmp_path / "store")
    for number in range(3):
        commit(store, number)
    return store


def test_each_manifest_is_read_once(store: Store) -> None:
    """A plan, and each point of a sweep, opened all of a store's manifests: 10,000 files."""
    first = StageTimings.read(store)
    assert first.by_key == {key_of(number): 1.0 for number in range(3)}
    assert first.by_name["load", "number 1"] == 1.0
    for number in range(3):
        path = manifest_of(store, key_of(number))
        path.write_text(path.read_text().replace('"seconds": 1.0', '"seconds": 7.0'))
    commit(store, 3)
    assert StageTimings.read(store).by_key == {key_of(number): 1.0 for number in range(4)}
    none = Store(store.folder / "none")
    assert StageTimings.read(none) == StageTimings({}, {}) and not none.folder.exists()


@dataclass(frozen=True)
class Stage:
    key: str | None
    kind: str = "load"
    name: str = "same"


def test_a_stage_takes_what_it_took_and_a_new_one_what_those_of_its_name_did() -> None:
    """The median of 1, 2 and 9 seconds; of another kind nothing is known."""
    timings = StageTimings({"a": 1.0, "b": 2.0, "c": 9.0}, {("load", "same"): 2.0})
    assert timings.seconds(Stage("c")) == 9.0
    assert timings.seconds(Stage("new")) == timings.seconds(Stage(None)) == 2.0
    assert timings.seconds(Stage("new", kind="prune")) is None


def test_notes_that_are_damaged_or_lost_are_read_again_from_the_manifests(store: Store) -> None:
    """Half a line, another's file, none at all; what is gone is not in them."""
    StageTimings.read(store)
    shutil.rmtree(store.path(key_of(0)))
    left = {key_of(1): 1.0, key_of(2): 1.0}
    assert StageTimings.read(store).by_key == left
    notes = store.folder / NOTES
    text = notes.read_text()
    for damaged in (text[: len(text) // 2], "\x00\xff[1, 2]\nnull\n{}\n[1,2,3,4,5]\n", ""):
        notes.write_text(damaged)
        assert StageTimings.read(store).by_key == left
    notes.unlink()
    again = StageTimings.read(store)
    assert again.by_key == left and again.by_name["load", "number 1"] == 1.0
