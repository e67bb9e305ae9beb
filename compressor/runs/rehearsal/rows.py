"""A few of a recipe's own rows for its rehearsal, or generated ones where there are none here."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError, Unreachable
from compressor.data.bills import Bills, bills
from compressor.data.messages import Messages, messages
from compressor.data.rows import Rows
from compressor.data.source_base import Split, SplitRows
from compressor.data.sources import Data
from compressor.data.truncation import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS: dict[Split, int] = {"train": 9, "validation": 4, "test": 4}
"""Rows of a rehearsal; more to train on where each label is to have one."""
LOOKED_AT = 200
"""How many rows of each split are looked at, to find empty ones."""
SOURCE_TOKENS, TARGET_TOKENS = 512, 128
"""The longest rows of a rehearsal; a recipe's limits below these stay."""
MOSTLY = 0.5
"""The share of rows without a target, or a text, from which nothing can be learned."""
_WORDS_OF_A_BILL = 100
_LABELS_OF_A_ROW = 3


@dataclass(frozen=True)
class Taken:
    """The rows of a rehearsal."""

    rows: dict[Split, Rows]
    looked_at: dict[Split, Rows]
    """The recipe's own rows that are looked at; none where `rows` are generated in their place."""
    generated: str = ""
    """Why they are generated, where they are."""


def take(data: Data, splits: Collection[Split]) -> Taken:
    """A few rows of each split: the recipe's own, or generated ones where these are out of reach.

    Raises StageError where the recipe's rows are there and cannot be read.
    """
    try:
        read = _read(data, splits)
    except Unreachable as error:
        made = {split: _generated(data, split) for split in COUNTS if split in splits}
        return Taken(made, {}, generated=str(error))
    rows = {split: _few(each, split, data) for split, each in read.items()}
    return Taken(rows, {split: each.first(LOOKED_AT) for split, each in read.items()})


def _read(data: Data, splits: Collection[Split]) -> dict[Split, Rows]:
    """Rows of each split, and no file twice where validation is scored."""
    some, found = _some_of(data), dict[Split, Rows]()
    for split in COUNTS:
        if split in splits:
            again = split == "test" and data.scores_validation and "validation" in found
            found[split] = found["validation"] if again else some.load(split)
    return found


def _some_of(data: Data) -> Data:
    """Without more rows than are looked at; of labels all count, since some may be rare."""
    if data.task != "summarization":
        return data
    own = data.rows.model_dump()
    few = {split: min(LOOKED_AT, count or LOOKED_AT) for split, count in own.items()}
    return data.model_copy(update={"rows": SplitRows.model_validate(few)})


def _few(rows: Rows, split: Split, data: Data) -> Rows:
    """The first rows and, to train on, the first row with each label."""
    chosen = list(range(min(COUNTS[split], len(rows))))
    if split == "train" and rows.labels:
        seen: set[int] = set()
        for place, given in enumerate(rows.labels):
            own = _labels_of(given, data)
            if place in chosen or own - seen:
                chosen, seen = sorted({*chosen, place}), seen | own
            if len(seen) == len(data.labels):
                break
    return rows.take(chosen)


def _labels_of(given: Sequence[int], data: Data) -> set[int]:
    if data.task == "single_label":
        return {given[0]}
    return {place for place, one in enumerate(given) if one}


def _generated(data: Data, split: Split) -> Rows:
    """Rows of the same task: bills, as long as the limit allows; messages with the same labels."""
    count, labels = COUNTS[split], len(data.labels)
    if data.task == "summarization":
        length = math.ceil(min(SOURCE_TOKENS, data.max_source_length) / 4 / _WORDS_OF_A_BILL)
        made = list(bills(count * length, seed=data_seed(data), split=split))
        parts = [made[row * length : (row + 1) * length] for row in range(count)]
        texts = ["\n".join(each["text"] for each in part) for part in parts]
        return Rows(texts, [part[0]["summary"] for part in parts])
    single = data.task == "single_label"
    if split == "train":
        count = max(count, labels if single else math.ceil(labels / _LABELS_OF_A_ROW))
    texts = [text for text, _ in messages(count, seed=data_seed(data), split=split, single=single)]
    if single:
        return Rows(texts, [], [[row % labels] for row in range(count)])
    given = [{(row * _LABELS_OF_A_ROW + i) % labels for i in range(_LABELS_OF_A_ROW)}
             for row in range(count)]  # fmt: skip
    return Rows(texts, [], [[int(i in own) for i in range(labels)] for own in given])


def data_seed(data: Data) -> int:
    return int(getattr(data, "seed", 0))


def small_data(data: Data, taken: Taken, folder: Path) -> dict[str, Any]:
    """The `data` of a rehearsal's recipe, whose files are written to `folder`.

    What is generated anyway is asked for in a smaller number.
    """
    values = data.model_dump(mode="json") | {
        "max_source_length": min(SOURCE_TOKENS, data.max_source_length),
        "max_target_length": min(TARGET_TOKENS, data.max_target_length),
    }
    if isinstance(data, Bills) or (isinstance(data, Messages) and _first_have_all(data)):
        return values | {"rows": COUNTS}
    files = {}
    for split, rows in taken.rows.items():
        path = folder / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) for row in _as_written(rows, data))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files[split] = str(path)
    if data.scores_validation and "validation" in files:
        files.pop("test", None)
    shared = ("task", "text", "summary", "labels", "label", "prefix", "truncate")
    limits = ("max_source_length", "max_target_length")
    kept = {key: values[key] for key in (*shared, *limits)}
    return kept | {"empty": "keep", "source": "files", "files": files}


def _first_have_all(data: Messages) -> bool:
    """Whether the first few messages have all labels, so that they need not be written."""
    few = data.model_copy(update={"rows": SplitRows.model_validate(COUNTS)})
    try:
        few.load("train")
    except StageError:
        return False
    return True


def _as_written(rows: Rows, data: Data) -> list[dict[str, Any]]:
    """Each row as a file of the recipe's columns has it."""
    if data.task == "summarization":
        pairs = zip(rows.texts, rows.references, strict=True)
        return [{data.text: text, data.summary: summary} for text, summary in pairs]
    written = []
    for text, given in zip(rows.texts, rows.labels, strict=True):
        names = [data.labels[place] for place in sorted(_labels_of(given, data))]
        if data.task == "single_label":
            own: dict[str, Any] = {data.label or "label": names[0]}
        elif data.label is not None:
            own = {data.label: names}
        else:
            own = dict(zip(data.labels, given, strict=True))
        written.append({**own, data.text: text})
    return written


@dataclass(frozen=True)
class Empty:
    """How many rows of a split have nothing in a column, once they are read as a model reads."""

    split: Split
    column: str
    count: int
    of: int
    target: bool

    @property
    def hopeless(self) -> bool:
        return self.count > MOSTLY * self.of

    def __str__(self) -> str:
        what = "a target length of 0" if self.target else "a text length of 0"
        return (
            f"{self.count} of {self.of} rows of {self.split} that were looked at have {what}: "
            f"column {self.column!r} has no text there, or none is left after tokenization and "
            "truncation"
        )


def empty_rows(data: Data, looked_at: dict[Split, Rows], tokenizer: Any) -> list[Empty]:
    """The columns that have rows of which a model would read, or learn, nothing but special tokens.

    Lengths and truncation are the recipe's, not the rehearsal's.
    """
    found = []
    for split, rows in looked_at.items():
        counts = [(data.text, rows.texts, data.max_source_length, False)]
        if data.task == "summarization":
            counts.append((data.summary, rows.summaries, data.max_target_length, True))
        for column, texts, limit, target in counts:
            count = _without_content(texts, tokenizer, limit, data, target=target)
            if count:
                found.append(Empty(split, column, count, len(texts), target))
    return found


def _without_content(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    data: Data,
    *,
    target: bool,
) -> int:
    """How many texts are blank, or have no token left beside special ones and their prefix's."""
    prefix = "" if target else data.prefix
    special = set(tokenizer.all_special_ids)

    def read(some: list[str]) -> list[list[int]]:
        begin = len(prefix)
        return encode(some, tokenizer, limit, truncate=data.truncate, begin=begin, target=target)

    ids, (alone,) = read([prefix + text for text in texts]), read([prefix])
    nothing = [token for token in alone if token not in special]
    left = ([token for token in row if token not in special] for row in ids)
    # A tokenizer of bytes has tokens for white space, of which nothing can be learned either.
    return sum(
        row == nothing[: len(row)] or not text.strip()
        for row, text in zip(left, texts, strict=True)
    )
