"""Sample a few of a recipe's rows for its rehearsal, or generate some where these are not here."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core.errors import Unreachable
from compressor.data.bills import make_bills
from compressor.data.messages import make_messages
from compressor.data.rows import Rows
from compressor.data.source_base import Split, SplitRows
from compressor.data.sources import Data
from compressor.data.truncation import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COUNTS: dict[Split, int] = {"train": 9, "validation": 4, "test": 4}
"""Rows of a rehearsal; more to train on where each label is to have one."""
INSPECTED = 200
"""How many rows of each split are searched for empty ones."""
SOURCE_TOKENS, TARGET_TOKENS = 512, 32
"""The longest rows of a rehearsal; a recipe's limits below these stay."""
TARGET = "target"
"""The column of the texts to be written in a rehearsal's files."""
MOST = 0.5
"""The share of empty rows beyond which nothing can be learned."""
_BILLS_OF_A_TEXT = 4


@dataclass(frozen=True)
class SampledRows:
    """The rows of a rehearsal."""

    rows: dict[Split, Rows]
    inspected: dict[Split, Rows]
    """The recipe's own rows that are searched for empty ones; none where `rows` are generated."""
    reason: str = ""
    """Why the rows are generated, if they are."""


def sample_rows(data: Data, splits: Collection[Split]) -> SampledRows:
    """Take a few rows of each split, or generate some where the recipe's are out of reach.

    Raises StageError where the recipe's rows are there and cannot be read.
    """
    source: Data = data
    wanted = [split for split in COUNTS if split in splits]
    if not data.has_labels:  # of labels all rows are read, since some may be rare
        counts = data.rows.model_dump()
        few = {split: min(INSPECTED, count or INSPECTED) for split, count in counts.items()}
        source = data.model_copy(update={"rows": SplitRows.model_validate(few)})
    try:
        read = {split: source.load(split) for split in wanted}
    except Unreachable as error:
        return SampledRows({split: _generate(data, split) for split in wanted}, {}, str(error))
    rows = {split: _choose(rows, split, data) for split, rows in read.items()}
    return SampledRows(rows, {split: rows.first(INSPECTED) for split, rows in read.items()})


def _choose(rows: Rows, split: Split, data: Data) -> Rows:
    """Choose the first rows and, to train on, the first row with each label."""
    chosen = set(range(min(COUNTS[split], len(rows))))
    if split == "train" and rows.labels:
        missing = set(range(len(data.labels)))
        for index in range(len(rows)):
            new = missing & set(_label_numbers(rows.labels[index], data))
            chosen |= {index} if new else set()
            missing -= new
    return rows.take(sorted(chosen))


def _label_numbers(values: Sequence[int], data: Data) -> list[int]:
    if data.task == "single_label":
        return [values[0]]
    if data.task == "token_classification":
        return [*values]
    return [number for number, value in enumerate(values) if value]


def _generate(data: Data, split: Split) -> Rows:
    """Generate rows of the same task: long bills, or messages with the recipe's labels in turn."""
    count, labels = COUNTS[split], len(data.labels)
    if not data.has_labels:
        rows = list(make_bills(count * _BILLS_OF_A_TEXT, seed=0, split=split))
        parts = [rows[i : i + _BILLS_OF_A_TEXT] for i in range(0, len(rows), _BILLS_OF_A_TEXT)]
        texts = ["\n".join(bill["text"] for bill in part) for part in parts]
        return Rows(texts, [part[0]["summary"] for part in parts if data.target])
    single = data.task == "single_label"
    count = max(count, labels) if split == "train" else count
    texts = [text for text, _ in make_messages(count, seed=0, split=split, single=single)]
    if data.task == "token_classification":
        texts = [" ".join(text.split()) for text in texts]
        words = [range(row, row + text.count(" ") + 1) for row, text in enumerate(texts)]
        return Rows(texts, [], [[place % labels for place in places] for places in words])
    numbers = [row % labels for row in range(count)]
    if single:
        return Rows(texts, [], [[number] for number in numbers])
    return Rows(texts, [], [[int(i == number) for i in range(labels)] for number in numbers])


def write_rows(data: Data, sample: Mapping[Split, Rows], folder: Path) -> dict[str, Any]:
    """Write the rows to files in `folder`, and return the `data` group that reads them."""
    files = {}
    for split, rows in sample.items():
        if split == "test" and data.scores_validation and "validation" in sample:
            continue
        path = folder / f"{split}.jsonl"
        lines = (json.dumps(row, ensure_ascii=False) for row in _records(rows, data))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files[split] = str(path)
    values = data.model_dump(mode="json", include={"task", "labels", "prefix", "truncate"})
    return values | {
        "source": "files",
        "files": files,
        "empty": "keep",
        "label": "label" if data.labels else None,
        "summary": TARGET,
        "completion": TARGET if data.task == "language_modeling" and data.target else None,
        "max_source_length": min(SOURCE_TOKENS, data.max_source_length),
        "max_target_length": min(TARGET_TOKENS, data.max_target_length),
    }


def _records(rows: Rows, data: Data) -> Iterator[dict[str, Any]]:
    if data.target is None and not data.has_labels:
        yield from ({"text": text} for text in rows.texts)
        return
    if not data.has_labels:
        for text, target in zip(rows.texts, rows.references, strict=True):
            yield {"text": text, TARGET: target}
        return
    for text, values in zip(rows.texts, rows.labels, strict=True):
        names = [data.labels[number] for number in _label_numbers(values, data)]
        yield {"text": text, "label": names[0] if data.task == "single_label" else names}


def find_empty_rows(
    data: Data, inspected: Mapping[Split, Rows], tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[str, float]]:
    """Describe the columns with rows that are blank, or of which only special tokens are left.

    Gives their share, too. Lengths are the recipe's. Without a `tokenizer` finds blank rows alone.
    """
    for split, rows in inspected.items():
        columns = (data.text, rows.texts, "text"), (data.target, rows.summaries, "target")
        for column, texts, kind in columns:
            if not (count := _count_empty(texts, tokenizer, data, is_target=kind == "target")):
                continue
            message = (
                f"{count} of the first {len(texts)} rows of {split} have a {kind} length of 0: "
                f"column {column!r} has no text there, or none is left after tokenization and "
                "truncation"
            )
            yield message, count / len(texts)


def _count_empty(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | None,
    data: Data,
    *,
    is_target: bool,
) -> int:
    if tokenizer is None:
        return sum(not text.strip() for text in texts)
    prefix = "" if is_target else data.prefix
    limit = data.max_target_length if is_target else data.max_source_length
    special, begin = set(tokenizer.all_special_ids), len(prefix)
    prefixed = [prefix, *(prefix + text for text in texts)]
    read = encode_texts(
        prefixed, tokenizer, limit, truncate=data.truncate, begin=begin, target=is_target
    )
    nothing, *rest = ([token for token in ids if token not in special] for ids in read)
    # A tokenizer of bytes has tokens for white space, of which nothing can be learned either.
    return sum(
        ids == nothing[: len(ids)] or not text.strip()
        for ids, text in zip(rest, texts, strict=True)
    )
