"""Which rows a split has: of its own file, held out of train, or validation's."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

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
        "files: no file for the split 'validation', which a stage reads; or hold it out of train: "
        "data.holdout=0.1"
    ]


def test_a_label_that_is_no_column_is_found_before_anything_runs(table: Path) -> None:
    """With the nearest there is, at the label's own place."""
    said: list[str] = []
    source = files(table, labels=("toxic", "rud"))
    source.check("train", lambda path, message: said.append(f"{path}: {message}"))
    assert len(said) == 1
    assert said[0].startswith("labels.1: no column 'rud'")
    assert "'rude'" in said[0]
