"""`compare`: what differs between runs, and which differences test rows can tell from chance."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.engine.past_run import PastRun
from compressor.engine.provenance import MISSING
from compressor.evaluation.predictions import Prediction, write_predictions
from compressor.reports.compare.compare import compare, told
from compressor.reports.compare.significance import compared, scored

REFERENCE = "the act makes grants to states"
HALF = "the act makes nothing"
"""3 of the reference's 6 words, in 4: rouge1 = 2 · 3 / (6 + 4) = 0.6."""


def _predictions(path: Path, texts: list[str], *, source: str = "bill", limit: int = 16) -> Path:
    rows = [
        Prediction(number, max_length, f"{source} {number}", REFERENCE, text, 9, False)
        for max_length, all_ in ((4, ["x"] * len(texts)), (limit, texts))
        for number, text in enumerate(all_)
    ]
    write_predictions(path, rows)
    return path


def test_scores_are_those_of_the_longest_limit(tmp_path: Path) -> None:
    """By hand: half of the rows have all words of the reference, half of those 3 of 6."""
    before = scored(_predictions(tmp_path / "a.csv", [HALF] * 4))
    after = scored(_predictions(tmp_path / "b.csv", [HALF, HALF, REFERENCE, REFERENCE], limit=20))
    found = compared(before, after)["rouge1"]
    assert (found.before, found.after) == pytest.approx((0.6, 0.8))
    assert found.difference == pytest.approx(0.2) and found.rows == 4
    assert 0 <= found.low < 0.2 < found.high <= 0.4 + 1e-12
    # A resample shows no difference where it has neither of two of four rows: (1/2)^4 of them.
    assert found.p == pytest.approx(2 / 16, abs=0.03)


def test_rows_may_stand_in_another_order(tmp_path: Path) -> None:
    """They are matched by number, source and reference."""
    texts = [HALF, REFERENCE, "x", REFERENCE]
    before = scored(_predictions(tmp_path / "a.csv", texts))
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    found = compared(before, scored(tmp_path / "b.csv"))["rougeLsum"]
    assert (found.p, found.low, found.high) == (1.0, 0.0, 0.0)


def test_other_rows_are_not_paired(tmp_path: Path) -> None:
    """Other texts, or fewer of them: refused, with how many are in both."""
    before = scored(_predictions(tmp_path / "a.csv", [HALF] * 4))
    for name, texts, source in (("b.csv", [HALF] * 3, "bill"), ("c.csv", [HALF] * 4, "law")):
        other = scored(_predictions(tmp_path / name, texts, source=source))
        shared = 3 if name == "b.csv" else 0
        with pytest.raises(ValueError, match=f"4 and {len(texts)}, and {shared} are in both"):
            compared(before, other)


def _json(runs: Any, *folders: Any) -> dict[str, Any]:
    said = runs.place.call("compare", *folders, "--json")
    assert said.code == 0, said.err
    loaded: dict[str, Any] = json.loads(said.out)
    return loaded


def test_two_runs_of_one_recipe(runs: Any) -> None:
    """The key that differs, each model by its name, the last one marked, stages with reasons."""
    found = _json(runs, runs.first, runs.changed)
    assert found["recipe"] == [
        {"path": "stages.base.learning_rate", "values": [None, 0.004], "there": [False, True]}
    ]
    assert found["environment"] == []
    models = [(pair["before"], pair["after"], pair["headline"]) for pair in found["models"]]
    assert models == [("base", "base", False), ("recover", "recover", True)]
    assert all(pair["rows"] == 8 and pair["unpaired"] is None for pair in found["models"])
    stages = {step["stage"]: (step["standing"], step["because"]) for step in found["stages"]}
    assert stages["load"] == ("same key", None)
    assert stages["base"] == ("differs", "parameters.learning_rate 0.003 → 0.004")
    assert stages["prune"][1].startswith("its model base differs: parameters.learning_rate")


def test_an_empty_mapping_is_told_by_the_keys_of_another() -> None:
    """`quantize: {}` beside `quantize: {weights: int4}`: one row; True is not 1."""
    rows = told([{"stages": {"quantize": {}}, "a": 1}, {"stages": {"quantize": {"weights": "int4"}},
                                                         "a": True}])  # fmt: skip
    assert {row.path: row.values for row in rows} == {
        "stages.quantize.weights": (MISSING, "int4"),
        "a": (1, True),
    }


def test_scores_are_the_runs_own(runs: Any) -> None:
    """Labels: what the test computes from rows is what `evaluate` wrote; the rest is not tested."""
    found = _json(runs, runs.labels, runs.fewer_labels)
    (pair,) = found["models"]
    records = [
        json.loads((folder / "metrics.json").read_text())[-1]["metrics"]
        for folder in (runs.labels, runs.fewer_labels)
    ]
    scores = {score["metric"]: score for score in pair["scores"]}
    assert set(scores) >= {"micro_f1", "macro_f1", "accuracy", "roc_auc", "loss"}
    for name, score in scores.items():
        assert score["before"] == pytest.approx(records[0][name], abs=1e-12)
        assert score["after"] == pytest.approx(records[1][name], abs=1e-12)
        assert score["difference"] == pytest.approx(score["after"] - score["before"])
        tested = name in {"micro_f1", "macro_f1", "accuracy"}
        assert (score["p"] is not None) == (score["low"] is not None) == tested
    assert scores["micro_f1"]["before"] != scores["micro_f1"]["after"]
    assert 0 < scores["micro_f1"]["p"] <= 1
    assert (
        scores["micro_f1"]["low"] <= scores["micro_f1"]["difference"] <= scores["micro_f1"]["high"]
    )
    (sizes,) = [pair["sizes"] for pair in found["models"]]
    assert {size["name"]: size["ratio"] for size in sizes}["bytes"] == 1.0


def test_a_run_does_not_differ_from_itself_made_again(runs: Any) -> None:
    """The same keys, the same rows, p = 1 for each metric, and said so."""
    said = runs.place.call("compare", runs.first, runs.cached)
    assert "recipe: the same" in said.out and "machine and versions: the same" in said.out
    found = _json(runs, runs.first, runs.cached)
    assert {step["standing"] for step in found["stages"]} == {"same key"}
    assert {score["p"] for pair in found["models"] for score in pair["scores"]} == {1.0}


def test_three_runs_have_a_column_each(runs: Any) -> None:
    """Recipes of two kinds: only the last models are compared, and nothing of them is paired."""
    found = _json(runs, runs.first, runs.changed, runs.labels)
    assert [run["name"].split()[0] for run in found["runs"]] == ["mine", "mine", "labels"]
    values = {row["path"]: row["values"] for row in found["recipe"]}
    assert values["data.task"] == [None, None, "multi_label"]
    assert values["seed"] == [0, 0, 0] if "seed" in values else True
    last = [pair for pair in found["models"] if pair["run"].startswith("labels")]
    assert [(pair["before"], pair["after"]) for pair in last] == [("recover", "classify")]
    assert "the rows are not the same" in last[0]["unpaired"]
    said = runs.place.call("compare", runs.first, runs.changed, runs.labels)
    assert "classify, against repaired: not paired, the rows are not the same" in said.out


def test_predictions_that_are_gone_leave_the_plain_difference(
    own: Callable[[], Any], runs: Any
) -> None:
    """From `metrics.json`, without an interval; the sentence says why."""
    place = own()
    folder = place.folder / runs.changed.relative_to(runs.place.folder)
    (link,) = folder.glob("stages/*-evaluate@recover")
    shutil.rmtree(link.resolve())
    found = _json(runs, place.folder / runs.first.relative_to(runs.place.folder), folder)
    pair = found["models"][-1]
    assert pair["unpaired"] == "the predictions of 'repaired' are no longer in the store"
    assert {score["metric"] for score in pair["scores"]} == {"rougeLsum", "rouge1", "rouge2"}
    assert all(score["p"] is None for score in pair["scores"])


def test_rouges_of_two_tokenizers_are_not_paired(own: Callable[[], Any], runs: Any) -> None:
    """They count other words; a run of an earlier version had English ones and names none."""
    place = own()
    first, changed = (
        place.folder / run.relative_to(runs.place.folder) for run in (runs.first, runs.changed)
    )
    for folder, name in ((first, None), (changed, "unicode")):
        records = json.loads((folder / "metrics.json").read_text())
        assert records[-1]["metrics"].pop("rouge_tokenizer") == "english"
        records[-1]["metrics"] |= {"rouge_tokenizer": name} if name else {}
        (folder / "metrics.json").write_text(json.dumps(records))
    pair = compare([PastRun.read(folder) for folder in (first, changed)]).pairs[-1]
    assert pair.unpaired == "ROUGE's tokenizer is 'english' there and 'unicode' here"
    assert compare([PastRun.read(first)] * 2).pairs[-1].unpaired is None


def test_latencies_carry_a_warning(own: Callable[[], Any], runs: Any) -> None:
    """Two runs' latencies were measured at different times; the ratio is shown all the same."""
    place = own()
    folders = [
        place.folder / run.relative_to(runs.place.folder) for run in (runs.first, runs.changed)
    ]
    for folder, p50 in zip(folders, (40.0, 10.0), strict=True):
        records = json.loads((folder / "metrics.json").read_text())
        metrics = {"latency_p50_ms": p50}
        records.append(records[3] | {"name": "benchmark", "stage": "benchmark", "model": "recover",
                                     "metrics": metrics})  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(records))
    said = place.call("compare", *folders)
    assert "measured at different times" in said.out
    sizes = compare([PastRun.read(folder) for folder in folders]).pairs[-1].sizes
    assert {size.name: size.ratio for size in sizes}["latency_p50_ms"] == 0.25


@pytest.mark.parametrize(
    ("given", "message"),
    [(["first"], "at least two runs"), (["first", "failed_early"], "no stage of this run ended")],
)
def test_what_cannot_be_compared(
    own: Callable[[], Any], runs: Any, given: list[str], message: str
) -> None:
    """One run, or one that never ended a stage."""
    place = own()
    folders = {"first": runs.first, "failed_early": place.folder / "early"}
    folders["failed_early"].mkdir()
    shutil.copy(runs.first / "recipe.yaml", folders["failed_early"])
    said = place.call("compare", *(folders[name] for name in given))
    assert said.code == 2 and message in said.err
