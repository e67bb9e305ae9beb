"""Rows of text with what is learned of them, and how they come out of a table. No files here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from compressor.errors import StageError, nearest

Task = Literal["summarization", "multi_label", "single_label"]
_TRUTH: Mapping[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1}
"""What a 0/1 column may hold. False, True, 0.0 and 1.0 are equal to, and hash as, 0 and 1."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in their order: source texts, without prefix, and what they teach."""

    texts: list[str]
    summaries: list[str] = field(default_factory=list)
    """The reference of each text, where the task is summarization."""
    labels: list[list[int]] = field(default_factory=list)
    """multi_label: 0 or 1 for each label; single_label: the one label's number alone."""

    def __len__(self) -> int:
        return len(self.texts)

    def first(self, count: int) -> Rows:
        """At most `count` rows from the beginning."""
        return Rows(self.texts[:count], self.summaries[:count], self.labels[:count])


class Columns(Protocol):
    """What of a data source decides how its rows are read."""

    @property
    def task(self) -> Task: ...
    @property
    def text(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def label(self) -> str | None: ...
    def columns(self) -> dict[str, str]: ...


def rows_of(table: Any, data: Columns, split: str, whose: str, limit: int | None) -> Rows:
    """The first `limit` rows of a `datasets.Dataset`. Raises StageError at what is not expected.

    A label that no row of the train split has is an error: nothing could be learned of it.
    """
    for key, name in data.columns().items():
        if name not in table.column_names:
            hint = nearest(name, table.column_names)
            raise StageError(f"data.{key}: {whose} has no column {name!r}; {hint}")
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if len(table) == 0:
        raise StageError(f"data: the split {split!r} of {whose} has no rows")
    texts = _texts(table[data.text], data.text, whose)
    if data.task == "summarization":
        return Rows(texts, _texts(table[data.summary], data.summary, whose))
    if data.task == "multi_label":
        if data.label is not None:
            columns = _lists(table[data.label], data.label, data.labels, whose)
        else:
            columns = [_truths(table[name], name, whose) for name in data.labels]
        labels = [list(row) for row in zip(*columns, strict=True)]
        absent = [
            name for name, column in zip(data.labels, columns, strict=True) if 1 not in column
        ]
    else:
        column = data.columns()["label"]
        numbers = _numbers(table[column], column, data.labels, whose)
        labels = [[number] for number in numbers]
        there = {number for (number,) in labels}
        absent = [name for index, name in enumerate(data.labels) if index not in there]
    if split == "train" and absent:
        raise StageError(
            f"data.labels: no row of {whose} that is trained on has the label {absent[0]!r}; leave "
            "it out, or allow more rows (data.rows.train)"
        )
    return Rows(texts, [], labels)


def _texts(values: Sequence[Any], column: str, whose: str) -> list[str]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            what = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
            raise StageError(f"data: {whose}, row {index}, column {column!r}: {what}, not text")
    return list(values)


def _truths(values: Sequence[Any], column: str, whose: str) -> list[int]:
    found = []
    for index, value in enumerate(values):
        if not isinstance(value, int | float | str) or value not in _TRUTH:
            what = "nothing" if value is None else f"{value!r:.40}"
            raise StageError(f"data: {whose}, row {index}, column {column!r}: {what}, not 0 or 1")
        found.append(_TRUTH[value])
    return found


def _numbers(
    values: Sequence[Any], column: str, names: Sequence[str], whose: str, row: int | None = None
) -> list[int]:
    """Labels by name or number as numbers; `row`: they are all of this one's."""
    numbers = {name: index for index, name in enumerate(names)}
    found = []
    for index, value in enumerate(values):
        number = numbers.get(str(value))  # a name that looks like a number is still the name
        if number is None and type(value) is int and 0 <= value < len(names):
            number = value
        if number is None:
            where = f"data: {whose}, row {index if row is None else row}, column {column!r}"
            hint = nearest(str(value), names)
            raise StageError(f"{where}: {value!r:.40} is no label; {hint}")
        found.append(number)
    return found


def _lists(values: Sequence[Any], column: str, names: Sequence[str], whose: str) -> list[list[int]]:
    """For each label a column of 0 and 1, of rows that each have a list of theirs."""
    columns = [[0] * len(values) for _ in names]
    for index, row in enumerate(values):
        if not isinstance(row, list):
            raise StageError(
                f"data: {whose}, row {index}, column {column!r}: {row!r:.40}, not a list of labels"
            )
        for number in _numbers(row, column, names, whose, row=index):
            columns[number][index] = 1
    return columns
