"""Rows of text with what is learned of them, and how they come out of a table. No files here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, overload

from compressor.data.resident import let_go
from compressor.errors import StageError, nearest

Task = Literal["summarization", "multi_label", "single_label"]
ROW = "__row"
"""The column of row numbers, in a table of which rows were taken."""
LISTED = 10_000
"""Up to so many rows are read at once, as lists; of more, texts are read when asked for."""
RESIDENT = 2**27
"""Characters that are read before the file's pages are let go."""
_PIECE = 1_000
"""Texts that are read at a time."""
_TRUTH: Mapping[Any, int] = {0: 0, 1: 1, "0": 0, "1": 1}
"""What a 0/1 column may hold. False, True, 0.0 and 1.0 are equal to, and hash as, 0 and 1."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in their order: source texts, without prefix, and what they teach."""

    texts: Sequence[str]
    summaries: Sequence[str] = field(default_factory=list)
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

    A column `ROW`, where there is one, has the numbers that messages give to the rows.
    """
    for key, name in data.columns().items():
        if name not in table.column_names:
            hint = nearest(name, table.column_names)
            raise StageError(f"data.{key}: {whose} has no column {name!r}; {hint}")
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if len(table) == 0:
        raise StageError(f"data: the split {split!r} of {whose} has no rows")
    numbers = list(table[ROW]) if ROW in table.column_names else range(len(table))

    def cells(column: str) -> _Cells:
        names = _class_names(table.features[column])
        return _Cells(list(table[column]), column, whose, numbers, names)

    def texts_of(column: str) -> Sequence[str]:
        if len(table) > LISTED:
            return _read_when_asked(table, whose, column, numbers)
        return cells(column).texts()

    texts = texts_of(data.text)
    if data.task == "summarization":
        return Rows(texts, texts_of(data.summary))
    if data.task == "multi_label" and data.label is None:
        labels = [list(row) for row in zip(*(cells(n).truths() for n in data.labels), strict=True)]
    elif data.task == "multi_label":
        labels = cells(data.columns()["label"]).lists(data.labels)
    else:
        labels = [[number] for number in cells(data.columns()["label"]).classes(data.labels)]
    require_labels(labels, data, split, whose)
    return Rows(texts, [], labels)


class Texts(Sequence[str]):
    """A column's texts, read from the table's file when they are asked for: 5 GB stay on the disk.

    In order, or many at once by a slice, that is as quick as a list; one alone takes some 0.1 ms.
    """

    def __init__(self, table: Any, column: str) -> None:
        """Of a `datasets.Dataset`."""
        self._table, self._column = table.select_columns([column]), column
        self._rows = range(len(table))
        self._read = 0

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: int | slice) -> str | list[str]:
        found: str | list[str] = self._table[
            list(self._rows[place]) if isinstance(place, slice) else self._rows[place]
        ][self._column]
        texts = [found] if isinstance(found, str) else found
        self._read += sum(len(text) for text in texts if isinstance(text, str))
        if self._read > RESIDENT:
            self._read = 0
            let_go([self._table.data.column(self._column)])
        return found

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _PIECE):
            yield from self[start : start + _PIECE]


def _read_when_asked(table: Any, whose: str, column: str, numbers: Sequence[int]) -> Texts:
    """The texts of a long table. Raises StageError at what is no text, as for a short one."""
    texts = Texts(table, column)
    of_text = str(table.data.schema.field(column).type) in {"string", "large_string"}
    if of_text and table.data.column(column).null_count == 0:
        return texts
    for start in range(0, len(texts), _PIECE):
        part = slice(start, start + _PIECE)
        _Cells(list(texts[part]), column, whose, numbers[part], None).texts()
    return texts


def require_labels(labels: list[list[int]], data: Columns, split: str, whose: str) -> None:
    """Raise StageError for a label that no row to train on has: nothing could be learned of it."""
    if split != "train":
        return
    if data.task == "multi_label":
        there = {place for row in labels for place, one in enumerate(row) if one}
    else:
        there = {number for (number,) in labels}
    absent = [name for place, name in enumerate(data.labels) if place not in there]
    if absent:
        raise StageError(
            f"data.labels: no row of {whose} that is trained on has the label {absent[0]!r}; leave "
            "it out, or allow more rows (data.rows.train)"
        )


def _class_names(feature: Any) -> list[str] | None:
    """The names that a column's numbers stand for, where the table says so."""
    feature = getattr(feature, "feature", feature)  # of a list, what is in it
    names = getattr(feature, "names", None)
    return list(names) if names else None


@dataclass(frozen=True)
class _Cells:
    """A column's values, and what messages call them."""

    values: list[Any]
    column: str
    whose: str
    rows: Sequence[int]
    names: list[str] | None

    def _wrong(self, place: int, what: str) -> StageError:
        where = f"{self.whose}, row {self.rows[place]}, column {self.column!r}"
        return StageError(f"data: {where}: {what}")

    def texts(self) -> list[str]:
        for place, value in enumerate(self.values):
            if not isinstance(value, str):
                what = "nothing" if value is None else f"{type(value).__name__} {value!r:.40}"
                raise self._wrong(place, f"{what}, not text")
        return self.values

    def truths(self) -> list[int]:
        found = []
        for place, value in enumerate(self.values):
            if not isinstance(value, int | float | str) or value not in _TRUTH:
                what = "nothing" if value is None else f"{value!r:.40}"
                raise self._wrong(place, f"{what}, not 0 or 1")
            found.append(_TRUTH[value])
        return found

    def classes(self, names: Sequence[str]) -> list[int]:
        """The one label of each row."""
        read = self._reader(names)
        return [read(place, value) for place, value in enumerate(self.values)]

    def lists(self, names: Sequence[str]) -> list[list[int]]:
        """0 or 1 for each label, of rows that each have a list of theirs."""
        read, found = self._reader(names), []
        for place, row in enumerate(self.values):
            if not isinstance(row, list):
                raise self._wrong(place, f"{row!r:.40}, not a list of labels")
            there = {read(place, value) for value in row}
            found.append([int(number in there) for number in range(len(names))])
        return found

    def _reader(self, names: Sequence[str]) -> Callable[[int, Any], int]:
        """What gives a value's place in `names`: by name, or by number where no name is one."""
        known: dict[Any, int] = {name: place for place, name in enumerate(names)}
        own = list(names) if self.names is None else self.names
        if not any(name.lstrip("-").isdigit() for name in names):
            known |= {number: known[name] for number, name in enumerate(own) if name in known}

        def read(place: int, value: Any) -> int:
            if isinstance(value, float) and value.is_integer():  # a column with blanks is of floats
                value = int(value)
            key = value if value in known or isinstance(value, bool) else str(value)
            if value is None or isinstance(value, bool) or key not in known:
                what = "nothing" if value is None else f"{value!r:.40}"
                strange = self.names is not None and isinstance(value, int)
                if strange and 0 <= value < len(own):
                    what = f"{own[value]!r}"
                raise self._wrong(place, f"{what} is no label; {nearest(str(value), names)}")
            return known[key]

        return read
