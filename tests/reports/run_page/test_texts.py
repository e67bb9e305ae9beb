"""Rows side by side: the right texts, the right order, and no more than a page can hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compressor.core.files import write_json
from compressor.data.rows import Rows
from compressor.evaluation.labels import write_predictions
from compressor.evaluation.rouge import score_rows
from compressor.reports.run_page.results import Results
from compressor.reports.run_page.texts import MOST_BYTES, fit_rows, list_rows, score_labels
from tests.reports.handmade import make_run, record, write_evaluation


def _two_models(folder: Path, **metrics: float) -> Path:
    """Two evaluated models, whose predictions are still to be written."""
    records = [
        record("base", "finetune", None),
        record("small", "shrink", "base"),
        record("evaluate@base", "evaluate", "base", metrics=metrics),
        record("evaluate@small", "evaluate", "small", metrics=metrics),
    ]
    make_run(folder, records[:2])
    write_json(folder / "metrics.json", records)
    return folder


@pytest.mark.parametrize("is_scored", [True, False])
def test_each_row_has_its_texts_and_what_was_lost(tmp_path: Path, is_scored: bool) -> None:
    """F1 by hand: row 1 loses 0.8 (2 of 2 and 2 of 3 words), row 2 wins 0.5, row 3 loses 0.5. An
    artifact from before scores were kept: none is made up, and the page is told.
    """
    folder = _two_models(tmp_path, rougeLsum=0.5)
    texts = {
        "sources": [f"source {n}" for n in range(4)],
        "references": ["a red cat", "two blue dogs", "three birds sing", "one fish"],
    }
    for number, (stage, predictions) in enumerate(
        {
            "evaluate@base": ["a red cat", "two dogs", "birds", "one fish"],
            "evaluate@small": ["a red cat", "nothing", "three birds sing", "one dog"],
        }.items()
    ):
        scores = score_rows(predictions, texts["references"])["rougeLsum"][:, 2].tolist()
        kept = scores if is_scored else None
        write_evaluation(folder, number, stage, predictions, kept, **texts)
    page = list_rows(Results.read(folder))
    assert page is not None and page["original"] == "base" and page["models"] == ["small"]
    lost = [[0.0], [-0.8], [0.5], [-0.5]] if is_scored else [[None]] * 4
    assert [row["d"] for row in page["rows"]] == lost
    assert page["rows"][1]["t"] == ["two dogs", "nothing"]  # of the longest limit
    assert page["rows"][1]["s"] == "source 1" and page["rows"][1]["r"] == "two blue dogs"
    assert page["scored"] == is_scored and page["cut"] is None and page["total"] == 4


def test_a_run_without_predictions_has_no_rows(tmp_path: Path) -> None:
    """Nothing was evaluated."""
    assert list_rows(Results.read(make_run(tmp_path, [record("load", "load", None)]))) is None


def test_rows_of_labels_are_compared_by_their_labels(tmp_path: Path) -> None:
    """Two labels: given both, of which one is right, is an F1 of 2/3."""
    assert score_labels("joy", "joy; anger") == pytest.approx(2 / 3)
    assert score_labels("", "") == 1 and score_labels("joy", "") == 0
    _two_models(tmp_path, micro_f1=1.0)
    table = Rows(texts=["one", "two"], labels=[[1, 0], [0, 1]])
    for number, (name, first) in enumerate({"base": [0.9, 0.1], "small": [0.9, 0.8]}.items()):
        folder = tmp_path / "stages" / f"{number:02d}-evaluate@{name}"
        folder.mkdir(parents=True)
        scores = np.array([first, [0.1, 0.9]])
        path = folder / "predictions.csv"
        write_predictions(path, table, scores, ["joy", "anger"], [0.5, 0.5], "multi_label")
    page = list_rows(Results.read(tmp_path))
    assert page is not None and page["labelled"]
    assert [row["t"] for row in page["rows"]] == [["joy", "joy; anger"], ["anger", "anger"]]
    assert page["rows"][0]["d"] == [pytest.approx(-1 / 3, abs=1e-4)]


def _line(number: int, source: int, text: int, lost: float) -> dict:
    return {"n": number, "s": "s" * source, "r": "", "t": ["t" * text], "d": [lost], "q": 0.5}


def test_sources_are_cut_before_rows_go() -> None:
    """10 rows of 1,000 + 100 + 60 bytes in 5,000: all, with sources of (5,000 - 1,600) / 10."""
    shown, cut = fit_rows([_line(n, 1000, 100, 0.0) for n in range(10)], most=5000)
    assert len(shown) == 10 and cut == 340
    assert all(len(line["s"]) == 342 for line in shown)  # and " …"
    # 360 bytes a row at the least: 3 of 10 rows fit into 1,100, the three that lost the most.
    lines = [_line(n, 1000, 100, lost) for n, lost in enumerate([0, -5, 1, -9, 2, 3, -7, 4, 5, 6])]
    shown, cut = fit_rows(lines, most=1100)
    assert [line["n"] for line in shown] == [1, 3, 6] and cut is not None and cut >= 200
    # Letters of several bytes count as such.
    lines = [_line(n, 0, 10, 0.0) | {"s": "字" * 100_000} for n in range(40)]
    shown, _ = fit_rows(lines)
    size = sum(len(line["s"].encode()) for line in shown)
    assert 0.8 * MOST_BYTES < size <= 1.01 * MOST_BYTES
