"""Rows side by side: the right texts, the right order, and no more than a page can hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.core.files import write_json
from compressor.data.rows import Rows
from compressor.evaluation.labels import write_predictions
from compressor.evaluation.rouge import score_rows
from compressor.reports.run_page.results import Results
from compressor.reports.run_page.texts import MOST_BYTES, fitting, label_f1, rows
from tests.reports.made import made, predicted, record, scores


def _two_models(folder: Path, row_scores: bool = True) -> Path:
    """Two evaluated models on four rows, whose rougeLsum is that of our own metric."""
    records = [
        record("base", "finetune", None),
        record("small", "shrink", "base"),
        record("evaluate@base", "evaluate", "base", metrics=scores(0.9)),
        record("evaluate@small", "evaluate", "small", metrics=scores(0.5)),
    ]
    made(folder, [r for r in records if r["stage"] != "evaluate"])
    references = ["a red cat", "two blue dogs", "three birds sing", "one fish"]
    sources = [f"source {n}" for n in range(4)]
    for number, (stage, written) in enumerate(
        {
            "evaluate@base": ["a red cat", "two dogs", "birds", "one fish"],
            "evaluate@small": ["a red cat", "nothing", "three birds sing", "one dog"],
        }.items()
    ):
        own = score_rows(written, references)["rougeLsum"][:, 2].tolist() if row_scores else None
        predicted(folder, number, stage, written, own, sources=sources, references=references)
    write_json(folder / "metrics.json", records)
    return folder


def test_each_row_has_its_texts_and_what_was_lost(tmp_path: Path) -> None:
    """F1 by hand: row 1 loses 0.8 (2 of 2 and 2 of 3 words), row 2 wins 0.5, row 3 loses 0.5."""
    found = rows(Results.read(_two_models(tmp_path)))
    assert found is not None and found["original"] == "base" and found["models"] == ["small"]
    assert [line["d"] for line in found["rows"]] == [[0.0], [-0.8], [0.5], [-0.5]]
    assert found["rows"][1]["t"] == ["two dogs", "nothing"]  # of the longest limit
    assert found["rows"][1]["s"] == "source 1" and found["rows"][1]["r"] == "two blue dogs"
    assert found["scored"] and found["cut"] is None and found["total"] == 4


def test_without_kept_scores_rows_stay_in_order(tmp_path: Path) -> None:
    """An artifact from before: no score is made up, and the page is told."""
    found = rows(Results.read(_two_models(tmp_path, row_scores=False)))
    assert found is not None and not found["scored"]
    assert [line["d"] for line in found["rows"]] == [[None]] * 4


def test_a_run_without_predictions_has_no_rows(tmp_path: Path) -> None:
    """Nothing was evaluated."""
    assert rows(Results.read(made(tmp_path, [record("load", "load", None)]))) is None


def test_rows_of_labels_are_compared_by_their_labels(tmp_path: Path) -> None:
    """Two labels: given both, of which one is right, is an F1 of 2/3."""
    assert label_f1("joy", "joy; anger") == pytest.approx(2 / 3)
    assert label_f1("", "") == 1 and label_f1("joy", "") == 0
    records = [
        record("base", "finetune", None),
        record("small", "shrink", "base"),
        record("evaluate@base", "evaluate", "base", metrics={"micro_f1": 1.0}),
        record("evaluate@small", "evaluate", "small", metrics={"micro_f1": 0.5}),
    ]
    made(tmp_path, [r for r in records if r["stage"] != "evaluate"])
    write_json(tmp_path / "metrics.json", records)
    table = Rows(texts=["one", "two"], labels=[[1, 0], [0, 1]])
    for number, (name, given) in enumerate(
        {
            "evaluate@base": [[0.9, 0.1], [0.1, 0.9]],
            "evaluate@small": [[0.9, 0.8], [0.1, 0.9]],
        }.items()
    ):
        folder = tmp_path / "stages" / f"{number:02d}-{name}"
        folder.mkdir(parents=True)
        write_predictions(
            folder / "predictions.csv", table, np.array(given), ["joy", "anger"], [0.5, 0.5],
                "multi_label",
        )  # fmt: skip
    found = rows(Results.read(tmp_path))
    assert found is not None and found["labelled"]
    assert [line["t"] for line in found["rows"]] == [["joy", "joy; anger"], ["anger", "anger"]]
    assert found["rows"][0]["d"] == [pytest.approx(-1 / 3, abs=1e-4)]


def _line(number: int, source: int, text: int, lost: float) -> dict:
    return {"n": number, "s": "s" * source, "r": "", "t": ["t" * text], "d": [lost], "q": 0.5}


def test_sources_are_cut_before_rows_go() -> None:
    """10 rows of 1,000 + 100 + 60 bytes in 5,000: all, with sources of (5,000 - 1,600) / 10."""
    shown, cut = fitting([_line(n, 1000, 100, 0.0) for n in range(10)], most=5000)
    assert len(shown) == 10 and cut == 340
    assert all(len(line["s"]) == 342 for line in shown)  # and " …"


def test_the_rows_that_lost_the_most_stay() -> None:
    """360 bytes a row at the least: 3 of 10 rows fit into 1,100, the three lowest."""
    lines = [_line(n, 1000, 100, lost) for n, lost in enumerate([0, -5, 1, -9, 2, 3, -7, 4, 5, 6])]
    shown, cut = fitting(lines, most=1100)
    assert [line["n"] for line in shown] == [1, 3, 6] and cut is not None and cut >= 200


def test_letters_of_several_bytes_count_as_such() -> None:
    """Bytes and not characters are what a page is limited in."""
    lines = [_line(n, 0, 10, 0.0) | {"s": "字" * 100_000} for n in range(40)]
    shown, _ = fitting(lines)
    size = sum(len(line["s"].encode()) for line in shown)
    assert 0.8 * MOST_BYTES < size <= 1.01 * MOST_BYTES


def test_a_hundred_thousand_short_rows_are_a_page_that_opens() -> None:
    """Their texts alone are 4 MB, and were let in; with what is around them they made 15 MB."""
    lines = [
        {"n": n, "s": "s" * 20, "r": "r" * 10, "t": ["t" * 10], "d": [-0.1234], "q": 0.1234}
        for n in range(100_000)
    ]
    shown, cut = fitting(lines)
    assert cut is not None
    assert 15_000 < len(shown) < 100_000
    assert len(json.dumps(shown)) < 1.5 * MOST_BYTES
