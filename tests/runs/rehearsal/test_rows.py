"""The rows of a rehearsal: a recipe's own, or generated ones; and those with nothing in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.data.rows import Rows
from compressor.data.sources import Data, Hub
from compressor.data.tokenizers import train_tokenizer
from compressor.runs.rehearsal.rows import empty_rows, small_data, take

ADAPTER: TypeAdapter[Any] = TypeAdapter(Data)


def files(folder: Path, rows: list[dict[str, Any]], **own: Any) -> Any:
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    both = {"train": str(path), "validation": str(path)}
    return ADAPTER.validate_python({"source": "files", "files": both, **own})


def test_every_label_has_a_row_to_train_on(tmp_path: Path) -> None:
    """The first nine rows, and beyond them the first with a label that none of those has."""
    rows = [{"text": f"text {i}", "labels": ["a"] if i != 70 else ["b", "c"]} for i in range(290)]
    data = files(tmp_path, rows, task="multi_label", labels=["a", "b", "c"], label="labels")
    taken = take(data, {"train", "validation", "test"})
    assert taken.rows["train"].texts == [*(f"text {i}" for i in range(9)), "text 70"]
    assert len(taken.rows["validation"]) == 4
    assert {split: len(rows) for split, rows in taken.looked_at.items()} == {
        "train": 200, "validation": 200, "test": 200,
    }  # fmt: skip
    folder = tmp_path / "rows"
    folder.mkdir()
    small = ADAPTER.validate_python(small_data(data, taken, folder))
    again = small.load("train")
    assert again == taken.rows["train"]
    assert small.scores_validation == data.scores_validation


def test_what_is_out_of_reach_is_generated_with_the_same_labels(tmp_path: Path) -> None:
    """28 labels want ten rows of three; the files have the data set's own columns."""
    names = [f"label {i}" for i in range(28)]
    hub = Hub(source="hub", dataset="nobody/nothing", splits={"train": "train"}, text="comment",
              task="multi_label", labels=tuple(names))  # fmt: skip
    taken = take(hub, {"train", "validation"})
    assert "nobody/nothing" in taken.generated and not taken.looked_at
    given = taken.rows["train"].labels
    assert len(given) == 10 and all(any(row[i] for row in given) for i in range(28))
    small = ADAPTER.validate_python(small_data(hub, taken, tmp_path))
    assert small.load("train").labels == given
    assert "comment" in json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])


def test_rows_without_content_are_counted() -> None:
    """Of four targets one is empty and one blank, and the limit of one token leaves the others no
    more than their end; a source of one letter is not empty beside its prefix.
    """
    tokenizer = train_tokenizer(["summarize: a text of some words"], vocab_size=300)
    own = {"source": "bills", "prefix": "summarize: ", "summary": "digest"}
    rows = {"train": Rows(["x", "", "some words", "y"], ["", " ", "b", "c"])}
    data = ADAPTER.validate_python(own)
    found = empty_rows(data, rows, tokenizer)
    assert [(e.column, e.count, e.of, e.target) for e in found] == [
        ("text", 1, 4, False),
        ("digest", 2, 4, True),
    ]
    assert not any(each.hopeless for each in found)
    short = ADAPTER.validate_python({**own, "max_target_length": 1})
    last = empty_rows(short, rows, tokenizer)[-1]
    assert (last.column, last.count, last.hopeless) == ("digest", 4, True)
    assert "4 of 4 rows of train" in str(last) and "'digest'" in str(last)
