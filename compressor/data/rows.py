"""Rows of text with what is learned of them, and how they come out of a table."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from compressor.core.errors import StageError, nearest
from compressor.data.chats import read_chat
from compressor.data.spill import release_pages

if TYPE_CHECKING:
    from compressor.data.source_base import DataBase, SplitSource

Task = Literal[
    "text2text",
    "summarization",
    "language_modeling",
    "multi_label",
    "single_label",
    "token_classification",
]
LABEL_TASKS: Mapping[Task, int] = {"multi_label": 1, "single_label": 2, "token_classification": 2}
"""The tasks of a text's labels, or of its words' tags → the fewest there can be: one to choose from
is no choice."""
LISTED = 10_000
"""Up to so many rows are kept as lists; of more, texts are read from a file when asked for."""
RESIDENT = 2**27
"""Characters that are read before the file's pages are let go."""
_PIECE = 1_000
"""Texts that are read or written at a time."""
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(\.0*)?")
"""A whole number as programs write it: `01` and `1e0` are names, and `1.5` is none."""
_MISSING: Any = object()


@dataclass(frozen=True)
class Rows:
    """The rows of one split, in their order: source texts, without prefix, and what they teach."""

    texts: Sequence[str]
    """token_classification: a row's words, with one space between two of them."""
    summaries: Sequence[str] = field(default_factory=list)
    """The text to be written for each text, where the task has one; of several, the first."""
    labels: list[list[int]] = field(default_factory=list)
    """multi_label: 0 or 1 for each label; single_label: the one label's number alone;
    token_classification: the number of each word's tag."""
    several: Sequence[Sequence[str]] = field(default_factory=list)
    """All references of each text, where a row has more than one."""
    note: str = field(default="", compare=False)
    """What a person should know of these rows."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def references(self) -> Sequence[str] | Sequence[Sequence[str]]:
        """The texts that what is written of each row is scored by."""
        return self.several or self.summaries

    def first(self, count: int) -> Rows:
        """Take at most `count` rows from the beginning."""
        some = slice(count)
        return Rows(self.texts[some], self.summaries[some], self.labels[some], self.several[some])

    def take(self, places: Sequence[int]) -> Rows:
        """Take the rows at `places`, in that order."""

        def pick(values: Any) -> Any:
            if isinstance(values, Column):
                return values.take(places)
            return [values[place] for place in places] if values else []

        return Rows(*map(pick, (self.texts, self.summaries, self.labels, self.several)))


class Row(NamedTuple):
    """One row as it is used."""

    text: str
    references: list[str]
    """At least one, where the task has a text to be written."""
    labels: list[int]
    empty: str
    """The column that has no text, if one has none."""


def find_value(row: Mapping[str, Any], column: str) -> Any:
    """Read a row's value in a column, or None; `a.b` is the field `b` of `a`, or of its items."""
    value = _look_up(row, column)
    return None if value is _MISSING else value


def has_column(row: Mapping[str, Any], column: str) -> bool:
    """Tell whether a row has a value, if only null, in a column."""
    return _look_up(row, column) is not _MISSING


def _look_up(value: Any, column: str) -> Any:
    if isinstance(value, Mapping):
        if column in value:
            return value[column]
        head, dot, rest = column.partition(".")
        return _look_up(value[head], rest) if dot and head in value else _MISSING
    if isinstance(value, list):
        fields = [_look_up(item, column) for item in value]
        return _MISSING if fields and all(item is _MISSING for item in fields) else fields
    return None if value is None else _MISSING


class RowReader:
    """Turns rows of a table into rows that are used. Raises StageError at a cell that is wrong."""

    def __init__(
        self, data: SplitSource, origin: str, class_names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        """`class_names`: column → what its numbers stand for, where the table says so."""
        self._data, self._origin, self._names = data, origin, class_names or {}

    def read(self, number: int, row: Mapping[str, Any]) -> Row:
        """Read the row of this number, from 0."""
        if self._data.task == "token_classification":
            return self._read_words(number, row)
        if self._data.messages is not None:
            return self._read_chat(number, self._data.messages, row)
        text = self._read_text(number, self._data.text, find_value(row, self._data.text))
        blank = self._data.text if is_blank(text) else ""
        if self._data.task in LABEL_TASKS:
            return Row(text, [], self._read_labels(number, row), blank)
        column = self._data.target
        if column is None:
            return Row(text, [], [], blank)
        references = self._read_references(number, column, find_value(row, column))
        return Row(text, references, [], blank or (column if is_blank(references[0]) else ""))

    def _read_chat(self, number: int, column: str, row: Mapping[str, Any]) -> Row:
        try:
            text, answer = read_chat(find_value(row, column))
        except ValueError as error:
            raise self._explain_cell(number, column, str(error)) from error
        answer = self._read_text(number, column, answer)
        return Row(text, [answer], [], column if is_blank(answer) else "")

    def _explain_cell(self, number: int, column: str, what: str) -> StageError:
        return StageError(f"data: {self._origin}, row {number}, column {column!r}: {what}")

    def _read_text(self, number: int, column: str, value: Any) -> str:
        """Read a text, or a list of sentences as one."""
        if isinstance(value, list):
            return " ".join(self._read_text(number, column, sentence) for sentence in value)
        if value is None:
            return ""
        if not isinstance(value, str):
            what = f"{type(value).__name__} {value!r:.40}, not text"
            raise self._explain_cell(number, column, f"{what}; write it in quotes if it is one")
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise self._explain_cell(number, column, "half of a surrogate pair, which no text has")
        return value

    def _read_words(self, number: int, row: Mapping[str, Any]) -> Row:
        """Read words and as many tags: lists, or texts that are split at white space."""
        data = self._data
        words, tags = (find_value(row, column) for column in data.columns().values())
        words = words if isinstance(words, list) else self._read_text(number, data.text, words)
        words = words.split() if isinstance(words, str) else words
        words = [self._read_text(number, data.text, word) for word in words]
        for place, word in enumerate(words):
            if is_blank(word) or " " in word:
                what = f"word {place} is empty" if is_blank(word) else f"a space in {word!r:.40}"
                cure = "leave it and its tag out" if is_blank(word) else "it is several words"
                raise self._explain_cell(number, data.text, f"{what}; {cure}")
        column = data.columns()["label"]
        tags = tags.split() if isinstance(tags, str) else tags or []
        if not isinstance(tags, list) or len(tags) != len(words):
            count = len(tags) if isinstance(tags, list) else f"{tags!r:.40}"
            what = f"number of tags: {count}, of words in {data.text!r}: {len(words)}"
            raise self._explain_cell(number, column, f"{what}; each word has one tag")
        labels = [self._find_label(number, column, tag) for tag in tags]
        return Row(" ".join(words), [], labels, "" if words else data.text)

    def _read_references(self, number: int, column: str, value: Any) -> list[str]:
        if not isinstance(value, list):
            return [self._read_text(number, column, value)]
        texts = [self._read_text(number, column, item) for item in value]
        return [text for text in texts if not is_blank(text)] or [""]

    def _read_labels(self, number: int, row: Mapping[str, Any]) -> list[int]:
        data = self._data
        if data.task == "multi_label" and data.label is None:
            return [self._read_truth(number, name, find_value(row, name)) for name in data.labels]
        column = data.columns()["label"]
        value = find_value(row, column)
        if data.task == "single_label":
            return [self._find_label(number, column, value)]
        if data.label_separator is not None and not isinstance(value, list):
            parts = str("" if value is None else value).split(data.label_separator)
            value = [part for part in parts if not is_blank(part)]
        if not isinstance(value, list):
            hint = "; data.label_separator=',' splits a text" if isinstance(value, str) else ""
            raise self._explain_cell(number, column, f"{value!r:.40}, not a list of labels{hint}")
        places = {self._find_label(number, column, item) for item in value}
        return [int(place in places) for place in range(len(data.labels))]

    def _read_truth(self, number: int, column: str, value: Any) -> int:
        text = str(value).strip().lower()
        if text in ("true", "false"):
            return int(text == "true")
        truth = _NUMBER.fullmatch(text) if isinstance(value, int | float | str) else None
        if truth is not None and truth[1] in ("0", "1"):
            return int(truth[1])
        what = "nothing" if value is None or not text else f"{value!r:.40}"
        raise self._explain_cell(number, column, f"{what}, not 0 or 1")

    def _find_label(self, number: int, column: str, value: Any) -> int:
        """Find a label's place: by its name as written, or by its number where no name is one."""
        names, classes = self._data.labels, self._names.get(column)
        text = "" if value is None else str(value)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if is_number and classes is not None and 0 <= value < len(classes):
            text = classes[value]
        for name in (text, text.strip(), text.lower() if isinstance(value, bool) else text):
            if name in names:
                return names.index(name)
        whole = _NUMBER.fullmatch(text.strip())
        if whole is not None:  # 1.0, of a column with blanks
            if (name := whole[1]) in names:
                return names.index(name)
            is_place = classes is None and not any(map(_is_numeric, names))
            if is_place and int(name) in range(len(names)):
                return int(name)
        shown = value if text == str(value) else text
        reason = f"{shown!r:.40} is no label" if text.strip() else "the cell is empty"
        raise self._explain_cell(number, column, f"{reason}; {nearest(text, names)}")


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_blank(text: str) -> bool:
    """Tell whether a text has nothing but white space."""
    return not text or text.isspace()


@dataclass(frozen=True)
class CollectedRows:
    """All rows of a table."""

    rows: Rows
    empty: Mapping[int, str]
    """Number of a row without a source or a target → the column that has none."""


def collect_rows(rows: Iterable[Row], path: Callable[[], Path] | None = None) -> CollectedRows:
    """Keep rows in lists or, where they are many, in a file, whose name says what is in it."""
    from filelock import FileLock

    rows = iter(rows)
    few = list(islice(rows, LISTED + 1))
    if len(few) > LISTED and path is not None:
        place = path()
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):  # of several processes one makes it
            if not place.is_file():
                _write_arrow(chain(few, rows), place)
        return open_collected(place)
    few.extend(rows)
    references = [row.references for row in few]
    collected = Rows(
        [row.text for row in few],
        [texts[0] for texts in references if texts],
        [row.labels for row in few] if any(row.labels for row in few) else [],
        references if any(len(texts) > 1 for texts in references) else [],
    )
    return CollectedRows(
        collected, {number: row.empty for number, row in enumerate(few) if row.empty}
    )


def _write_arrow(rows: Iterator[Row], path: Path) -> None:
    """Write rows to a file of Arrow, whole or not at all."""
    import pyarrow as pa

    text, numbers = pa.large_string(), pa.list_(pa.int32())
    types = (text, pa.list_(text), numbers, pa.string())
    schema = pa.schema(zip(Row._fields, types, strict=True))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream, pa.ipc.new_stream(stream, schema) as writer:
            while piece := list(islice(rows, _PIECE)):
                columns = map(pa.array, zip(*piece, strict=True), types)
                writer.write_batch(pa.record_batch(list(columns), schema=schema))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_collected(path: Path) -> CollectedRows:
    """Open the rows that `collect_rows` has left in a file."""
    import numpy as np
    import pyarrow.compute as pc
    from datasets import Dataset

    table = Dataset.from_file(str(path))
    columns = table.data
    empty = columns.column("empty")
    blank = np.flatnonzero(pc.not_equal(empty, "").to_numpy())
    most, labels = (
        pc.max(pc.list_value_length(columns.column(name))).as_py()
        for name in ("references", "labels")
    )
    rows = Rows(
        Column(table, "text"),
        Column(table, "references", first=True) if most else [],
        list(table["labels"]) if labels else [],
        Column(table, "references") if most > 1 else [],
    )
    return CollectedRows(rows, {int(row): empty[int(row)].as_py() for row in blank})


class Column(Sequence[Any]):
    """The values of a column, read from the file when they are asked for: 5 GB stay on the disk.

    In order, or many at once by a slice, that is as quick as a list; one alone takes some 0.1 ms.
    """

    def __init__(self, table: Any, name: str, *, first: bool = False) -> None:
        """`table`: a `datasets.Dataset`. `first`: of lists, their first values."""
        self._table, self._name, self._first = table.select_columns([name]), name, first
        self._rows = range(len(table))
        self._read = 0

    def take(self, places: Sequence[int]) -> Column:
        """Take the values at `places`, in that order."""
        return Column(self._table.select(places), self._name, first=self._first)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> list[Any]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, int):
            place = self._rows[place]
            return self[place : place + 1][0]
        values = self._table[list(self._rows[place])][self._name]
        if self._first:
            values = [value[0] for value in values]
        self._read += sum(len(value) for value in values if isinstance(value, str))
        if self._read > RESIDENT:
            self._read = 0
            release_pages([self._table.data.column(self._name)])
        return values

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), _PIECE):
            yield from self[start : start + _PIECE]


def require_labels(labels: list[list[int]], data: DataBase, split: str, origin: str) -> None:
    """Raise StageError for a label that no row to train on has: nothing could be learned of it."""
    if split != "train" or data.task not in ("multi_label", "single_label"):
        return  # a rare tag can be one that only other rows have
    if data.task == "multi_label":
        learned = {place for row in labels for place, one in enumerate(row) if one}
    else:
        learned = {number for (number,) in labels}
    absent = [name for place, name in enumerate(data.labels) if place not in learned]
    if absent:
        raise StageError(
            f"data.labels: no row of {origin} that is trained on has the label {absent[0]!r}; "
            "leave it out, or allow more rows (data.rows.train)"
        )
