"""The rows of a rehearsal: a recipe's own, or generated ones; and those with nothing in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.data.rows import Rows
from compressor.data.sources import Data, Hub
from compressor.data.tokenizers import train_tokenizer
from compressor.runs.rehearsal.rows import find_empty_rows, sample_rows, write_rows

ADAPTER: TypeAdapter[Any] = TypeAdapter(Data)


def test_every_label_has_a_row_to_train_on(tmp_path: Path) -> None:
    """The first nine rows, and beyond them the first with a label that none of those has."""
    rows = [{"text": f"text {i}", "tags": ["a"] if i != 70 else ["b", "c"]} for i in range(290)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ADAPTER.validate_python(
        {"source": "files", "files": {"train": str(path), "validation": str(path)},
         "task": "multi_label", "labels": ["a", "b", "c"], "label": "tags"}
    )  # fmt: skip
    sample = sample_rows(data, {"train", "validation", "test"})
    assert sample.rows["train"].texts == [*(f"text {i}" for i in range(9)), "text 70"]
    assert len(sample.rows["validation"]) == 4
    inspected = {split: len(rows) for split, rows in sample.inspected.items()}
    assert inspected == {"train": 200, "validation": 200, "test": 200}
    folder = tmp_path / "rows"
    folder.mkdir()
    small = ADAPTER.validate_python(write_rows(data, sample.rows, folder))
    assert small.load("train") == sample.rows["train"]
    assert small.scores_validation


def test_rows_that_are_out_of_reach_are_generated_with_the_same_labels(tmp_path: Path) -> None:
    """28 labels want 28 rows, of a column that the data set calls otherwise."""
    hub = Hub(source="hub", dataset="nobody/nothing", splits={"train": "train"}, text="comment",
              task="multi_label", labels=tuple(f"label {i}" for i in range(28)))  # fmt: skip
    sample = sample_rows(hub, {"train", "validation"})
    assert "nobody/nothing" in sample.reason and not sample.inspected
    labels = sample.rows["train"].labels
    assert len(labels) == 28 and all(any(row[i] for row in labels) for i in range(28))
    small = ADAPTER.validate_python(write_rows(hub, sample.rows, tmp_path))
    assert small.load("train").labels == labels


def test_rows_without_content_are_counted() -> None:
    """Of four targets one is empty and one blank, and the limit of one token leaves the others no
    more than their end; a source of one letter is not empty beside its prefix.
    """
    tokenizer = train_tokenizer(["summarize: a text of some words"], vocab_size=300)
    values = {"source": "bills", "prefix": "summarize: ", "summary": "digest"}
    rows = {"train": Rows(["x", "", "some words", "y"], ["", " ", "b", "c"])}
    data = ADAPTER.validate_python(values)
    text, digest = find_empty_rows(data, rows, tokenizer)
    assert text[1] == 0.25 and "1 of the first 4 rows of train have a text length of 0" in text[0]
    assert digest[1] == 0.5 and "column 'digest'" in digest[0]
    assert [share for _, share in find_empty_rows(data, rows, None)] == [0.25, 0.5]
    short = ADAPTER.validate_python({**values, "max_target_length": 1})
    *_, last = find_empty_rows(short, rows, tokenizer)
    assert last[1] == 1 and "4 of the first 4 rows of train have a target length of 0" in last[0]
