"""Which rows a split has: of its own file, held out of train, or validation's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import StageError
from compressor.data.sources import Files


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "toxic", "rude"))
        writer.writerows((f"text {row}", row % 2, int(row % 3 == 0)) for row in range(100))
    return path


def files(path: Path, **changes: Any) -> Files:
    fields = {"task": "multi_label", "labels": ("toxic", "rude")} | changes
    return Files(source="files", files={"train": str(path)}, **fields)


def texts(source: Files) -> dict[str, list[str]]:
    return {split: source.load(split).texts for split in ("train", "validation", "test")}


def test_one_file_serves_all_splits_without_sharing_a_row(table: Path) -> None:
    """A share for each; every row once; labels go with their texts; the seed decides."""
    found = texts(files(table, holdout=0.2))
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 60, "validation": 20, "test": 20,
    }  # fmt: skip
    assert sorted(text for rows in found.values() for text in rows) == sorted(
        f"text {row}" for row in range(100)
    )
    rows = files(table, holdout=0.2).load("validation")
    numbers = [int(text.split()[1]) for text in rows.texts]
    assert rows.labels == [[number % 2, int(number % 3 == 0)] for number in numbers]
    assert found == texts(files(table, holdout=0.2))
    assert found != texts(files(table, holdout=0.2, seed=1))


def test_what_is_held_out_for_validation_alone_is_scored_too(table: Path) -> None:
    """System E's 80/20: nothing is taken from train for a test split that nobody asked for."""
    found = texts(files(table, holdout={"validation": 0.2}, seed=42))
    assert (len(found["train"]), len(found["validation"])) == (80, 20)
    assert found["test"] == found["validation"]
    source = files(table, holdout={"validation": 0.2})
    assert source.content_key("test") == source.content_key("validation")
    assert source.content_key("train") != source.content_key("validation")


def test_without_a_holdout_a_split_wants_a_file(table: Path) -> None:
    """The message names both ways."""
    said: list[str] = []
    files(table).check("validation", lambda path, message: said.append(f"{path}: {message}"))
    assert said == [
        "files: nothing for the split 'validation', which a stage reads; or hold it out of train: "
        "data.holdout=0.1"
    ]


def test_a_limit_is_the_splits_own_where_validation_serves_as_test(table: Path) -> None:
    """`rows.test` limits what is scored, whoever's rows these are."""
    source = files(table, holdout={"validation": 0.2}, rows={"test": 5, "validation": 2})
    assert [len(source.load(split)) for split in ("validation", "test")] == [2, 5]
    assert source.scores_validation
    assert not files(table, holdout=0.2).scores_validation


def test_the_order_in_which_shares_are_written_changes_nothing(table: Path) -> None:
    """A key sorts them, so the rows must not depend on it."""
    shares = {"validation": 0.2, "test": 0.1}
    backwards = dict(reversed(shares.items()))
    assert texts(files(table, holdout=shares)) == texts(files(table, holdout=backwards))


@pytest.mark.parametrize(
    ("changes", "split", "expected"),
    [
        ({"holdout": {"test": 0.2}}, "validation", "nothing for the split 'validation'"),
        ({"holdout": {}}, "test", "nothing for the split 'test'"),
    ],
)
def test_a_split_that_is_neither_named_nor_held_out_is_reported(table, changes, split, expected):
    """It was once given the rows that are trained on."""
    said: list[str] = []
    files(table, **changes).check(split, lambda path, message: said.append(message))
    assert len(said) == 1 and said[0].startswith(expected)


def test_a_split_that_is_held_out_and_has_a_file_is_refused(table: Path) -> None:
    """One of the two would be ignored."""
    source = Files(
        source="files", files={"train": str(table), "validation": str(table)}, task="multi_label",
        labels=("toxic", "rude"), holdout={"validation": 0.2},
    )  # fmt: skip
    said: list[str] = []
    source.check("train", lambda path, message: said.append(f"{path}: {message}"))
    assert said == ["holdout: 'validation' is held out of train, and has its own in data.files"]


def test_too_few_rows_to_hold_any_out_are_named_so(table: Path) -> None:
    """Two rows, of which validation and test each want one."""
    few = table.with_name("few.csv")
    few.write_text("text,toxic,rude\na,1,0\nb,0,1\n")
    with pytest.raises(StageError, match=r"data\.holdout: 2 rows are too few"):
        files(few, holdout=0.2).load("train")


def test_a_wrong_cell_is_named_by_its_row_in_the_file_also_when_rows_are_held_out(table: Path):
    """Not by its place among the shuffled rows."""
    lines = table.read_text().splitlines()
    lines[41] = "text 40,7,0"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(StageError, match="row 40, column 'toxic': '7', not 0 or 1"):
        texts(files(table, holdout=0.2))


def test_words_that_a_spreadsheet_takes_for_nothing_are_texts(tmp_path: Path) -> None:
    """NA is a country's code, and null is what people write."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nN/A,NA\nnull,EU\n")
    source = Files(
        source="files", files={"train": str(path)}, task="single_label", labels=("EU", "NA")
    )
    rows = source.load("train")
    assert (rows.texts, rows.labels) == (["N/A", "null"], [[1], [0]])


def test_a_label_that_is_no_column_is_found_before_anything_runs(table: Path) -> None:
    """With the nearest there is, at the label's own place."""
    said: list[str] = []
    source = files(table, labels=("toxic", "rud"))
    source.check("train", lambda path, message: said.append(f"{path}: {message}"))
    assert len(said) == 1
    assert said[0].startswith("labels.1: no column 'rud'")
    assert "'rude'" in said[0]
