"""Many at once: runs on one store, artifacts in it. What that costs is in `benchmarks.load`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from compressor.garbage.removal import Asked, collect
from compressor.recorded import Recorded
from compressor.store import Store
from tests.benchmarks.load import RECIPE, fill
from tests.conftest import compressor
from tests.faults import trials
from tests.faults.artifacts import commit, name_in_run

AREA = "load"


def test_runs_at_once_on_one_store_make_each_artifact_once(tmp_path: Path, tell: Any) -> None:
    """Four of each recipe, of four recipes that share a stage: all end well, with the same numbers
    where the recipe is the same; nothing half made and no lock stays.
    """
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(RECIPE)
    count = trials(16, 3)
    every = [f"stages.prune.amounts.lm_head=0.{1 + place // 4}" for place in range(count)]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "compressor", "run", "mine.yaml", "-q", override],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for override in every
    ]
    told = [run.communicate(timeout=600)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * count, told
    folders = list((tmp_path / "outputs" / "runs" / "mine").iterdir())
    assert len(folders) == count
    made: Counter[str] = Counter()
    scores: dict[str, set[str]] = {}
    for folder in folders:
        for record in json.loads((folder / "metrics.json").read_text()):
            made[record["key"]] += not record["cached"]
            metrics = {k: v for k, v in record["metrics"].items() if "second" not in k}
            scores.setdefault(record["key"], set()).add(json.dumps(metrics, sort_keys=True))
    assert set(made.values()) == {1}
    assert len(made) == 1 + 2 * len(set(every))
    assert all(len(each) == 1 for each in scores.values())
    store = Store(tmp_path / "outputs" / "store")
    assert list((store.folder / "partial").iterdir()) == []
    assert not any(store.is_locked_now(key) for key in made)
    tell(AREA, "runs at once on one store", "each artifact made once, all end well", count)


def _keys(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if len(path.name) == 64)


def test_a_full_store_is_planned_shown_and_collected(tmp_path: Path, tell: Any) -> None:
    """10,000 artifacts of which ten are named: those alone stay; each command ends well."""
    count = trials(10_000, 300)
    outputs = tmp_path / "outputs"
    store = Store(outputs / "store")
    commit(store, "real")
    fill(store, count)
    kept = _keys(store)[:: count // 9]
    for number, key in enumerate(kept):
        name_in_run(outputs, key, f"mine/2026-01-01_00-00-{number:02d}")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = compressor("plan", "mine.yaml", cwd=tmp_path)
    assert done.code == 0
    assert len(Recorded.read(store).by_key) == count + 1
    dry = collect(store, outputs, Asked(), dry_run=True, say=print)
    assert len(dry.removed) == count + 1 - len(kept)
    started = time.monotonic()
    found = collect(store, outputs, Asked(), dry_run=False, say=print)
    assert len(found.removed) == len(dry.removed)
    assert time.monotonic() - started < 300
    assert _keys(store) == kept
    tell(AREA, "artifacts in one store: plan, gc", "those that runs name stay", count)
