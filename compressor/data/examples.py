"""Rows as token ids: what models train on and read. No padding or batching here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compressor.data.sources import DataBase, Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 1000
"""Rows tokenized at once: enough for the tokenizer's threads, little enough to bound memory."""


@dataclass(frozen=True)
class Examples:
    """Token ids of each row's source (with prefix) and target, both cut and ended with eos."""

    sources: list[list[int]]
    targets: list[list[int]]

    def __len__(self) -> int:
        return len(self.sources)

    def row(self, index: int) -> tuple[list[int], list[int]]:
        return self.sources[index], self.targets[index]


def tokenize(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Token ids of `rows`, at most `max_source_length` and `max_target_length` with the eos."""
    sources, targets = [], []
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        texts = [data.prefix + text for text in rows.texts[part]]
        sources += tokenizer(texts, truncation=True, max_length=data.max_source_length).input_ids
        targets += tokenizer(
            text_target=rows.summaries[part], truncation=True, max_length=data.max_target_length
        ).input_ids
    return Examples(sources, targets)
