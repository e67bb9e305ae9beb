"""Which rows a split has: of its own file, held out of train, or validation's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import StageError
from compressor.data.sources import Files
from tests.data.tables import plan, source


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    rows = (f"text {row},{row % 2},{int(row % 3 == 0)}\n" for row in range(100))
    path.write_text("text,toxic,rude\n" + "".join(rows))
    return path


def files(path: Path, **changes: Any) -> Files:
    return source(path, **{"task": "multi_label", "labels": ("toxic", "rude"), **changes})


def texts(data: Files) -> dict[str, list[str]]:
    return {split: list(data.load(split).texts) for split in ("train", "validation", "test")}


def test_one_file_serves_all_splits_without_sharing_a_row(table: Path) -> None:
    """A share for each; every row once; labels go with their texts; the seed decides, and not the
    order in which shares are written: a key sorts them.
    """
    rows = texts(files(table, holdout=0.2))
    assert [len(rows[split]) for split in ("train", "validation", "test")] == [60, 20, 20]
    every = [text for part in rows.values() for text in part]
    assert sorted(every) == sorted(f"text {row}" for row in range(100))
    held = files(table, holdout=0.2).load("validation")
    numbers = [int(text.split()[1]) for text in held.texts]
    assert held.labels == [[number % 2, int(number % 3 == 0)] for number in numbers]
    assert rows == texts(files(table, holdout=0.2)) != texts(files(table, holdout=0.2, seed=1))
    shares = {"validation": 0.2, "test": 0.1}
    backwards = dict(reversed(shares.items()))
    assert texts(files(table, holdout=shares)) == texts(files(table, holdout=backwards))


def test_what_is_held_out_for_validation_alone_is_scored_too(table: Path) -> None:
    """System E's 80/20: nothing is taken from train for a test split that nobody asked for.
    `rows.test` limits what is scored, whichever split's rows these are.
    """
    data = files(table, holdout={"validation": 0.2}, seed=42)
    rows = texts(data)
    assert (len(rows["train"]), len(rows["validation"])) == (80, 20)
    assert rows["test"] == rows["validation"]
    assert data.content_key("test") == data.content_key("validation")
    assert data.content_key("train") != data.content_key("validation")
    data = files(table, holdout={"validation": 0.2}, rows={"test": 5, "validation": 2})
    assert [len(data.load(split)) for split in ("validation", "test")] == [2, 5]
    assert data.scores_validation and not files(table, holdout=0.2).scores_validation


@pytest.mark.parametrize(
    ("changes", "split", "expected"),
    [
        ({}, "validation", "files: nothing for the split 'validation', which a stage reads; or "
         "hold it out of train: data.holdout=0.1"),
        ({"holdout": {"test": 0.2}}, "validation", "files: nothing for the split 'validation'"),
        ({"holdout": {}}, "test", "files: nothing for the split 'test'"),
        ({"files": {"train": "a.csv", "validation": "a.csv"}, "holdout": {"validation": 0.2}},
         "train", "holdout: 'validation' is held out of train, and has its own in data.files"),
        ({"labels": ("toxic", "rud")}, "train", "labels.1: no column 'rud': "),
    ],
)  # fmt: skip
def test_a_split_or_a_column_that_is_not_there_is_reported(table, changes, split, expected) -> None:
    """A split was once given the rows that are trained on, and two places for one: one ignored."""
    (said,) = plan(files(table, **changes), split)[0]
    assert said.startswith(expected)
    assert "labels" not in changes or "'rude'" in said


def test_rows_are_named_by_their_place_in_the_file_also_when_they_are_held_out(table: Path) -> None:
    """Not among the shuffled rows; two rows are too few for two splits to want one each."""
    few = table.with_name("few.csv")
    few.write_text("text,toxic,rude\na,1,0\nb,0,1\n")
    with pytest.raises(StageError, match=r"data\.holdout: 2 rows are too few"):
        files(few, holdout=0.2).load("train")
    table.write_text(table.read_text().replace("text 40,0,", "text 40,7,"))
    with pytest.raises(StageError, match="row 40, column 'toxic': '7', not 0 or 1"):
        texts(files(table, holdout=0.2))
