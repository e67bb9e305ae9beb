"""Scores of labels against values worked out by hand, and the file they can be made of again."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from compressor.backends.outputs import compute_probabilities
from compressor.data.rows import Rows
from compressor.evaluation.labels import (
    best_thresholds,
    is_labelled,
    mean_loss,
    score_predictions,
    summarize_scores,
    write_predictions,
)

NAMES = ("damage", "=praise")
ROWS = Rows(["late", "=1+1", 'a "quoted", text', "-"], [], [[1, 0], [1, 1], [0, 1], [0, 0]])
SCORES = np.array([[0.9, 0.2], [0.4, 0.6], [0.3, 0.8], [0.6, 0.1]])


def test_losses_are_those_of_the_definition() -> None:
    """Means over rows and labels, or over rows; large logits do not overflow."""
    logits = np.array([[2.0, -1.0], [0.5, 1000.0]])
    given = [[1, 1], [0, 1]]
    p = 1 / (1 + np.exp(-logits[:, 0]))
    expected = -(math.log(p[0]) + math.log(1 / (1 + math.e)) + math.log(1 - p[1]) + 0) / 4
    assert mean_loss(logits, given, "multi_label") == pytest.approx(expected)
    rows = [-math.log(math.exp(2) / (math.exp(2) + math.exp(-1))), -math.log(1.0)]
    assert mean_loss(logits, [[0], [1]], "single_label") == pytest.approx(sum(rows) / 2)
    assert compute_probabilities(logits, "single_label").sum(1) == pytest.approx([1, 1])


def test_scores_of_each_label_and_their_means() -> None:
    """At 0.5: damage is given to rows 0 (right) and 3 (wrong), praise to 1 and 2 (right)."""
    truth = np.array(ROWS.labels)
    scored = summarize_scores(truth, (SCORES >= 0.5).astype(int), SCORES)
    damage, praise = scored["labels"]
    assert praise == {
        "positives": 2, "given": 2, "f1": 1.0, "roc_auc": 1.0, "average_precision": 1.0,
    }  # fmt: skip
    assert damage["f1"] == pytest.approx(2 * 1 / (2 + 2))
    # Of the pairs of a row with and one without: 0.9 and 0.4 against 0.3 and 0.6: three of four.
    assert damage["roc_auc"] == pytest.approx(3 / 4)
    # Ranked 0.9 (hit, 1/1), 0.6, 0.4 (hit, 2/3), 0.3.
    assert damage["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert scored["macro_f1"] == pytest.approx((0.5 + 1) / 2)
    assert scored["micro_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert scored["roc_auc"] == pytest.approx((3 / 4 + 1) / 2)
    assert scored["accuracy"] == pytest.approx(2 / 4)


def test_one_label_alone_is_scored_as_one_of_many_is() -> None:
    """One right, one wrong, one missed: F1 is 2·1 / (2 + 2), not that of its absence."""
    truth, given = np.array([[1], [0], [1], [0], [0]]), np.array([[1], [1], [0], [0], [0]])
    scored = summarize_scores(truth, given, given * 0.8 + 0.1)
    assert [scored["labels"][0]["f1"], scored["micro_f1"], scored["macro_f1"]] == [0.5, 0.5, 0.5]


def test_a_label_without_both_kinds_of_rows_has_no_ranking() -> None:
    """And is left out of the means, not counted as 0 or 1."""
    truth = np.array([[1, 0], [0, 0]])
    scored = summarize_scores(truth, truth, np.array([[0.9, 0.1], [0.2, 0.3]]))
    assert scored["labels"][1]["roc_auc"] is None
    assert (scored["roc_auc"], scored["average_precision"]) == (1.0, 1.0)
    nothing = summarize_scores(truth[:, 1:], truth[:, 1:], np.array([[0.1], [0.3]]))
    assert nothing["roc_auc"] is None


def test_constant_scores_rank_nothing() -> None:
    """By hand: two of four rows have the first label, three the second, and all get 0.3."""
    truth, scores = np.array([[1, 1], [1, 1], [0, 1], [0, 0]]), np.full((4, 2), 0.3)
    scored = summarize_scores(truth, np.array([[1, 0]] * 4), scores)
    assert [label["f1"] for label in scored["labels"]] == [pytest.approx(2 / 3), 0.0]
    assert scored["roc_auc"] == 0.5 and scored["average_precision"] == pytest.approx(
        (0.5 + 0.75) / 2
    )
    assert best_thresholds(scores[:, :1], [[0], [1], [0], [1]]) == [0.15]


def test_the_best_threshold_of_all_is_taken() -> None:
    """Against trying every probability; half-way to the next; rows of one probability together."""
    chance = np.random.default_rng(0)
    table = chance.integers(0, 12, (60, 3)) / 12
    labels = (chance.random((60, 3)) < table).astype(int)
    for column, limit in enumerate(best_thresholds(table, labels.tolist())):
        scores, truth = table[:, column], labels[:, column]

        def f1(at: float, scores=scores, truth=truth) -> float:
            given = scores >= at
            return 2 * (given & (truth == 1)).sum() / (given.sum() + truth.sum())

        assert f1(limit) == max(f1(at) for at in np.unique(scores))
        assert limit not in scores
    # By hand: F1 of the first 1, 2 and 3 rows is 2/3, 1/2, 4/5; below the last there is only 0.
    assert best_thresholds(np.array([[0.9], [0.6], [0.4]]), [[1], [0], [1]]) == [0.2]
    assert best_thresholds(np.array([[0.9], [0.5]]), [[0], [0]]) == [0.5]


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_a_file_gives_the_scores_it_was_written_from(tmp_path: Path, task) -> None:
    """To the last digit; texts that a spreadsheet would take for formulas come through. A label is
    given from its threshold on: a probability that equals it is enough.
    """
    path, labels = tmp_path / "predictions.csv", ROWS.labels
    truth, given = np.array(labels), (SCORES >= [0.4, 0.7]).astype(int)
    if task == "single_label":
        labels = [[0], [1], [1], [0]]
        truth = np.eye(2, dtype=int)[[0, 1, 1, 0]]
        given = np.eye(2, dtype=int)[[0, 1, 1, 0]]
    write_predictions(path, Rows(ROWS.texts, [], labels), SCORES, NAMES, [0.4, 0.7], task)
    assert is_labelled(path)
    expected = summarize_scores(truth, given, SCORES)
    expected["labels"] = dict(zip(NAMES, expected["labels"], strict=True))
    assert score_predictions(path) == expected
    assert "'=1+1" in path.read_text()
    assert "\n0,late,damage," in path.read_text()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("0.9", "1.5", "line 2: '1.5' is no probability"),
        ("0.9", "high", "line 2: 'high' is no probability"),
        ("late,damage", "late,damge", "line 2: no column 'p:damge' for the label"),
        (",reference,", ",expected,", "no column 'reference'"),
    ],
)
def test_a_file_that_was_edited_wrongly_is_refused_with_its_line(tmp_path, old, new, expected):
    """`compressor score` reads what people edit."""
    path = tmp_path / "predictions.csv"
    write_predictions(path, ROWS, SCORES, NAMES, [0.5, 0.5], "multi_label")
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=r"predictions\.csv") as error:
        score_predictions(path)
    assert expected in str(error.value)
