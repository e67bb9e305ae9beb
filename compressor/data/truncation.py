"""Token ids of texts, cut to a limit: by tokens, or where a sentence ends. No rows or batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.data.sentences import ends
from compressor.data.sources import Truncate
from compressor.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.backends.tokens import Tokens


LONG = 200_000
"""Characters. Of a longer text only the beginning is tokenized, where that has enough tokens: a
row of 10 MB takes 3 GB as the tokens of all of it."""


def encode(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase | Tokens,
    limit: int,
    *,
    truncate: Truncate = "tokens",
    begin: int = 0,
    target: bool = False,
    eos: int | None = None,
) -> list[list[int]]:
    """Token ids of each text, at most `limit` with what the tokenizer puts around them.

    truncate: "sentences" reads of a text that is too long as much as ends with its last sentence
        that fits; "tokens", and where the first sentence is too long, the first tokens.
    begin: characters before the first sentence, a prefix.
    target: the texts are to be written, not read; a few tokenizers make a difference.
    eos: end each text with this token once, whatever the tokenizer does, and begin only those that
        are read as it does.

    Raises StageError where a tokenizer cannot tell which characters a token stands for.
    """
    special = eos is None or not target

    def read(part: list[str], room: int) -> Any:
        given = {"text_target": part} if target else {"text": part}
        return tokenizer(**given, truncation=True, max_length=room, add_special_tokens=special)

    texts = [_beginning(text, tokenizer, read, limit) for text in texts]
    if truncate == "tokens":
        ids: list[list[int]] = read(texts, limit).input_ids
    else:
        _require_places(tokenizer)
        by_itself = eos is None or read([""], limit).input_ids[0][-1:] == [eos]
        room = limit if by_itself else max(1, limit - 1)
        ids = _cut_at_sentences(texts, lambda part: read(part, room), room, begin)
    return ids if eos is None else [_ended(row, limit, eos) for row in ids]


def _beginning(
    text: str, tokenizer: PreTrainedTokenizerBase | Tokens, read: Any, limit: int
) -> str:
    """As much of a text as has its first `limit` tokens, and much more behind them."""
    size = LONG
    while len(text) > size and tokenizer.truncation_side == "right":
        if len(read([text[: size // 2]], limit).input_ids[0]) >= limit:
            return text[:size]
        size *= 10
    return text


def _require_places(tokenizer: PreTrainedTokenizerBase | Tokens) -> None:
    if not tokenizer.is_fast:
        reason = "does not tell which characters a token stands for, as only fast tokenizers do"
    elif tokenizer.truncation_side != "right":
        reason = "keeps the end of a text"
    else:
        return
    raise StageError(
        f"data.truncate: 'sentences' cannot be: {type(tokenizer).__name__} {reason}; set 'tokens'"
    )


def _cut_at_sentences(texts: list[str], read: Any, room: int, begin: int) -> list[list[int]]:
    """Each text is tokenized once, and what is left of a longer one, at most `room` tokens, again.

    Again, and not just cut, because a tokenizer may join what is before a cut to what is after it.
    """
    whole = read(texts)
    ids: list[list[int]] = whole.input_ids
    left: dict[int, list[int]] = {}
    for row, encoding in enumerate(whole.encodings):
        if len(encoding) == room and encoding.overflowing:
            reached = max(end for _, end in encoding.offsets) - begin
            left[row] = ends(texts[row][begin:], max(0, reached))
    while left := {row: stops for row, stops in left.items() if stops}:
        shorter = read([texts[row][: begin + stops.pop()] for row, stops in left.items()])
        for row, found, encoding in zip(
            list(left), shorter.input_ids, shorter.encodings, strict=True
        ):
            if not encoding.overflowing:  # else the sentence before it
                ids[row] = found
                del left[row]
    return ids


def _ended(ids: list[int], limit: int, eos: int) -> list[int]:
    """`ids` with one eos at the end, which is among the at most `limit` tokens."""
    text = ids[:-1] if ids and ids[-1] == eos else ids
    return [*text[: limit - 1], eos]
