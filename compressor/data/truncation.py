"""Tokenize texts, cut to a limit: by tokens, or where a sentence ends. No rows or batches."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError
from compressor.data.source_base import Truncate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.data.fast_tokenizer import Tokens


LONG = 200_000
"""Characters. Of a longer text only the beginning is tokenized, where that has enough tokens: a
row of 10 MB takes 3 GB as the tokens of all of it."""


def encode_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase | Tokens,
    limit: int,
    *,
    truncate: Truncate = "tokens",
    begin: int = 0,
    target: bool = False,
    eos: int | None = None,
) -> list[list[int]]:
    """Tokenize each text to at most `limit` ids, with what the tokenizer puts around them.

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

    texts = [_take_beginning(text, tokenizer, read, limit) for text in texts]
    if truncate == "tokens":
        ids: list[list[int]] = read(texts, limit).input_ids
    else:
        _require_places(tokenizer)
        by_itself = eos is None or read([""], limit).input_ids[0][-1:] == [eos]
        room = limit if by_itself else max(1, limit - 1)
        ids = _cut_at_sentences(texts, lambda part: read(part, room), room, begin)
    return ids if eos is None else [_end_with_eos(row, limit, eos) for row in ids]


def encode_words(
    texts: list[str], tokenizer: PreTrainedTokenizerBase | Tokens, limit: int, *, begin: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokenize texts of words, with one space between two, to at most `limit` ids.

    Also find, for each word, the place of its first token among the ids; -1 for a word that is cut
    off, or that the tokenizer leaves out.

    begin: characters before the first word, a prefix.

    Raises StageError where a tokenizer cannot tell which characters a token stands for.
    """
    if not tokenizer.is_fast or tokenizer.truncation_side != "right":
        raise StageError(
            f"{type(tokenizer).__name__} does not tell which words the tokens stand for, as fast "
            "tokenizers do that keep the beginning of a text"
        )
    texts = [" ".join(text.split(" ", limit + 1)[: limit + 1]) for text in texts]
    read: Any = tokenizer(texts, truncation=True, max_length=limit)
    pairs = zip(texts, read.encodings, strict=True)
    return read.input_ids, [_place_words(text, encoding, begin) for text, encoding in pairs]


def _place_words(text: str, encoding: Any, begin: int) -> list[int]:
    """Find the place of each word's first token among those of a text."""
    numbers = list(accumulate((sign == " " for sign in text[begin:]), initial=0))
    places = [-1] * (numbers[-1] + 1 if len(text) > begin else 0)
    spans = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    for place, ((start, end), is_special) in enumerate(spans):
        # A token of some tokenizers begins with the space before its word.
        first = next((i for i in range(start, end) if text[i] != " "), -1)
        if is_special or first < begin:
            continue
        word = numbers[first - begin]
        if places[word] < 0:
            places[word] = place
    return places


def _take_beginning(
    text: str, tokenizer: PreTrainedTokenizerBase | Tokens, read: Any, limit: int
) -> str:
    """Take as much of a text as has its first `limit` tokens, and much more behind them."""
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
    """Tokenize each text, and what is left of a longer one, at most `room` tokens, again.

    Again, and not just cut, because a tokenizer may join what is before a cut to what is after it.
    """
    whole = read(texts)
    ids: list[list[int]] = whole.input_ids
    left: dict[int, list[int]] = {}
    for row, encoding in enumerate(whole.encodings):
        if len(encoding) == room and encoding.overflowing:
            reached = max(end for _, end in encoding.offsets) - begin
            left[row] = find_sentence_ends(texts[row][begin:], max(0, reached))
    while left := {row: stops for row, stops in left.items() if stops}:
        shorter = read([texts[row][: begin + stops.pop()] for row, stops in left.items()])
        for row, encoding in zip(list(left), shorter.encodings, strict=True):
            if not encoding.overflowing:  # else the sentence before it
                ids[row] = encoding.ids
                del left[row]
    return ids


def _end_with_eos(ids: list[int], limit: int, eos: int) -> list[int]:
    """End `ids` with one eos, which is among the at most `limit` tokens."""
    text = ids[:-1] if ids and ids[-1] == eos else ids
    return [*text[: limit - 1], eos]


_ABBREVIATIONS = """
    mr mrs ms dr prof rev hon gen col capt lt sgt sen rep gov pres st jr sr messrs
    jan feb mar apr jun jul aug sept sep oct nov dec
    inc ltd co corp bros dept univ assn
    sec secs subsec subsecs para paras ch chap cl pt pts tit vol vols no nos fig figs
    stat reg regs cong supp ed eds pp
    u.s u.s.c u.s.a u.k u.n e.u d.c n.y l.a c.f.r i.r.c p.l pub h.r h.j.res s.j.res h.con.res res
    e.p.a f.d.a f.b.i c.i.a ph.d m.d b.a m.a a.m p.m a.d b.c
    e.g i.e cf al seq vs v etc ca approx est viz ibid
"""
"""Lower case, without the last full stop. Bills and news; a wrong merge costs less than a wrong
cut, so a few words that also end sentences ("no", "co") are in."""

_STARTERS = """
    the an this that these those it he she they we you there here in on at for as if when while
    however but and so then after before since requires directs amends authorizes provides
    prohibits establishes allows sets declares makes
"""
"""Words that, capitalised after an abbreviation, begin a sentence: "in the U.S. The next"."""


LONGEST = 20_000
"""Characters of a sentence: some 3,500 words, ten times those of the longest in English novels."""

_WORD = r"[^ \t\n\r\v\f]*"  # Punkt's words are parted by ASCII white space

_LOOK_AHEAD = re.compile(rf"{_WORD}(?:\s+\S+)?{_WORD}\s?")
"""What decides whether a sentence ends in a word: the rest of it, and the next one."""


@functools.cache
def _load_punkt() -> Any:
    # nltk's published Punkt model would be a download; the algorithm itself comes in the wheel.
    from nltk.tokenize.punkt import (  # type: ignore[import-untyped]  # nltk has no types
        PunktParameters,
        PunktSentenceTokenizer,
    )

    parameters = PunktParameters()
    parameters.abbrev_types = {*_ABBREVIATIONS.split(), *string.ascii_lowercase}
    parameters.sent_starters = set(_STARTERS.split())
    return PunktSentenceTokenizer(parameters)


def find_spans(text: str) -> list[tuple[int, int]]:
    """Find begin and end of each sentence of English `text`, without white space around it.

    The end of a line ends a sentence, otherwise only white space does; that apart, every character
    is in one. Rules, not a model: the Punkt algorithm (Kiss & Strunk 2006) with a fixed list of
    abbreviations. A sentence of more than `LONGEST` characters is several, so that text without any
    end takes time and memory in proportion to its length.
    """
    spans: list[tuple[int, int]] = []
    line_start = 0
    for whole in text.splitlines(keepends=True):
        offset = line_start + len(whole) - len(whole.lstrip())
        line_start += len(whole)
        spans += [(offset + start, offset + stop) for start, stop in _split_line(whole.strip())]
    return spans


def _split_line(line: str) -> Iterator[tuple[int, int]]:
    """Find the sentences of one line, read in parts that begin where a sentence does.

    To a whole line nltk gives five seconds, and then an error: some megabytes, or less of "A. A.".
    """
    begin = 0
    while begin < len(line):
        limit = min(begin + LONGEST, len(line))
        part = line[begin : _look_ahead(line, limit, begin + 2 * LONGEST)]
        spans = _join_spans(_load_punkt().span_tokenize(part))
        if len(part) > LONGEST:
            spans = [span for span in spans if span[1] <= LONGEST] or [(0, _find_cut(part))]
        yield from ((begin + start, begin + stop) for start, stop in spans)
        begin += spans[-1][1]
        while begin < len(line) and line[begin].isspace():
            begin += 1


def _look_ahead(text: str, limit: int, end: int) -> int:
    """Find where what decides of a sentence's end at `limit` ends itself."""
    match = _LOOK_AHEAD.match(text, limit, end)
    assert match is not None, "each part of the pattern may be empty"
    return match.end()


def _join_spans(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans with no space between them: Punkt parts the last "!" of "Yes!!" from the rest."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        begin = joined.pop()[0] if joined and start == joined[-1][1] else start
        joined.append((begin, stop))
    return joined


def _find_cut(text: str) -> int:
    """Find where the last whole word of the first `LONGEST` characters ends, or they do."""
    words = text[:LONGEST].rsplit(maxsplit=1)
    return len(words[0]) if len(words) > 1 else LONGEST


@functools.cache
def _ends_without_space() -> Any:
    """Find the full stops of other scripts, which need no space after them: "\u3002", "\u0964"."""
    import regex  # type: ignore[import-untyped]  # no types

    stops = r"[\p{Sentence_Terminal}--[\x00-\x7f\u2000-\u206f]]"
    return regex.compile(rf"{stops}+[\p{{Pe}}\p{{Pf}}\"']*", regex.V1)


def split_sentences(text: str) -> list[str]:
    """Split `text` into sentences (see `find_spans`), none of them empty.

    Those of other scripts end with their own full stops, too.
    """
    if not text.isascii():
        text = _ends_without_space().sub(r"\g<0>\n", text)
    return [text[start:stop] for start, stop in find_spans(text)]


def find_sentence_ends(text: str, limit: int) -> list[int]:
    """List the ends of sentences within the first `limit` characters, reading little more."""
    end = _look_ahead(text, limit, len(text))
    return [stop for _, stop in find_spans(text[:end]) if stop <= limit]
