"""`compare`: what differs between runs, and which differences test rows can tell from chance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.evaluation.predictions import Prediction, write_predictions
from compressor.reports.compare.significance import compare_scores, score_rows
from tests.reports.conftest import Runs, edit_json

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
    before = score_rows(_predictions(tmp_path / "a.csv", [HALF] * 4))
    texts = [HALF, HALF, REFERENCE, REFERENCE]
    after = score_rows(_predictions(tmp_path / "b.csv", texts, limit=20))
    paired = compare_scores(before, after)["rouge1"]
    assert (paired.before, paired.after) == pytest.approx((0.6, 0.8))
    assert paired.difference == pytest.approx(0.2) and paired.rows == 4
    assert 0 <= paired.low < 0.2 < paired.high <= 0.4 + 1e-12
    # A resample shows no difference where it has neither of two of four rows: (1/2)^4 of them.
    assert paired.p == pytest.approx(2 / 16, abs=0.03)


def test_rows_are_paired_in_any_order_where_they_are_the_same(tmp_path: Path) -> None:
    """By number, source and reference; else refused, with how many are in both."""
    before = score_rows(_predictions(tmp_path / "a.csv", [HALF, REFERENCE, "x", REFERENCE]))
    lines = (tmp_path / "a.csv").read_text().splitlines()
    (tmp_path / "b.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    paired = compare_scores(before, score_rows(tmp_path / "b.csv"))["rougeLsum"]
    assert (paired.p, paired.low, paired.high) == (1.0, 0.0, 0.0)
    for count, source, shared in ((3, "bill", 3), (4, "law", 0)):
        other = score_rows(_predictions(tmp_path / "c.csv", [HALF] * count, source=source))
        with pytest.raises(ValueError, match=f"4 and {count}, and {shared} are in both"):
            compare_scores(before, other)


def test_two_runs_of_one_recipe(runs: Runs) -> None:
    """The key that differs, each model by its name, the last one marked, stages with reasons."""
    comparison = runs.read("compare", runs.first, runs.changed)
    assert comparison["recipe"] == [
        {"path": "stages.base.learning_rate", "values": [None, 0.004], "there": [False, True]}
    ]
    assert comparison["environment"] == []
    pairs = comparison["models"]
    models = [(pair["before"], pair["after"], pair["headline"]) for pair in pairs]
    assert models == [("base", "base", False), ("recover", "recover", True)]
    assert all(pair["rows"] == 8 and pair["unpaired"] is None for pair in pairs)
    stages = {step["stage"]: (step["standing"], step["because"]) for step in comparison["stages"]}
    assert stages["load"] == ("same key", None)
    assert stages["base"] == ("differs", "parameters.learning_rate 0.003 → 0.004")
    assert stages["prune"][1].startswith("its model base differs: parameters.learning_rate")
    page = runs.folder / "new/compared.html"
    out = runs.call("compare", runs.first, runs.cached, "--html", page).out
    assert out.endswith(f"page: {page}\n") and "rougeLsum" in page.read_text("utf-8")
    assert "recipe: the same" in out and "machine and versions: the same" in out
    comparison = runs.read("compare", runs.first, runs.cached)
    assert {step["standing"] for step in comparison["stages"]} == {"same key"}
    assert {s["p"] for pair in comparison["models"] for s in pair["scores"]} == {1.0}


def test_scores_are_the_runs_own(runs: Runs) -> None:
    """Labels: what the test computes from rows is what `evaluate` wrote; the rest is not tested."""
    (pair,) = runs.read("compare", runs.labels, runs.fewer_labels)["models"]
    before, after = (
        json.loads((run / "metrics.json").read_text())[-1]["metrics"]
        for run in (runs.labels, runs.fewer_labels)
    )
    scores = {score["metric"]: score for score in pair["scores"]}
    assert set(scores) >= {"micro_f1", "macro_f1", "accuracy", "roc_auc", "loss"}
    for name, score in scores.items():
        assert score["before"] == pytest.approx(before[name], abs=1e-12)
        assert score["after"] == pytest.approx(after[name], abs=1e-12)
        assert score["difference"] == pytest.approx(score["after"] - score["before"])
        is_tested = name in {"micro_f1", "macro_f1", "accuracy"}
        assert (score["p"] is not None) == (score["low"] is not None) == is_tested
    micro = scores["micro_f1"]
    assert micro["before"] != micro["after"] and 0 < micro["p"] <= 1
    assert micro["low"] <= micro["difference"] <= micro["high"]
    assert {size["name"]: size["ratio"] for size in pair["sizes"]}["bytes"] == 1.0


def test_three_runs_have_a_column_each(runs: Runs) -> None:
    """Recipes of two kinds: only the last models are compared, and nothing of them is paired."""
    three = ("compare", runs.first, runs.changed, runs.labels)
    comparison = runs.read(*three)
    assert [run["name"].split()[0] for run in comparison["runs"]] == ["mine", "mine", "labels"]
    values = {row["path"]: row["values"] for row in comparison["recipe"]}
    assert values["data.task"] == [None, None, "multi_label"]
    last = [pair for pair in comparison["models"] if pair["run"].startswith("labels")]
    assert [(pair["before"], pair["after"]) for pair in last] == [("recover", "classify")]
    assert "the rows are not the same" in last[0]["unpaired"]
    expected = "classify, against repaired: not paired, the rows are not the same"
    assert expected in runs.call(*three).out


def test_predictions_that_are_gone_leave_the_plain_difference(copies: Runs) -> None:
    """From `metrics.json`, without an interval; the sentence says why."""
    (link,) = copies.changed.glob("stages/*-evaluate@recover")
    shutil.rmtree(link.resolve())
    pair = copies.read("compare", copies.first, copies.changed)["models"][-1]
    assert pair["unpaired"] == "the predictions of 'repaired' are no longer in the store"
    assert {score["metric"] for score in pair["scores"]} == {"rougeLsum", "rouge1", "rouge2"}
    assert all(score["p"] is None for score in pair["scores"])
    (copies.first / "metrics.json").unlink()
    answer = copies.call("compare", copies.changed, copies.first)
    assert answer.code == 2 and "no stage of this run ended" in answer.err


def test_what_cannot_be_compared_is_said(copies: Runs) -> None:
    """ROUGEs of two tokenizers, where an earlier version names none and had the English one;
    latencies of two runs, which were measured at different times.
    """
    for run, name, p50 in ((copies.first, None, 40.0), (copies.changed, "unicode", 10.0)):

        def edit(records: list, name: str | None = name, p50: float = p50) -> None:
            assert records[-1]["metrics"].pop("rouge_tokenizer") == "english"
            records[-1]["metrics"] |= {"rouge_tokenizer": name} if name else {}
            timed = {"name": "benchmark", "stage": "benchmark", "model": "recover"}
            records.append(records[3] | timed | {"metrics": {"latency_p50_ms": p50}})

        edit_json(run / "metrics.json", edit)
    pair = copies.read("compare", copies.first, copies.changed)["models"][-1]
    assert pair["unpaired"] == "ROUGE's tokenizer is 'english' there and 'unicode' here"
    assert {size["name"]: size["ratio"] for size in pair["sizes"]}["latency_p50_ms"] == 0.25
    assert "measured at different times" in copies.call("compare", copies.first, copies.changed).out
    assert copies.read("compare", copies.first, copies.first)["models"][-1]["unpaired"] is None
