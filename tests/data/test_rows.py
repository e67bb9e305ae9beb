"""What a row teaches is read exactly, or the message names row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compressor.data.messages import LABELS, Messages, make_messages
from tests.data.tables import load, plan, refusal, source, write_columns

TEXTS = ["late", "broken", "late and broken"]
SEVERAL = {"task": "multi_label", "labels": ("delivery", "damage")}
SINGLE = {"task": "single_label"}
TAGGED = {"task": "token_classification", "labels": ("O", "B-PER", "I-PER"), "label": "tags"}
STARS = {**SINGLE, "label": "stars"}
TAGGED = {"task": "token_classification", "labels": ("O", "B-PER"), "text": "w", "label": "tags"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


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
def test_labels_may_be_written_in_any_of_the_usual_ways(path, changes, columns, expected) -> None:
    """Truths as numbers, truth values or texts, lists in any order, names and numbers; a name that
    looks like a number is the name, whatever type the column has.
    """
    write_columns(path, {"text": TEXTS} | columns)
    assert load(path, **SEVERAL | changes).labels == expected


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
def test_what_is_not_expected_is_named_by_row_and_column(path, changes, columns, expected) -> None:
    """Each message alone is enough to find the cell."""
    write_columns(path, {"text": TEXTS} | columns)
    assert expected in refusal(path, **SEVERAL | changes)


@pytest.mark.parametrize(
    ("words", "tags"),
    [
        (["Ann", "left", "."], ["B-PER", "O", "O"]),
        ("Ann  left\n.", "B-PER O O"),
        (["Ann", "left", "."], [1, 0, 0]),
    ],
)
def test_words_and_tags_are_lists_or_texts(path: Path, words: Any, tags: Any) -> None:
    """A text is split at white space; a tag is a name, or its number."""
    write_columns(path, {"w": [words, ["gone"]], "tags": [tags, "O"]})
    rows = load(path, **TAGGED)
    assert (rows.texts, rows.labels) == (["Ann left .", "gone"], [[1, 0, 0], [0]])


def test_a_tables_own_names_say_what_the_numbers_of_tags_are(tmp_path: Path) -> None:
    """As in the data sets of CoNLL: a list of numbers with a ClassLabel's names, in its order."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    names = Sequence(ClassLabel(names=["B-PER", "O"]))
    features = Features({"w": Sequence(Value("string")), "tags": names})
    rows = {"w": [["Ann", "left"]], "tags": [[0, 1]]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet", **TAGGED).labels == [[1, 0]]


@pytest.mark.parametrize(
    ("words", "tags", "expected"),
    [
        (["a", "b"], ["O"], "row 1, column 'tags': number of tags: 1, of words in 'w': 2"),
        (["a", "b"], None, "row 1, column 'tags': number of tags: 0"),
        (
            ["a", "b"],
            ["O", "B-PRE"],
            "row 1, column 'tags': 'B-PRE' is no label; did you",
        ),
        (["a", "b"], ["O", 2], "row 1, column 'tags': 2 is no label"),
        (["a", ""], ["O", "O"], "row 1, column 'w': word 1 is empty"),
        (["a", "New York"], ["O", "O"], "row 1, column 'w': a space in 'New York'"),
        (["a", 3], ["O", "O"], "row 1, column 'w': int 3, not text"),
        ([], [], "1 row has no text (row 1, column 'w'); data.empty=drop"),
        (None, None, "1 row has no text (row 1, column 'w'); data.empty=drop"),
    ],
)
def test_tags_that_do_not_fit_their_words_are_named(path, words, tags, expected) -> None:
    """By row and column, while planning; a row without words is an empty one."""
    write_columns(path, {"w": [["x"], words], "tags": [["O"], tags]})
    assert expected in refusal(path, **TAGGED)


def test_rows_without_words_can_be_kept(path: Path) -> None:
    """Each row keeps its own tags."""
    write_columns(path, {"w": [[], ["Ann", "left"]], "tags": [[], ["B-PER", "O"]]})
    data = source(path, empty="keep", **TAGGED)
    assert data.load("train").labels == [[], [1, 0]]


def test_a_label_without_rows_matters_only_where_it_is_learned(path: Path) -> None:
    """A small validation split may lack a rare label."""
    write_columns(path, {"text": TEXTS, "delivery": [1, 1, 0], "damage": [0, 0, 1]})
    files = dict.fromkeys(("train", "validation"), str(path))
    few = source(path, files=files, rows={"train": 2, "validation": 2}, **SEVERAL)
    assert few.load("validation").labels == [[1, 0]] * 2
    assert "allow more rows" in plan(few)[0][0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"task": "summarization"}, "set `task`"),
        ({"labels": ("delivery", "delivery")}, "twice"),
        ({"labels": ()}, "at least 1"),
        ({"task": "single_label", "labels": ("delivery",)}, "at least 2"),
        ({"labels": ("late; broken",)}, "semicolon"),
        ({"holdout": 0.5}, "below 0.5"),
        (TAGGED | {"labels": ("O", "B PER")}, "no white space"),
        (TAGGED | {"truncate": "sentences"}, "set 'tokens'"),
    ],
)
def test_labels_that_cannot_be_are_refused(changes, expected) -> None:
    """Before anything is read."""
    with pytest.raises(ValueError, match=expected):
        source(Path("rows.csv"), **SEVERAL | changes)


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
