"""The same recipe twice gives the same bits on a CPU, wherever, whoever and whenever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from compressor.engine.store.store import Store
from tests.conftest import RECIPE
from tests.faults import long_form
from tests.harness.command import Command, compressor
from tests.harness.runs import without_times

ELSEWHERE = {
    "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8",
    "USER": "somebody", "LOGNAME": "somebody",
}  # fmt: skip
MANY: dict[str, dict[str, Any]] = {
    "load": {},
    "baseline": {},
    "magnitude": {"stage": "prune", "model": "load", "amounts": {"lm_head": 0.5},
                  "importance": "magnitude"},
    "chance": {"stage": "prune", "model": "load", "amounts": {"lm_head": 0.5},
               "importance": "random"},
    "nearest": {"stage": "prune", "model": "load", "pattern": "2:4"},
    "smaller": {"stage": "shrink", "model": "load", "decoder_layers": 1},
    "int4": {"stage": "quantize", "model": "load", "weights": "int4", "group_size": 8},
    "trim_vocabulary": {"model": "load"},
    "finetune": {"model": "load", "epochs": 1},
    "sensitivity": {"rows": 4, "amounts": [0.5], "importance": "taylor"},
    "prune": {"target": {"nonzero_ratio": 0.7}, "importance": "taylor"},
    "recover": {"stage": "finetune", "epochs": 1},
    "wanda": {"stage": "prune", "amounts": {"lm_head": 0.5}, "importance": "wanda"},
    "sparsegpt": {"stage": "prune", "amounts": {"lm_head": 0.5}, "importance": "sparsegpt"},
    "slice": {"model": "finetune", "heads": 0.5, "feed_forward": 0.5},
    "shrink": {"model": "finetune", "decoder_layers": 1},
    "pseudo_label": {"model": "finetune", "max_length": 12},
    "distill": {"model": "shrink", "teacher": "finetune", "targets": "pseudo_label"},
    "smooth": {"model": "recover"},
    "quantize": {"weights": "int8"},
    "evaluate": {"models": ["recover", "distill", "slice", "quantize"], "max_length": [6, 12]},
    "beams": {"stage": "evaluate", "model": "recover", "max_length": 12, "num_beams": 3},
    "export": {"model": "recover"},
    "packed": {"stage": "export", "model": "recover", "format": "packed"},
}  # fmt: skip
WITHOUT_SUMS = {
    *("load", "baseline", "magnitude", "chance", "nearest", "smaller", "int4", "trim_vocabulary"),
}
"""Whose results no order of additions decides: the same bits with any number of threads."""


def run(folder: Path, stages: dict[str, Any], order: list[str], **variables: str) -> Command:
    folder.mkdir()
    recipe = yaml.safe_load(RECIPE) | {"stages": stages, "pipeline": order}
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    done = compressor("run", "mine.yaml", cwd=folder, **variables)
    assert done.code == 0, done.err
    return done


def bits(done: Command) -> dict[str, Any]:
    """Stage → key, files and all metrics but times."""
    store = Store(done.cwd / "outputs" / "store")
    return {
        record["name"]: (
            record["key"],
            store.verify(record["key"])["files"],
            without_times(record["metrics"]),
        )
        for record in done.records()
    }


def differing(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@long_form
def test_a_recipe_gives_the_same_bits_in_fresh_stores(tmp_path: Path) -> None:
    """Under another hash seed, locale, time zone, home and name, in another folder; with
    independent stages in another order too. (In short: `tests.reports.test_reproduce`.)
    """
    (tmp_path / "home").mkdir()
    first = bits(run(tmp_path / "first", MANY, list(MANY)))
    elsewhere = {**ELSEWHERE, "HOME": str(tmp_path / "home")}
    again = bits(run(tmp_path / "again", MANY, list(MANY), **elsewhere))
    assert differing(first, again) == set()
    order = ["load", "finetune", *(name for name in MANY if name not in {"load", "finetune"})]
    explicit = MANY | {n: MANY[n] | {"model": "finetune"} for n in ("sensitivity", "prune")}
    moved = bits(run(tmp_path / "moved", explicit, order))
    assert differing(first, moved) == set()
    check_threads(tmp_path, first)


def check_threads(folder: Path, first: dict[str, Any]) -> None:
    """A key names the request, not the threads, of which each record tells; also where it was found
    in the store.
    """
    done = run(folder / "threads", MANY, list(MANY), OMP_NUM_THREADS="3")
    more = bits(done)
    assert differing(first, more) & WITHOUT_SUMS == set()
    assert all(first[name][0] == more[name][0] for name in first)
    again = compressor("run", "mine.yaml", cwd=done.cwd, OMP_NUM_THREADS="1")
    about = json.loads((again.run_folder / "environment.json").read_text())
    assert about["machine"]["threads"] == 1
    for record in (*done.records(), *again.records()):
        assert record["computed_with"] == {"processes": 1, "threads": 3}
    assert all(record["cached"] for record in again.records())
