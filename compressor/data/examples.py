"""Turn rows into token ids: what models train on and read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from compressor.core.errors import StageError
from compressor.data.batching import Layout, collate_rows
from compressor.data.rows import Rows
from compressor.data.source_base import DataBase, Truncate
from compressor.data.spill import IdRows
from compressor.data.truncation import encode_texts

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from compressor.data.fast_tokenizer import Tokens


class SourceSettings(Protocol):
    """The settings by which texts become ids: a recipe's data, or an exported model."""

    @property
    def prefix(self) -> str: ...
    @property
    def max_source_length(self) -> int: ...
    @property
    def truncate(self) -> Truncate: ...


ROWS_AT_ONCE = 1000
"""Rows tokenized at once: enough for the tokenizer's threads, little enough to bound memory."""


@dataclass(frozen=True)
class Examples:
    """Token ids of each row's source (with prefix) and what is learned from it.

    A target has token ids, ended with eos; for a classifier it is one class id, or 0 or 1 for each
    of several labels.
    """

    sources: Sequence[list[int]]
    targets: Sequence[list[int]]
    layout: Layout = "pairs"
    """How rows become batches: "pairs" for an encoder-decoder, "joined" for a decoder; "class" for
    a classifier of one class a row, "labels" for one of several labels."""

    def __len__(self) -> int:
        return len(self.sources)

    def lengths(self) -> list[int]:
        """Count the tokens of each row that a model reads at once."""
        if self.layout == "joined":
            return [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]
        if isinstance(self.sources, IdRows):
            return self.sources.lengths()
        return [len(source) for source in self.sources]

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """Collate some rows, as `collate_rows` does."""
        chosen = [(self.sources[row], self.targets[row]) for row in rows]
        return collate_rows(chosen, pad_id=pad_id, layout=self.layout)


def tokenize_rows(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase, *, joined: bool = False
) -> Examples:
    """Tokenize `rows`, to at most `max_source_length` and `max_target_length` with the eos.

    What is longer is cut as `data.truncate` says: see `encode_texts`.

    `joined`: for a decoder-only model, which reads a source and goes on with the target. Then
    both end with exactly one eos, whatever the tokenizer does by itself (the source's tells where
    the summary begins), and only the source begins with the bos of a tokenizer that puts one.
    Raises StageError where there is no eos.
    """
    eos = None
    if joined and (eos := tokenizer.eos_token_id) is None:
        raise StageError("the tokenizer has no eos token, with which a summary must end")
    sources, targets = tokenize_sources(rows.texts, tokenizer, data, eos=eos), IdRows()
    limit, how = data.max_target_length, data.truncate
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = list(rows.summaries[start : start + ROWS_AT_ONCE])
        targets.extend(encode_texts(part, tokenizer, limit, truncate=how, target=True, eos=eos))
    return Examples(sources, targets, "joined" if joined else "pairs")


def tokenize_sources(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | Tokens,
    data: SourceSettings,
    *,
    eos: int | None = None,
) -> IdRows:
    """Tokenize each text with the prefix, to at most `max_source_length`; ended with `eos`."""
    ids, limit, how = IdRows(), data.max_source_length, data.truncate
    for start in range(0, len(texts), ROWS_AT_ONCE):
        part = [data.prefix + text for text in texts[start : start + ROWS_AT_ONCE]]
        begin = len(data.prefix)
        ids.extend(encode_texts(part, tokenizer, limit, truncate=how, begin=begin, eos=eos))
    return ids


def tokenize_labelled(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Tokenize `rows`, to at most `max_source_length`, with the labels that they have."""
    sources = tokenize_sources(rows.texts, tokenizer, data)
    return Examples(sources, rows.labels, "class" if data.task == "single_label" else "labels")


PSEUDO_LABELS = "targets.jsonl"


@dataclass(frozen=True)
class GeneratedSummary:
    """The text that a model wrote for one row."""

    summary: str
    tokens: int
    """Tokens generated, counted as `gen_len` of transformers' `run_summarization.py` is."""
    cut_off: bool
    """True if it reached the limit without an end of sequence."""

    @property
    def empty(self) -> bool:
        return not self.summary.strip()


def write_pseudo_labels(path: Path, labels: Sequence[GeneratedSummary]) -> None:
    """Write one line of JSON for each label, as UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for label in labels:
            stream.write(json.dumps(asdict(label), ensure_ascii=False) + "\n")


def read_pseudo_labels(path: Path) -> list[GeneratedSummary]:
    """Read what `write_pseudo_labels` wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [GeneratedSummary(**json.loads(line)) for line in stream]


def replace_summaries(rows: Rows, labels: Sequence[GeneratedSummary]) -> Rows:
    """Replace summaries by `labels` that are not empty. Raises StageError for other counts."""
    if len(labels) != len(rows):
        raise StageError(
            f"targets: {len(labels)} pseudo-labels for {len(rows)} training rows; both stages must "
            "read the same rows"
        )
    both = zip(labels, rows.summaries, strict=True)
    return Rows(rows.texts, [given if label.empty else label.summary for label, given in both])
