"""Where the sentences of an English text begin and end. No tokens, models or network here."""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterable, Iterator
from typing import Any

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
def _punkt() -> Any:
    # nltk's published Punkt model would be a download; the algorithm itself comes in the wheel.
    from nltk.tokenize.punkt import (  # type: ignore[import-untyped]  # nltk has no types
        PunktParameters,
        PunktSentenceTokenizer,
    )

    parameters = PunktParameters()
    parameters.abbrev_types = {*_ABBREVIATIONS.split(), *string.ascii_lowercase}
    parameters.sent_starters = set(_STARTERS.split())
    return PunktSentenceTokenizer(parameters)


def spans(text: str) -> list[tuple[int, int]]:
    """Begin and end of each sentence of English `text`, in order, without white space around it.

    The end of a line ends a sentence (join hard-wrapped lines first), otherwise only white space
    does; that apart, every character is in one. Rules, not a model: the Punkt algorithm (Kiss &
    Strunk 2006) with a short fixed list of abbreviations, so nothing is fetched and the result is
    the same everywhere. It takes the end of a question inside a quotation for a sentence's end. A
    sentence of more than `LONGEST` characters is several: text without any end takes time, and
    memory, in proportion to its length.
    """
    found: list[tuple[int, int]] = []
    line_start = 0
    for whole in text.splitlines(keepends=True):
        offset = line_start + len(whole) - len(whole.lstrip())
        line_start += len(whole)
        found += [(offset + start, offset + stop) for start, stop in _in_line(whole.strip())]
    return found


def _in_line(line: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each sentence of one line, read in parts that begin where a sentence does.

    The words around an end decide it, so they are those of the whole line, to which nltk gives five
    seconds of computing and then an error: some megabytes, or less of "A. A. A. A.".
    """
    begin = 0
    while begin < len(line):
        limit = min(begin + LONGEST, len(line))
        seen = _LOOK_AHEAD.match(line, limit, begin + 2 * LONGEST)
        assert seen is not None, "each part of the pattern may be empty"
        part = line[begin : seen.end()]
        found = _joined(_punkt().span_tokenize(part))
        if len(part) > LONGEST:
            found = [span for span in found if span[1] <= LONGEST] or [(0, _cut(part))]
        yield from ((begin + start, begin + stop) for start, stop in found)
        begin += found[-1][1]
        while begin < len(line) and line[begin].isspace():
            begin += 1


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those with a space between them: Punkt parts the last "!" of "Yes!!" from the rest."""
    found: list[tuple[int, int]] = []
    for start, stop in spans:
        if found and start == found[-1][1]:
            found[-1] = found[-1][0], stop
        else:
            found.append((start, stop))
    return found


def _cut(text: str) -> int:
    """Where the last whole word of the first `LONGEST` characters ends, or they do, in one word."""
    words = text[:LONGEST].rsplit(maxsplit=1)
    return len(words[0]) if len(words) > 1 else LONGEST


@functools.cache
def _ends_without_space() -> Any:
    """Find the full stops of other scripts, which need no space after them: "\u3002", "\u0964"."""
    import regex  # type: ignore[import-untyped]  # no types

    stops = r"[\p{Sentence_Terminal}--[\x00-\x7f\u2000-\u206f]]"
    return regex.compile(rf"{stops}+[\p{{Pe}}\p{{Pf}}\"']*", regex.V1)


def sentences(text: str) -> list[str]:
    """The sentences of `text` (see `spans`), in order, none of them empty.

    Those of other scripts end with their own full stops, too.
    """
    if not text.isascii():
        text = _ends_without_space().sub(r"\g<0>\n", text)
    return [text[start:stop] for start, stop in spans(text)]


def ends(text: str, limit: int) -> list[int]:
    """Where those sentences end that do so within the first `limit` characters, ascending.

    The same as if all of `text` had been read, of which only a word or two more are.
    """
    seen = _LOOK_AHEAD.match(text, limit)
    assert seen is not None, "each part of the pattern may be empty"
    return [end for _, end in spans(text[: seen.end()]) if end <= limit]
