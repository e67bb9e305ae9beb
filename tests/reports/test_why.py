"""`why`: the part of a key that made a stage run, followed to where it began."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.core.differences import MISSING, Difference
from compressor.reports.key_diff import Side, describe, find_cause
from tests.reports.conftest import Runs

BECAUSE = "parameters.learning_rate 0.003 → 0.004"


def _artifact(run: Path, link: str) -> Path:
    return (run / "stages" / link).resolve()


def test_another_setting_is_named_with_both_values(runs: Runs) -> None:
    """And the run that it is compared with, with the time of the artifact; the first time there is
    nothing to compare with.
    """
    answer = runs.call("why", runs.first, "base")
    assert (answer.code, answer.out) == (0, "base ran: the store had no finetune stage before\n")
    out = runs.call("why", runs.changed, "base").out.splitlines()
    assert out[0] == f"base ran because {BECAUSE}"
    assert f"base of {runs.first}, made 20" in out[1] or "base of outputs/" in out[1]
    for stage in ("prun", "evaluate@recove"):
        answer = runs.call("why", runs.first, stage)
        assert answer.code == 2 and "did you mean" in answer.err


def test_an_input_is_followed_to_the_stage_that_differs(runs: Runs) -> None:
    """Through each model between, by name; a report is asked for by its own name or one model's."""
    out = runs.call("why", runs.changed, "recover").out
    chain = "its model prune differs, because its model base differs"
    assert out.splitlines()[0] == f"recover ran because {chain}: {BECAUSE}"
    both = runs.read("why", runs.changed, "evaluate")
    assert [node["stage"] for node in both] == ["evaluate@base", "evaluate@recover"]
    (one,) = runs.read("why", runs.changed, "evaluate@recover")
    assert one == both[1] and one["reason"] == "changed"
    against = one["cause"]["inputs"]["against"]["inputs"]["model"]
    assert against["differences"] == [
        {"path": "parameters.learning_rate", "before": 0.003, "after": 0.004, "text": BECAUSE}
    ]
    assert len(one["because"]) == 1 and one["because"][0].endswith(f"base differs: {BECAUSE}")


def test_a_cached_stage_says_who_made_it(runs: Runs) -> None:
    """The run, and when; `load` of the changed run came from the first one too."""
    made = json.loads((_artifact(runs.first, "00-load") / "manifest.json").read_text())["made"]
    for run in (runs.changed, runs.cached):
        (one,) = runs.read("why", run, "load")
        assert (one["reason"], one["from"]["made"]) == ("cached", made)
        assert one["from"]["run"].endswith(runs.first.name)
    assert "load did not run: it came from the store" in runs.call("why", run, "load").out


def test_a_failed_stage_is_explained_as_well(copies: Runs) -> None:
    """It left no artifact: the recipe, planned again, says what its key was made of."""
    out = copies.call("why", copies.failed, "base").out
    assert out.startswith("base ran (failed in base: the ")
    assert "because parameters.learning_rate 0.003 → 1e+30" in out
    again = copies.run("mine.yaml", "stages.base.learning_rate=1e30")
    (one,) = copies.read("why", again, "base")
    assert one["because"] == ["parameters.learning_rate 0.003 → 1e+30"]
    (note,) = one["notes"]
    assert copies.failed.name in note
    assert "began it with the same key and did not end it (failed in base" in note


def test_what_had_been_removed_or_damaged_is_made_again(copies: Runs) -> None:
    """The key is the same."""
    shutil.rmtree(_artifact(copies.first, "02-prune"))
    out = copies.call("why", copies.run("mine.yaml"), "prune").out
    assert out.startswith("prune ran, though nothing in its key had changed (it was there for ")
    assert "had been removed" in out
    weights = _artifact(copies.first, "02-prune") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    out = copies.call("why", copies.run("mine.yaml"), "prune").out
    assert "it was damaged in the store, and is set aside in " in out
    assert "damaged" not in copies.call("why", copies.first, "prune").out


def test_an_earlier_artifact_that_is_gone_is_planned_again(copies: Runs) -> None:
    """Its run's recipe gives the same key, so that its parts are known without it."""
    shutil.rmtree(_artifact(copies.first, "01-base"))
    assert copies.call("why", copies.changed, "base").out.startswith(
        f"base ran because {BECAUSE}\n"
    )
    (copies.first / "recipe.yaml").unlink()  # then nothing tells what the key was made of
    out = copies.call("why", copies.changed, "base").out
    assert "is no longer in the store" in out


def test_a_stage_new_to_the_recipe_is_held_to_the_most_similar_one(copies: Runs) -> None:
    """Another recipe's artifact of the same kind, by its name and the fewest differences."""
    text = (copies.folder / "mine.yaml").read_text().replace("0.5}", "0.6}")
    (copies.folder / "other.yaml").write_text(text)
    run = copies.run("other.yaml", "skip=[recover,evaluate]")
    (one,) = copies.read("why", run, "prune")
    assert one["because"] == ["parameters.amounts.encoder.feed_forward 0.5 → 0.6"]
    assert "/runs/mine/" in one["compared_with"]["run"]
    assert one["notes"] == ["no earlier run of this recipe is left that had this stage"]


PARTS = {"stage": "finetune", "version": 1, "parameters": {"epochs": 2}, "inputs": {}}


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ({}, {"parameters": {"epochs": 3}}, "parameters.epochs 2 → 3"),
        ({"seed": 0}, {"seed": 1}, "seed 0 → 1"),
        ({}, {"version": 2}, "version of the stage 1 → 2: its results changed"),
        ({"frameworks": {"torch": "2.12"}}, {"frameworks": {"torch": "2.13"}},
         "frameworks.torch 2.12 → 2.13"),
        ({"data": {"train": {"content": {"sha256": "a" * 64}}}},
         {"data": {"train": {"content": {"sha256": "b" * 64}}}},
         "data.train: other rows (the data set has changed)"),
        ({"data": {"train": {"content": {"n": 8}}}}, {"data": {"train": {"content": {"n": 9}}}},
         "data.train.n 8 → 9: other rows"),
        ({"identity": {"files": {"w": "a" * 64}}}, {"identity": {"files": {"w": "b" * 64}}},
         "identity.files.w: other content"),
        ({}, {"inputs": {"against": "x"}}, "inputs.against nothing → base"),
        ({"parameters": {"passes": 2}}, {"parameters": {"passes": 3}}, "parameters.epochs 2 → 3"),
        ({"data": {"train": {"columns": {"empty": "drop"}}}}, {"data": {"train": {"columns": {}}}},
         "data.train.columns.empty drop → keep"),
        ({"inputs": [["base", "x"]]}, {"inputs": [["base", "y"]]},
         "its model base differs: what the earlier one was made of is no longer known"),
    ],
)  # fmt: skip
def test_each_part_of_a_key_has_its_words(before, after, text: str) -> None:
    """Settings, seed, version, frameworks, data, a source's files, inputs."""
    data = {"empty": "keep"}
    sides = [Side({"k": PARTS | part}.get, lambda _: "base", data) for part in (before, after)]
    assert find_cause("base", "k", "k", *sides).chains() == [text]


def test_a_long_value_is_cut() -> None:
    """A demo text would fill the screen."""
    text = describe(Difference("parameters.demo_text", MISSING, "word " * 100))
    assert text.startswith("parameters.demo_text nothing → word word") and len(text) < 110
