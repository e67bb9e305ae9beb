"""Rows as token ids: what models train on and read. No padding or batching here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from compressor.data.batching import Layout, collate
from compressor.data.ids import IdRows
from compressor.data.rows import Rows
from compressor.data.sources import DataBase, Truncate
from compressor.data.truncation import encode
from compressor.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from compressor.backends.tokens import Tokens


class Reading(Protocol):
    """How texts become the ids that a model reads: of a recipe's data, or of an exported model."""

    @property
    def prefix(self) -> str: ...
    @property
    def max_source_length(self) -> int: ...
    @property
    def truncate(self) -> Truncate: ...


CHUNK = 1000
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

    def row(self, index: int) -> tuple[list[int], list[int]]:
        return self.sources[index], self.targets[index]

    def lengths(self) -> list[int]:
        """How many tokens of each row a model reads at once."""
        if self.layout == "joined":
            return [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]
        if isinstance(self.sources, IdRows):
            return self.sources.lengths()
        return [len(source) for source in self.sources]

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """What `collate` makes of some rows."""
        return collate([self.row(row) for row in rows], pad_id=pad_id, layout=self.layout)


def tokenize(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    data: DataBase,
    *,
    joined: bool = False,
) -> Examples:
    """Token ids of `rows`, at most `max_source_length` and `max_target_length` with the eos.

    What is longer is cut as `data.truncate` says: see `encode`.

    `joined`: for a decoder-only model, which reads a source and goes on with the target. Then
    both end with exactly one eos, whatever the tokenizer does by itself (the source's tells where
    the summary begins), and only the source begins with the bos of a tokenizer that puts one.
    Raises StageError where there is no eos.
    """
    eos = None
    if joined and (eos := tokenizer.eos_token_id) is None:
        raise StageError("the tokenizer has no eos token, with which a summary must end")
    sources, targets = source_ids(rows.texts, tokenizer, data, eos=eos), IdRows()
    for start in range(0, len(rows), CHUNK):
        part, limit = list(rows.summaries[start : start + CHUNK]), data.max_target_length
        found = encode(part, tokenizer, limit, truncate=data.truncate, target=True, eos=eos)
        targets.extend(found)
    return Examples(sources, targets, "joined" if joined else "pairs")


def source_ids(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | Tokens,
    data: Reading,
    *,
    eos: int | None = None,
) -> IdRows:
    """Token ids of each text with the prefix, at most `max_source_length`; ended with `eos`."""
    ids = IdRows()
    limit, begin = data.max_source_length, len(data.prefix)
    for start in range(0, len(texts), CHUNK):
        part = [data.prefix + text for text in texts[start : start + CHUNK]]
        ids.extend(encode(part, tokenizer, limit, truncate=data.truncate, begin=begin, eos=eos))
    return ids


def tokenize_labelled(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Token ids of `rows`, at most `max_source_length`, and the labels that the rows have."""
    sources = source_ids(rows.texts, tokenizer, data)
    return Examples(sources, rows.labels, "class" if data.task == "single_label" else "labels")
