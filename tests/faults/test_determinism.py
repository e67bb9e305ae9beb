"""The same recipe twice gives the same bits on a CPU, wherever, whoever and whenever runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.core.processes import environment
from compressor.engine.past_run import PastRun
from compressor.runs.reproduction import Outcome, Reproduction, print_reproduction, reproduction
from tests.conftest import RECIPE, compressor
from tests.faults import LONG, trials
from tests.faults.bits import TRIED, WITHOUT_SUMS
from tests.faults.conftest import Tell

ELSEWHERE = {
    "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8",
    "USER": "somebody", "LOGNAME": "somebody",
}  # fmt: skip
WITHOUT_FILES = {"baseline", "sensitivity"}
"""Stages that give metrics alone."""
MANY: dict[str, Any] = {
    "pipeline": [
        *("load", "finetune", "sensitivity", "prune", "recover", "slice", "shrink"),
        *("pseudo_label", "distill", "trim_vocabulary", "smooth", "quantize"),
        *("baseline", "evaluate", "export", "packed"),
    ],
    "stages": {
        "load": {},
        "finetune": {"epochs": 1},
        "sensitivity": {"rows": 4, "amounts": [0.5], "importance": "taylor"},
        "prune": {"target": {"nonzero_ratio": 0.7}, "importance": "taylor"},
        "recover": {"stage": "finetune", "epochs": 1},
        "slice": {"model": "finetune", "heads": 0.5, "feed_forward": 0.5},
        "shrink": {"model": "finetune", "decoder_layers": 1},
        "pseudo_label": {"model": "finetune", "max_length": 12},
        "distill": {"model": "shrink", "teacher": "finetune", "targets": "pseudo_label"},
        "trim_vocabulary": {"model": "recover"},
        "smooth": {"model": "recover"},
        "quantize": {"weights": "int8"},
        "baseline": {},
        "evaluate": {"models": ["recover", "distill", "slice", "quantize"], "max_length": [6, 12]},
        "export": {"model": "recover"},
        "packed": {"stage": "export", "model": "recover", "format": "packed"},
    },
}


def bits(folder: Path, threads: int = 1, **variables: str) -> dict[str, list[str]]:
    """Digests of all stages, in a process with this environment."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.faults.bits", str(threads), str(folder)],
        capture_output=True, text=True, env=environment(threads) | variables, check=False,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == TRIED.keys()
    return found


def test_stages_give_the_same_bits_again(tmp_path: Path, tell: Tell) -> None:
    """Every file and every metric that is no time: under another hash seed, locale, time zone, home
    and name, in another folder. With two threads, what no order of additions decides is the same
    too; the rest may differ in last bits, and does in large models.
    """
    home = tmp_path / "home"
    home.mkdir()
    first = bits(tmp_path / "first")
    again = bits(tmp_path / "elsewhere", HOME=str(home), **ELSEWHERE)
    assert {name for name in TRIED if first[name] != again[name]} == set()
    tell("determinism", "another folder, home, user, locale, time zone, hash seed", "the same bits",
         len(TRIED))  # fmt: skip
    for threads in (2, 3)[: trials(2, 0)]:
        found = bits(tmp_path / str(threads), threads)
        assert {name for name in WITHOUT_SUMS if first[name] != found[name]} == set()
        same = sum(first[name] == found[name] for name in TRIED)
        tell("determinism", f"{threads} threads instead of 1: stages that take no sums",
             "the same bits", len(WITHOUT_SUMS))  # fmt: skip
        tell("determinism", f"{threads} threads instead of 1: all stages, a pico model",
             f"the same bits in {same} of {len(TRIED)}")  # fmt: skip


def ran_by_hand(folder: Path, recipe: dict[str, Any], *overrides: str, **variables: str) -> PastRun:
    folder.mkdir()
    (folder / "mine.yaml").write_text(yaml.safe_dump(recipe))
    done = compressor("run", "mine.yaml", *overrides, cwd=folder, **variables)
    assert done.code == 0, done.err
    return PastRun.read(done.run_folder)


def differing(before: PastRun, after: PastRun) -> list[Outcome]:
    found = reproduction(before, after, {})
    assert all(each.there == "both" for each in found.outcomes)
    without = {each.name for each in found.outcomes if not each.compared_files}
    assert without <= WITHOUT_FILES
    return [each for each in found.outcomes if not each.equal]


@pytest.mark.skipif(not LONG, reason="four runs of sixteen stages: FAULTS=1")
def test_a_recipe_gives_the_same_bits_in_fresh_stores(tmp_path: Path, tell: Tell) -> None:
    """Keys, files and metrics, of fourteen kinds of stages, trainings and exports among them; with
    independent stages in another order too. With 3 threads the keys, for they name the request.
    """
    recipe = yaml.safe_load(RECIPE) | MANY
    first = ran_by_hand(tmp_path / "first", recipe)
    home = tmp_path / "home"
    home.mkdir()
    again = ran_by_hand(tmp_path / "again", recipe, HOME=str(home), **ELSEWHERE)
    assert differing(first, again) == []
    tell("determinism", "a recipe twice, in fresh stores", "the same bits", len(MANY["pipeline"]))
    order = list(MANY["pipeline"])
    for name, before in (("baseline", "finetune"), ("packed", "slice")):
        order.remove(name)
        order.insert(order.index(before), name)
    moved = ran_by_hand(tmp_path / "moved", recipe | {"pipeline": order})
    assert differing(first, moved) == []
    tell("determinism", "independent stages in another order", "the same bits", len(order))
    more = ran_by_hand(tmp_path / "threads", recipe, OMP_NUM_THREADS="3")
    found = differing(first, more)
    assert all(each.same_key for each in found)
    assert {m.found for each in found for m in each.metrics} <= {"rounding"}
    told = f"the same bits in all but {len(found)} of {len(order)} stages, those by rounding"
    tell("determinism", "a recipe with 3 threads instead of 1", told)


@pytest.mark.skipif(not LONG, reason="two runs: FAULTS=1")
def test_two_processes_give_what_one_gives_but_for_rounding(tmp_path: Path, tell: Tell) -> None:
    """Without dropout. The keys are the same; records tell how many processes it was."""
    recipe = yaml.safe_load(RECIPE)
    recipe["model"]["config"]["dropout_rate"] = 0.0
    one = ran_by_hand(tmp_path / "one", recipe)
    two = ran_by_hand(tmp_path / "two", recipe, "launch.num_processes=2", OMP_NUM_THREADS="1")
    found = differing(one, two)
    assert {each.name for each in found} <= {"finetune", "prune", "recover", "evaluate"}
    assert all(each.same_key for each in found)
    losses = [m for each in found for m in each.metrics if "loss" in m.path]
    assert all(abs(m.before - m.after) < 1e-4 * abs(m.before) for m in losses)
    by_name = {record["name"]: record["computed_with"] for record in two.records}
    assert by_name["finetune"] == {"processes": 2, "threads": 1}
    assert by_name["prune"] == {"processes": 1, "threads": 1}
    tell("determinism", "two processes instead of one", "the same keys, losses but for rounding")


@pytest.mark.skipif(not LONG, reason="two runs: FAULTS=1")
def test_records_tell_with_how_many_threads_it_was(tmp_path: Path, tell: Tell) -> None:
    """A key names the request, not the threads: a store's artifact may be of 3, a run of 1. Only
    `environment.json` told, and of the run that found it made, nothing.
    """
    recipe = yaml.safe_load(RECIPE) | {"pipeline": ["load", "prune"]}
    first = ran_by_hand(tmp_path / "run", recipe, OMP_NUM_THREADS="3")
    with_three = {"processes": 1, "threads": 3}
    assert [record["computed_with"] for record in first.records] == [with_three] * 2
    done = compressor("run", "mine.yaml", cwd=tmp_path / "run", OMP_NUM_THREADS="1")
    second = PastRun.read(done.run_folder)
    assert second.environment["machine"]["threads"] == 1
    assert [(r["cached"], r["computed_with"]) for r in second.records] == [(True, with_three)] * 2
    tell("determinism", "an artifact of another number of threads", "its record tells")


def test_reproduce_tells_of_other_threads(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a file is another, and what computed it had as many threads as the store says."""
    from compressor.core.console import Console

    with_three, with_one = {"processes": 1, "threads": 3}, {"processes": 1, "threads": 1}
    outcome = Outcome(
        "finetune", files=("model.safetensors",), compared_files=3,
        computed_with=(with_three, with_one),
    )  # fmt: skip
    made = Reproduction(Path("a"), Path("b"), finished=True, outcomes=(outcome,))
    print_reproduction(made, Console(width=200))
    expected = "finetune: computed with processes 1, threads 3 then and processes 1, threads 1 now"
    assert expected in capsys.readouterr().out


def test_no_environment_is_left_out() -> None:
    """The test above would pass where the variables did not reach the process."""
    code = (
        "import os, time; print(os.environ['PYTHONHASHSEED'], time.tzname[0], os.environ['USER'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | ELSEWHERE,
    )  # fmt: skip
    assert done.stdout.split() == ["7", "JST", "somebody"]
