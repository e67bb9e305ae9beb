"""`why`: the part of a key that made a stage run, followed to where it began."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from compressor.engine.provenance import MISSING, Difference
from compressor.reports.key_diff import Side, cause, written

BECAUSE = "parameters.learning_rate 0.003 → 0.004"


def _store(place: Any, run: Any, runs: Any, link: str) -> Any:
    """A stage's artifact, in a copy of the runs."""
    return (place.folder / run.relative_to(runs.place.folder) / "stages" / link).resolve()


def test_the_first_time_there_is_nothing_to_compare_with(runs: Any) -> None:
    """Of a kind that the store had no artifact of."""
    said = runs.place.call("why", runs.first, "base")
    assert said.code == 0 and said.out == "base ran: the store had no finetune stage before\n"


def test_another_setting_is_named_with_both_values(runs: Any) -> None:
    """And the run that it is compared with, with the time of the artifact."""
    out = runs.place.call("why", runs.changed, "base").out.splitlines()
    assert out[0] == f"base ran because {BECAUSE}"
    assert f"base of {runs.first}, made 20" in out[1] or "base of outputs/" in out[1]


def test_an_input_is_followed_to_the_stage_that_differs(runs: Any) -> None:
    """Through each model between, by name."""
    said = runs.place.call("why", runs.changed, "recover")
    chain = "its model prune differs, because its model base differs"
    assert said.out.splitlines()[0] == f"recover ran because {chain}: {BECAUSE}"


def test_a_report_on_several_models_is_told_of_each(runs: Any) -> None:
    """All of them by the stage's name, one by the node's; a place of origin is told once."""
    both = json.loads(runs.place.call("why", runs.changed, "evaluate", "--json").out)
    assert [each["stage"] for each in both] == ["evaluate@base", "evaluate@recover"]
    (one,) = json.loads(runs.place.call("why", runs.changed, "evaluate@recover", "--json").out)
    assert one == both[1] and one["reason"] == "changed"
    against = one["cause"]["inputs"]["against"]["inputs"]["model"]
    assert against["differences"] == [
        {"path": "parameters.learning_rate", "before": 0.003, "after": 0.004, "text": BECAUSE}
    ]
    assert len(one["because"]) == 1 and one["because"][0].endswith(f"base differs: {BECAUSE}")


def test_a_cached_stage_says_who_made_it(runs: Any) -> None:
    """The run, and when; `load` of the changed run came from the first one too."""
    made = json.loads((runs.first / "stages/00-load/manifest.json").read_text())["made"]
    for run in (runs.changed, runs.cached):
        (found,) = json.loads(runs.place.call("why", run, "load", "--json").out)
        assert (found["reason"], found["from"]["made"]) == ("cached", made)
        assert found["from"]["run"].endswith(runs.first.name)
    assert "load did not run: it came from the store" in runs.place.call("why", run, "load").out


def test_a_failed_stage_is_explained_as_well(runs: Any) -> None:
    """It left no artifact: the recipe, planned again, says what its key was made of."""
    said = runs.place.call("why", runs.failed, "base")
    assert said.out.startswith("base ran (failed in base: the ")
    assert "because parameters.learning_rate 0.003 → 1e+30" in said.out


def test_a_stage_that_an_earlier_run_did_not_end_is_held_to_one_before_it(
    own: Callable[[], Any], runs: Any
) -> None:
    """Its key is the same, and says nothing; what was once changed does, and who began it."""
    place = own()
    before = set((place.folder / "outputs/runs/mine").iterdir())
    assert place.call("run", "mine.yaml", "stages.base.learning_rate=1e30").code == 1
    (again,) = set((place.folder / "outputs/runs/mine").iterdir()) - before
    (said,) = json.loads(place.call("why", again, "base", "--json").out)
    assert said["because"] == ["parameters.learning_rate 0.003 → 1e+30"]
    (note,) = said["notes"]
    assert runs.failed.name in note
    assert "began it with the same key and did not end it (failed in base" in note


@pytest.mark.parametrize("stage", ["prun", "evaluate@recove"])
def test_an_unknown_stage_gets_the_nearest(runs: Any, stage: str) -> None:
    """Exit code 2, with the run and the name."""
    said = runs.place.call("why", runs.first, stage)
    assert said.code == 2 and "did you mean" in said.err


def test_what_had_been_removed_is_made_again(own: Callable[[], Any], runs: Any) -> None:
    """The key is the same; the artifact was not there any more."""
    place = own()
    shutil.rmtree(_store(place, runs.first, runs, "02-prune"))
    again = place.run("mine.yaml")
    out = place.call("why", again, "prune").out
    assert out.startswith("prune ran, though nothing in its key had changed (it was there for ")
    assert "had been removed" in out


def test_what_was_damaged_is_made_again(own: Callable[[], Any], runs: Any) -> None:
    """Where it lies now is told; a run that came before the damage has another answer."""
    place = own()
    weights = _store(place, runs.first, runs, "02-prune") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    again = place.run("mine.yaml")
    out = place.call("why", again, "prune").out
    assert "it was damaged in the store, and is set aside in " in out
    first = place.folder / runs.first.relative_to(runs.place.folder)
    assert "damaged" not in place.call("why", first, "prune").out


def test_an_earlier_artifact_that_is_gone_is_planned_again(
    own: Callable[[], Any], runs: Any
) -> None:
    """Its run's recipe gives the same key, so that its parts are known without it."""
    place = own()
    for run in (runs.first, runs.cached):
        shutil.rmtree(_store(place, run, runs, "01-base"), ignore_errors=True)
    changed = place.folder / runs.changed.relative_to(runs.place.folder)
    assert place.call("why", changed, "base").out.startswith(f"base ran because {BECAUSE}\n")
    first = place.folder / runs.first.relative_to(runs.place.folder)
    (first / "recipe.yaml").unlink()  # then nothing tells what the key was made of
    out = place.call("why", changed, "base").out
    assert "is no longer in the store" in out and "between the recipes differ: " in out


def test_a_stage_new_to_the_recipe_is_held_to_the_most_similar_one(
    own: Callable[[], Any],
) -> None:
    """Another recipe's artifact of the same kind, by its name and the fewest differences."""
    place = own()
    text = (place.folder / "mine.yaml").read_text().replace("0.5}", "0.6}")
    (place.folder / "other.yaml").write_text(text)
    run = place.run("other.yaml", "skip=[recover,evaluate]")
    (found,) = json.loads(place.call("why", run, "prune", "--json").out)
    assert found["because"] == ["parameters.amounts.encoder.feed_forward 0.5 → 0.6"]
    assert found["compared_with"]["run"].endswith(("mine/" + run.name, ""))
    assert found["notes"] == ["no earlier run of this recipe is left that had this stage"]


PARTS = {"stage": "finetune", "version": 1, "parameters": {"epochs": 2}, "inputs": {}}


def _text(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    sides = [Side({"k": PARTS | part}.get, lambda _: "base") for part in (before, after)]
    return cause("base", "k", "k", *sides).chains()


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
        ({"inputs": [["base", "x"]]}, {"inputs": [["base", "y"]]},
         "its model base differs: what the earlier one was made of is no longer known"),
    ],
)  # fmt: skip
def test_each_part_of_a_key_has_its_words(
    before: dict[str, Any], after: dict[str, Any], text: str
) -> None:
    """Settings, seed, version, frameworks, data, a source's files, inputs."""
    assert _text(before, after) == [text]


def test_a_long_value_is_cut() -> None:
    """A demo text would fill the screen."""
    text = written(Difference("parameters.demo_text", MISSING, "word " * 100))
    assert text.startswith("parameters.demo_text nothing → word word") and len(text) < 110
