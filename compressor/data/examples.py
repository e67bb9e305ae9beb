"""Tokenize rows into examples for training and evaluation, and keep generated ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compressor.core.errors import StageError
from compressor.data.batching import IGNORED, Layout, collate_rows, cut_windows
from compressor.data.chats import write_answer, write_prompt
from compressor.data.rows import Rows, Task
from compressor.data.source_base import DataBase, Truncate
from compressor.data.spill import IdRows
from compressor.data.truncation import encode_texts, encode_words

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from compressor.data.fast_tokenizer import Tokens


PSEUDO_LABELS = "targets.jsonl"
"""The file of a `pseudo_label` stage: one JSON object a row, the fields of `GeneratedSummary`."""

ROWS_AT_ONCE = 1000
"""Rows tokenized at once: enough for the tokenizer's threads, little enough to bound memory."""


class SourceSettings(Protocol):
    """The settings by which a source is tokenized: a recipe's data, or an exported model's."""

    @property
    def task(self) -> Task: ...
    @property
    def messages(self) -> str | None: ...
    @property
    def prefix(self) -> str: ...
    @property
    def max_source_length(self) -> int: ...
    @property
    def truncate(self) -> Truncate: ...


@dataclass(frozen=True)
class Examples:
    """Tokenized rows: the ids of each source, prefix included, and the target to learn.

    A target is token ids that end with eos; for a classifier it is one class id, or 0 or 1 for each
    of several labels; where words have tags, those of the words that have a token.
    """

    sources: Sequence[list[int]]
    targets: Sequence[list[int]]
    layout: Layout = "pairs"
    """How rows are collated: "pairs" for an encoder-decoder, "joined" for a decoder, "class" for a
    classifier with one class a row, "labels" for one with several labels, or with tags."""
    target_places: Sequence[list[int]] = ()
    """Of words with tags: where among a source's tokens each target is."""

    def __len__(self) -> int:
        return len(self.sources)

    def lengths(self) -> list[int]:
        """Count the tokens of each row's input: a decoder's is source and target joined."""
        if self.layout == "joined":
            return [len(s) + len(t) for s, t in zip(self.sources, self.targets, strict=True)]
        if isinstance(self.sources, IdRows):
            return self.sources.lengths()
        return [len(source) for source in self.sources]

    def batch(self, rows: list[int], pad_id: int) -> dict[str, Tensor]:
        """Collate the rows with these indices, as `collate_rows` does."""
        chosen = [(self.sources[row], self._place_targets(row)) for row in rows]
        return collate_rows(chosen, pad_id=pad_id, layout=self.layout)

    def _place_targets(self, row: int) -> list[int]:
        """Give a row's targets as they are collated: those of words, one for each token."""
        if not self.target_places:
            return self.targets[row]
        labels = [IGNORED] * len(self.sources[row])
        for place, label in zip(self.target_places[row], self.targets[row], strict=True):
            labels[place] = label
        return labels


def tokenize_rows(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase, *, joined: bool = False
) -> Examples:
    """Tokenize texts and targets, to at most `max_source_length` and `max_target_length` ids.

    The limits include the eos. Longer ones are cut as `data.truncate` says: see `encode_texts`.

    `joined`: for a decoder-only model, which goes on from a source (see `tokenize_sources`) with
    the target. That ends with exactly one eos, whatever the tokenizer does by itself, and only the
    source begins with bos, if the tokenizer adds one. Raises StageError for a tokenizer without
    eos.
    """
    eos = _require_eos(tokenizer) if joined else None
    sources = tokenize_sources(rows.texts, tokenizer, data, continues=joined)
    targets = IdRows()
    limit, truncate = data.max_target_length, data.truncate
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = list(rows.summaries[start : start + ROWS_AT_ONCE])
        if data.messages is not None:
            pairs = zip(rows.texts[start : start + ROWS_AT_ONCE], chunk, strict=True)
            chunk = [write_answer(text, answer, tokenizer) for text, answer in pairs]
        ids = encode_texts(chunk, tokenizer, limit, truncate=truncate, target=True, eos=eos)
        targets.extend(ids)
    return Examples(sources, targets, "joined" if joined else "pairs")


def tokenize_texts(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Tokenize texts of which a decoder learns all; each ends with the tokenizer's eos, if any.

    A text of more than `max_source_length` ids is several examples. Each begins with the last token
    of the one before, as its source, so that every token but a text's first is learned once.
    """
    size, sources, targets = max(2, data.max_source_length), IdRows(), IdRows()
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = [data.prefix + text for text in rows.texts[start : start + ROWS_AT_ONCE]]
        for text_ids in tokenizer(chunk, verbose=False).input_ids:
            ids = text_ids if text_ids[-1:] == end else [*text_ids, *end]
            for source, target in cut_windows(ids, size=size, stride=size - 1):
                sources.extend([source])
                targets.extend([target])
    return Examples(sources, targets, "joined")


def tokenize_sources(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase | Tokens,
    data: SourceSettings,
    *,
    continues: bool = False,
) -> IdRows:
    """Tokenize prefix and text, to at most `max_source_length` ids.

    `continues`: for a decoder, which goes on from them. Before another text (text2text) they end
    with exactly one eos, which marks where it begins, whatever the tokenizer does by itself; where
    the text itself goes on (language_modeling), with none. Raises StageError for a tokenizer
    without eos. Of `messages` they are what the template has before an answer; not cut.
    """
    if data.messages is not None:
        return _tokenize_chats(texts, tokenizer, data.max_source_length)
    sources, begin = IdRows(), len(data.prefix)
    goes_on = continues and data.task == "language_modeling"
    eos = _require_eos(tokenizer) if continues and not goes_on else None
    limit, truncate = data.max_source_length, data.truncate
    for start in range(0, len(texts), ROWS_AT_ONCE):
        chunk = [data.prefix + text for text in texts[start : start + ROWS_AT_ONCE]]
        ids = encode_texts(chunk, tokenizer, limit, truncate=truncate, begin=begin, eos=eos)
        sources.extend([_open_end(row, tokenizer) for row in ids] if goes_on else ids)
    return sources


def _tokenize_chats(texts: Sequence[str], tokenizer: Any, limit: int) -> IdRows:
    """Tokenize what assistants answer. Raises StageError for a chat of more than `limit` ids."""
    rows = IdRows()
    for number, text in enumerate(texts):
        ids = tokenizer(write_prompt(text, tokenizer), add_special_tokens=False).input_ids
        if len(ids) > limit:
            length = f"{len(ids):,} tokens before the answer, more than data.max_source_length"
            raise StageError(f"the chat of row {number} has {length}, {limit:,}; chats are not cut")
        rows.extend([ids])
    return rows


def _require_eos(tokenizer: PreTrainedTokenizerBase | Tokens) -> int:
    eos: int | None = tokenizer.eos_token_id
    if eos is None:
        raise StageError("the tokenizer has no eos token, with which a target must end")
    return eos


def _open_end(prompt: list[int], tokenizer: PreTrainedTokenizerBase | Tokens) -> list[int]:
    """Take the eos from the end of a prompt; one without any other token is an eos."""
    is_ended = len(prompt) > 1 and prompt[-1] == tokenizer.eos_token_id
    return prompt[:-1] if is_ended else prompt or [_require_eos(tokenizer)]


def tokenize_labelled(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Tokenize a classifier's rows, to at most `max_source_length` ids; targets are labels."""
    sources = tokenize_sources(rows.texts, tokenizer, data)
    return Examples(sources, rows.labels, "class" if data.task == "single_label" else "labels")


def tokenize_words(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase | Tokens, data: SourceSettings
) -> tuple[IdRows, list[list[int]]]:
    """Tokenize texts of words; also give the place of each word's first token: `encode_words`."""
    sources, begin, places = IdRows(), len(data.prefix), list[list[int]]()
    for start in range(0, len(texts), ROWS_AT_ONCE):
        chunk = [data.prefix + text for text in texts[start : start + ROWS_AT_ONCE]]
        ids, words = encode_words(chunk, tokenizer, data.max_source_length, begin=begin)
        sources.extend(ids)
        places += words
    return sources, places


def tokenize_tagged(rows: Rows, tokenizer: PreTrainedTokenizerBase, data: DataBase) -> Examples:
    """Tokenize rows of words, to at most `max_source_length` ids.

    The target of a word's first token is its tag; other tokens have none.
    """
    sources, words = tokenize_words(rows.texts, tokenizer, data)
    places, targets = IdRows(), IdRows()
    for row, tags in zip(words, rows.labels or [[] for _ in words], strict=True):
        both = [(place, tag) for place, tag in zip(row, tags, strict=True) if place >= 0]
        places.extend([[place for place, _ in both]])
        targets.extend([[tag for _, tag in both]])
    return Examples(sources, targets, "labels", places)


@dataclass(frozen=True)
class GeneratedSummary:
    """The text that a model generated for one row, to be learned as a pseudo-label."""

    summary: str
    tokens: int
    """Tokens generated, counted as `gen_len` of transformers' `run_summarization.py` is."""
    cut_off: bool
    """Whether it reached the length limit without an eos."""

    @property
    def empty(self) -> bool:
        return not self.summary.strip()


def write_pseudo_labels(path: Path, labels: Sequence[GeneratedSummary]) -> None:
    """Write one JSON object a line, in the order of the rows, as UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for label in labels:
            stream.write(json.dumps(asdict(label), ensure_ascii=False) + "\n")


def read_pseudo_labels(path: Path) -> list[GeneratedSummary]:
    """Read what `write_pseudo_labels` wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [GeneratedSummary(**json.loads(line)) for line in stream]


def replace_summaries(rows: Rows, labels: Sequence[GeneratedSummary]) -> Rows:
    """Replace the targets of rows by `labels`, but for empty ones.

    Raises StageError if there are not as many labels as rows.
    """
    if len(labels) != len(rows):
        raise StageError(
            f"targets: {len(labels)} pseudo-labels for {len(rows)} training rows; both stages must "
            "read the same rows"
        )
    pairs = zip(labels, rows.summaries, strict=True)
    return Rows(rows.texts, [old if label.empty else label.summary for label, old in pairs])
