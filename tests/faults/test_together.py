"""Several runs at once on one store, as of two machines that share it, some of them killed."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from compressor.core.files import MANIFEST
from tests.faults import LONG, trials
from tests.faults.kills import (
    Place,
    Undisturbed,
    check_tidy,
    draw_signals,
)
from tests.harness.command import Process

PIPELINES = (
    [
        ("load", "finetune", "prune"),
        ("load", "finetune", "quantize"),
        ("load", "shrink", "distill", "smooth"),
        ("load", "slice", "finetune"),
    ]
    * 2
    if LONG
    else [("load", "prune"), ("load", "prune", "shrink")]
)
"""They share stages: each takes its model from `load`, but for `distill`."""


def start_beside(place: Place, number: int) -> Process:
    """A run on the place's store, from a folder of its own, as another user has it."""
    user, outputs = Place(place.folder / f"user{number}"), f"outputs={place.folder / 'outputs'}"
    pipeline = f"pipeline=[{','.join(PIPELINES[number])}]"
    return user.start("run", "summaries.yaml", pipeline, outputs)


def count_made(place: Place) -> Counter[str]:
    """Stage → how often it was made, as all runs' events tell."""
    made: Counter[str] = Counter()
    for path in place.folder.glob("outputs/runs/*/*/events.jsonl"):
        events = map(json.loads, path.read_text().splitlines())
        made.update(e["name"] for e in events if e["event"] == "stage_ended" and not e["cached"])
    return made


def check_shared(place: Place, undisturbed: Undisturbed) -> None:
    """Every artifact is that of the undisturbed store, and nothing else is left."""
    check_tidy(place)
    keys = {undisturbed.make(kind) for pipeline in PIPELINES for kind in pipeline}
    assert {path.parent.name for path in place.store.folder.glob(f"*/{MANIFEST}")} == keys
    for key in keys:
        expected = undisturbed.place.store.manifest(key)["files"]
        assert place.store.manifest(key)["files"] == expected


def test_runs_at_once_make_each_artifact_once(undisturbed, tmp_path: Path) -> None:
    """The same recipe, and recipes that share stages, started together."""
    place = Place(tmp_path)
    runs = [start_beside(place, number) for number in range(len(PIPELINES))]
    for run in runs:
        assert run.wait(240) == 0, run.err
    check_shared(place, undisturbed)
    assert set(count_made(place).values()) == {1}


@pytest.mark.parametrize("seed", range(trials(3, 1)))
def test_runs_that_are_killed_beside_others_leave_these_alone(
    seed: int, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Some are killed while they make what others wait for, or wait themselves; the others end
    well, and so do the killed ones when they are started again.
    """
    place, chance = Place(tmp_path), random.Random(seed)
    runs = [start_beside(place, number) for number in range(len(PIPELINES))]
    struck = chance.sample(range(len(runs)), len(runs) // 2)
    for number, sent in zip(struck, draw_signals(chance, len(struck)), strict=True):
        time.sleep(chance.uniform(0, trials(3, 1)))
        if runs[number].send(sent) and runs[number].wait(60) != 0:
            assert "Traceback" not in runs[number].err
            runs[number] = start_beside(place, number)
    for run in runs:
        assert run.wait(240) == 0, run.err
    check_shared(place, undisturbed)
