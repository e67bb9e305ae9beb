"""Several runs at once on one store, as of two machines that share it, some of them killed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from compressor.core.files import MANIFEST
from tests.faults import LONG, trials
from tests.faults.conftest import Tell
from tests.faults.kills import (
    Place,
    Undisturbed,
    arguments,
    every_artifact_is_whole,
    no_lock_is_held,
    nobody_is_left,
    signals,
    undisturbed_in,
)
from tests.faults.warm import Started, Warm, shared

OVERLAPPING = (
    ("load", "finetune", "prune"),
    ("load", "finetune", "quantize"),
    ("load", "shrink", "distill", "smooth"),
    ("load", "slice", "finetune"),
)
"""Pipelines that share stages: each takes its model from `load`, but for `distill`."""
QUICK = (("load", "prune"), ("load", "prune", "shrink"), ("load", "shrink"))


@pytest.fixture(scope="module")
def warm() -> Warm:
    return shared()


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_in(tmp_path_factory.getbasetemp() / "undisturbed", warm)


def beside(place: Place, number: int, pipeline: tuple[str, ...]) -> Started:
    """A run on the place's store, from a folder of its own, as another user has it."""
    folder = place.folder / f"user{number}"
    own = Place(folder, place.warm)
    outputs = f"outputs={place.folder / 'outputs'}"
    return own.begin("run", arguments("load")[1], f"pipeline=[{','.join(pipeline)}]", outputs)


def made(place: Place) -> Counter[str]:
    """Key → how often it was made, as all runs' events tell."""
    found: Counter[str] = Counter()
    for path in place.folder.glob("outputs/runs/*/*/events.jsonl"):
        keys = {}
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "stage_started":
                keys[event["name"]] = event["key"]
            elif event["event"] == "stage_ended" and not event["cached"]:
                found[keys[event["name"]]] += 1
    return found


def ended_well(place: Place, undisturbed: Undisturbed, kinds: set[str]) -> None:
    """Every artifact is that of the undisturbed store, and nothing else is left."""
    nobody_is_left(place)
    every_artifact_is_whole(place.store)
    no_lock_is_held(place.store)
    assert list((place.store.folder / "partial").iterdir()) == []
    assert not (place.store.folder / "damaged").exists()
    theirs = {undisturbed.made(kind) for kind in kinds}
    mine = {path.parent.name for path in place.store.folder.glob(f"*/{MANIFEST}")}
    assert mine == theirs
    for key in mine:
        wanted = undisturbed.place.store.manifest(key)["files"]
        assert place.store.manifest(key)["files"] == wanted


def test_runs_at_once_make_each_artifact_once(
    undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """The same recipe and recipes that share stages, started together: nothing is made twice."""
    pipelines = [*OVERLAPPING, *OVERLAPPING] if LONG else QUICK
    place = Place(tmp_path, undisturbed.place.warm)
    runs = [beside(place, number, each) for number, each in enumerate(pipelines)]
    for run in runs:
        assert run.wait(240) == 0, run.err
    ended_well(place, undisturbed, {kind for each in pipelines for kind in each})
    assert set(made(place).values()) == {1}
    told = "each artifact made once, the same files"
    tell("together", f"{len(runs)} runs at once on one store", told, len(runs))


@pytest.mark.parametrize("seed", range(trials(4, 1)))
def test_runs_that_are_killed_beside_others_leave_these_alone(
    seed: int, undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """Some are killed at random moments, while they make what others wait for or while they wait
    themselves; the others end well, and so do the killed ones when they are given again.
    """
    pipelines = [*OVERLAPPING, *OVERLAPPING[:2]] if LONG else QUICK[:2]
    place, chance = Place(tmp_path, undisturbed.place.warm), random.Random(seed)
    runs = {number: beside(place, number, each) for number, each in enumerate(pipelines)}
    killed: Counter[signal.Signals] = Counter()
    for number in chance.sample(sorted(runs), len(runs) // 2):
        time.sleep(chance.uniform(0, trials(3, 1)))
        sent = signals(chance)
        if runs[number].send(sent) and runs[number].wait() != 0:
            assert "Traceback" not in runs[number].err
            killed[sent] += 1
            runs[number] = beside(place, number, pipelines[number])
    for run in runs.values():
        assert run.wait(240) == 0, run.err
    assert killed
    ended_well(place, undisturbed, {kind for each in pipelines for kind in each})
    for sent, times in killed.items():
        told = "the others end well, the same files"
        tell("together", f"{sent.name} to one of {len(runs)} runs on one store", told, times)
