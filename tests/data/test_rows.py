"""What a row teaches is read exactly, or the message names row and column."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from compressor.core.errors import StageError
from compressor.data.messages import LABELS, Messages, make_messages
from compressor.data.rows import Rows
from compressor.data.sources import Files

TEXTS = ["late", "broken", "late and broken"]
SINGLE = {"task": "single_label"}
STARS = {**SINGLE, "label": "stars"}


def data(**changes: Any) -> Files:
    fields = {"task": "multi_label", "labels": ("delivery", "damage")} | changes
    return Files(source="files", files={"train": "rows.csv"}, **fields)


def read(source: Files, split: Any = "train", limit: int | None = None, **columns: Any) -> Rows:
    return read_table(Dataset.from_dict({"text": TEXTS} | columns), source, split, limit)


def read_table(table: Dataset, source: Files, split: Any = "train", limit: Any = None) -> Rows:
    """Raise what planning says of a table that is saved as a file, or else read its rows."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        table.to_parquet(path)
        about: Any = {"files": dict.fromkeys(("train", split), str(path))}
        source = Files.model_validate(source.model_dump() | about | {"rows": {split: limit}})
        problems: list[str] = []
        source.check(split, lambda key, message: problems.append(f"{key}: {message}"))
        if problems:
            raise StageError("\n".join(problems))
        return source.load(split)


@pytest.mark.parametrize(
    ("changes", "columns", "expected"),
    [
        *(({}, {"delivery": truths, "damage": [0, 1, 1]}, [[1, 0], [0, 1], [1, 1]])
          for truths in ([1, 0, 1], [True, False, True], [1.0, 0.0, 1.0], list("101"))),
        ({"label": "tags"}, {"tags": [["delivery"], [], ["damage", "delivery"]]},
         [[1, 0], [0, 0], [1, 1]]),
        ({"label": "tags"}, {"tags": [[0], [], [1, 0]]}, [[1, 0], [0, 0], [1, 1]]),
        (SINGLE, {"label": ["damage", "delivery", "damage"]}, [[1], [0], [1]]),
        (SINGLE, {"label": [1, 0, 1]}, [[1], [0], [1]]),
        (STARS | {"labels": ("1", "2")}, {"stars": [1, 2, 1]}, [[0], [1], [0]]),
    ],
)  # fmt: skip
def test_labels_may_be_written_in_any_of_the_usual_ways(changes, columns, expected) -> None:
    """Truths as numbers, truth values or texts, lists in any order, names and numbers; a name that
    looks like a number is the name, whatever type the column has.
    """
    assert read(data(**changes), **columns).labels == expected


@pytest.mark.parametrize(
    ("changes", "columns", "expected"),
    [
        ({}, {"delivery": [1, 2, 0], "damage": [0, 1, 1]}, "row 1, column 'delivery': 2, not 0 or"),
        ({}, {"delivery": [1, 0, None], "damage": [0, 1, 1]}, "row 2, column 'delivery': nothing"),
        ({}, {"delivery": [1, 1, 1], "damage": [0, 0, 0]}, "has the label 'damage'; leave it out"),
        ({}, {"delivery": [1, 1, 1]}, "no column 'damage'"),
        ({"label": "tags"}, {"tags": [["delivery"], ["damge"], []]}, "row 1, column 'tags': 'd"),
        ({"label": "tags"}, {"tags": ["delivery"] * 3}, "row 0, column 'tags': 'delivery', not"),
        (SINGLE, {"label": [0, 1, 2]}, "row 2, column 'label': 2 is no label"),
        (SINGLE, {"label": ["damage"] * 3}, "has the label 'delivery'"),
        ({"text": "delivery"}, {"delivery": [1, 0, 0], "damage": [0, 1, 0]}, "int 1, not text"),
        # Stars from 1 to 3 with a stray 0: it would be the first label, and 1 the second.
        (STARS | {"labels": ("1", "2", "3")}, {"stars": [1, 2, 0]}, "'stars': 0 is no label"),
        # A blank is no label, nor a reason to take whole numbers for fractions.
        (SINGLE | {"labels": ("None", "damage")}, {"label": ["damage", None, "None"]},
         "row 1, column 'label': the cell is empty"),
        (SINGLE, {"label": [1.0, 0.0, None]}, "row 2, column 'label': the cell is empty"),
    ],
)  # fmt: skip
def test_what_is_not_expected_is_named_by_row_and_column(changes, columns, expected) -> None:
    """Each message alone is enough to find the cell."""
    with pytest.raises(StageError) as error:
        read(data(**changes), **columns)
    assert expected in str(error.value)


@pytest.mark.parametrize("several", [False, True])
def test_numbers_mean_what_the_table_says_they_mean(several: bool) -> None:
    """A column that knows its classes' names, in another order than `labels`."""
    kind: Any = ClassLabel(names=["damage", "delivery", "other"])
    features = Features({"text": Value("string"), "label": List(kind) if several else kind})
    source = data(label="label") if several else data(task="single_label")

    def read_values(*values: int) -> Rows:
        column = [[value] for value in values] if several else list(values)
        return read_table(Dataset.from_dict({"text": TEXTS, "label": column}, features), source)

    expected = [[0, 1], [1, 0], [0, 1]] if several else [[1], [0], [1]]
    assert read_values(0, 1, 0).labels == expected
    with pytest.raises(StageError, match="row 0, column 'label': 'other' is no label"):
        read_values(2, 1, 0)


def test_a_label_without_rows_matters_only_where_it_is_learned() -> None:
    """A small validation split may lack a rare label."""
    columns = {"delivery": [1, 1, 1], "damage": [0, 0, 0]}
    assert read(data(), "validation", **columns).labels == [[1, 0]] * 3
    with pytest.raises(StageError, match="allow more rows"):
        read(data(), "train", limit=1, delivery=[1, 0, 0], damage=[0, 1, 0])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "summarization"}, "set `task`"),
        ({"labels": ("delivery", "delivery")}, "twice"),
        ({"labels": ()}, "at least 1"),
        ({"task": "single_label", "labels": ("delivery",)}, "at least 2"),
        ({"labels": ("late; broken",)}, "semicolon"),
        ({"holdout": 0.5}, "below 0.5"),
    ],
)
def test_labels_that_cannot_be_are_refused(changes, expected) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=expected):
        data(**changes)


def test_messages_are_the_same_on_every_machine() -> None:
    """And another seed, split or task is another set; more rows go on where fewer end."""
    about: dict[str, Any] = {"seed": 0, "split": "train", "single": False}
    made = list(make_messages(50, **about))
    assert made == list(make_messages(80, **about))[:50]
    assert made[0] == (
        "I want my money back for the suitcase. The suitcase arrived in Austin when you said. "
        "I bought the suitcase a month ago. What does the suitcase weigh. I used to love this "
        "shop. Nothing is missing from the box.",
        {"question", "refund"},
    )
    for other in ({"seed": 1}, {"split": "test"}, {"single": True}):
        assert made != list(make_messages(50, **about | other))
    assert {len(labels) for _, labels in made} == {0, 1, 2, 3}
    assert {len(labels) for _, labels in make_messages(50, **about | {"single": True})} == {1}


def test_messages_have_the_labels_that_are_asked_for() -> None:
    """A subset in its own order; exactly one of six where each has one."""
    few = Messages(source="messages", labels=("urgent", "damage"), rows={"train": 40})
    full = Messages(source="messages", rows={"train": 40})
    columns = [LABELS.index(name) for name in few.labels]
    expected = [[row[column] for column in columns] for row in full.load("train").labels]
    assert few.load("train").labels == expected
    single = Messages(source="messages", task="single_label", rows={"train": 40}).load("train")
    assert {number for (number,) in single.labels} == set(range(6))
