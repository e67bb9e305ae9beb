"""`predictions.csv`: what goes in comes out, and is scored again. ROUGE itself: test_rouge."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressor.evaluation.predictions import (
    COLUMNS,
    Prediction,
    read_predictions,
    score_predictions,
    write_predictions,
)
from compressor.reports.compare.significance import score_rows

PLAIN = Prediction(0, 20, "a long bill", "a b", "a c", 2, False)

ODD = [
    "", "'", "''", "'quoted'", "'=x", "''=x", "=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx",
    " =x", "two\nlines\r\nand\rmore", 'say "hi", ok', '"', ",;", "\N{GRINNING FACE} naïve 練",
    "\ufeffbom", "nul\x00", "\u2028", "  spaces  ", "x" * 200_000,
]  # fmt: skip


def test_columns_are_the_documented_ones() -> None:
    """Other programs read this file."""
    assert ",".join(COLUMNS) == "row,max_length,source,reference,prediction,tokens,cut_off"


@pytest.mark.parametrize("text", ODD, ids=lambda text: ascii(text[:20]))
def test_any_text_comes_back(tmp_path: Path, text: str) -> None:
    """In each of the three text columns; also one above the csv module's 131,072 characters, whose
    limit is the whole process's. In the file no cell begins as a spreadsheet's formula does.
    """
    before = csv.field_size_limit()
    rows = [replace(PLAIN, source=text), replace(PLAIN, row=1, reference=text, prediction=text)]
    write_predictions(tmp_path / "p.csv", rows)
    assert read_predictions(tmp_path / "p.csv") == rows
    assert csv.field_size_limit() == before
    if text.startswith(("=", "+", "-", "@", "\t", "\r")):
        assert f"'{text[:10]}" in (tmp_path / "p.csv").read_bytes().decode()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Whole or not at all, and no temporary file stays."""
    path = tmp_path / "p.csv"
    write_predictions(path, [PLAIN])

    def broken() -> Iterator[Prediction]:
        yield replace(PLAIN, row=7)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_predictions(path, broken())
    assert read_predictions(path) == [PLAIN]
    assert list(tmp_path.iterdir()) == [path]


def test_scores_are_grouped_by_max_length(tmp_path: Path) -> None:
    """By hand: at 20, F1 0.5 and 0, 2 and 4 tokens, one of two cut off; at 128, F1 1."""
    rows = [
        replace(PLAIN, max_length=128, prediction="a b"),
        PLAIN,
        replace(PLAIN, row=1, prediction="x", tokens=4, cut_off=True),
    ]
    write_predictions(tmp_path / "p.csv", rows)
    scores = score_predictions(tmp_path / "p.csv")
    assert list(scores) == [20, 128]
    at_20 = [scores[20][name] for name in ("count", "rouge1", "gen_len", "cut_off")]
    assert at_20 == [2, 0.25, 3, 0.5]
    assert [scores[128][name] for name in ("rougeLsum", "gen_len", "cut_off")] == [1, 2, 0]


def test_a_foreign_file_needs_two_columns(tmp_path: Path) -> None:
    """From a spreadsheet, with a byte order mark, in another order, with columns of its own."""
    (tmp_path / "p.csv").write_text("prediction,note,reference\na b,-,a b\n", encoding="utf-8-sig")
    scores = score_predictions(tmp_path / "p.csv")
    assert list(scores) == [None]
    assert scores[None]["rouge2"] == 1
    assert not {"gen_len", "cut_off"} & set(scores[None])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("reference,predictions\n", r"p\.csv has no column 'prediction'; did you mean "
         r"'predictions'\?"),
        ("", r"p\.csv has no column 'reference'; there is none to choose"),
        ("reference,prediction\n", r"p\.csv has no rows"),
        ("reference,prediction\na,b,c\n", r"p\.csv, line 2: expected 2 cells"),
        ('reference,prediction\na,"b', r"p\.csv, line 2: unexpected end of data"),
        ("reference,prediction,max_length\na,b,long\n",
         r"line 2: 'max_length' is 'long', expected a whole number"),
        ("reference,prediction,cut_off\na,b,maybe\n",
         r"line 2: 'cut_off' is 'maybe', expected true or false"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_explained(tmp_path: Path, content: str, message: str) -> None:
    """File, line or column, what was expected, and the nearest column there is."""
    (tmp_path / "p.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        score_predictions(tmp_path / "p.csv")


def test_a_file_that_is_missing_or_in_another_encoding_is_named(tmp_path: Path) -> None:
    """The decoder's own message would not say which file."""
    (tmp_path / "p.csv").write_bytes("reference,prediction\nnaïve,b\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"p\.csv is not UTF-8"):
        score_predictions(tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"gone\.csv is not a file"):
        read_predictions(tmp_path / "gone.csv")


def test_score_names_its_tokenizer_and_takes_another(tmp_path: Path, run) -> None:
    """Identical Hindi is 1.0; asked for English words it is 0, and a warning says why."""
    (tmp_path / "p.csv").write_text(
        "reference,prediction\nसरकार ने नई योजना,सरकार ने नई योजना\n", encoding="utf-8"
    )
    done = run("score", "p.csv", "--json")
    scores = json.loads(done.out)["None"]
    assert (scores["rougeLsum"], scores["rouge_tokenizer"], done.err) == (1.0, "unicode", "")
    done = run("score", "p.csv", "--rouge-tokenizer", "english")
    assert "0.0000" in done.out and "ROUGE's tokenizer: english" in done.out
    assert "warning: 1 of 1 references have no word" in done.err


def test_several_references_come_back_and_are_scored_again(tmp_path: Path) -> None:
    """As columns of their own, empty where a row has fewer; the best one scores."""
    path = tmp_path / "predictions.csv"
    rows = [
        Prediction(0, 8, "s", "x y", "a b", 2, False, ("=a b", "z")),
        Prediction(1, 8, "t", "a b", "a b", 2, False),
    ]
    write_predictions(path, rows, references=3)
    assert path.read_text().splitlines()[0].endswith(",cut_off,reference_2,reference_3")
    assert read_predictions(path) == rows
    assert score_predictions(path)[8]["rouge1"] == 1
    scored_rows = score_rows(path)
    assert list(scored_rows.measures["rouge1"].rows[:, 0]) == [1, 1]
    assert scored_rows.rows[0] == ("0", "s", "x y", "=a b", "z")
