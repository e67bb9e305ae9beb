"""Sentences of bills and news: where they end, and that nothing is lost."""

from __future__ import annotations

import random
import time

import pytest

from compressor.data.bills import make_bills
from compressor.data.truncation import (
    LONGEST,
    _join_spans,
    _load_punkt,
    find_sentence_ends,
    find_spans,
    split_sentences,
)
from tests.faults import trials


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t\n ", []),
        ("no stop at all", ["no stop at all"]),
        ("One line\nTwo.  Three\r\n\nFour", ["One line", "Two.", "Three", "Four"]),
        ("Amends 42 U.S.C. 1301 et seq. to pay. Done.",
         ["Amends 42 U.S.C. 1301 et seq. to pay.", "Done."]),
        ("It costs $1.5 million. Or 3.5!", ["It costs $1.5 million.", "Or 3.5!"]),
        ("Sec. 2. Definitions. (Sec. 3) Pay.", ["Sec. 2.", "Definitions.", "(Sec. 3) Pay."]),
        ("Mr. J. K. Roe met Dr. Doe on Jan. 5. Why?",
         ["Mr. J. K. Roe met Dr. Doe on Jan. 5.", "Why?"]),
        ("It ends in the U.S. The next begins.", ["It ends in the U.S.", "The next begins."]),
        ("The U.S. Congress met.", ["The U.S. Congress met."]),
        ("H.R. 12 amends P.L. 104-193, e.g. by rule. S. 3 too.",
         ["H.R. 12 amends P.L. 104-193, e.g. by rule.", "S. 3 too."]),
        ("Wait... what? Yes!! No?!", ["Wait... what?", "Yes!!", "No?!"]),
        ("See example.com/?q=1.5 now?Yes.", ["See example.com/?q=1.5 now?Yes."]),
        ('He cites the "Foo Act." It passed.', ['He cites the "Foo Act."', "It passed."]),
        ("lower case. like some models. \N{GRINNING FACE}",
         ["lower case.", "like some models.", "\N{GRINNING FACE}"]),
        ("他说：“好！”然后走了。真的？？是。", ["他说：“好！”", "然后走了。", "真的？？", "是。"]),
        ("सरकार आई। मानसून गया। U.S. law", ["सरकार आई।", "मानसून गया।", "U.S. law"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    """Abbreviations, sections, amounts, names, line ends and quotes of bills and news."""
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    "part", [". ", "?", "A. ", '")."', "a.\u00a0", "a", "F?!g.\x85 h \u2028i "]
)
def test_text_without_sentences_takes_linear_time_and_loses_no_character(part: str) -> None:
    """1 MB of "? ? ?" ended in nltk's TimeoutError (a regex can take hours over such a text)."""
    text = part * (40_000 // len(part)) + "a"
    start = time.process_time()
    places = find_spans(text)
    assert time.process_time() - start < 10
    assert all(end - begin <= LONGEST for begin, end in places)
    sentences = [text[begin:end] for begin, end in places]
    assert "".join("".join(sentences).split()) == "".join(text.split())
    assert all(sentence and sentence == sentence.strip() for sentence in sentences)


def test_sentences_of_a_long_text_are_those_of_its_parts() -> None:
    """Where a part that is read at once ends decides nothing: bills, in one line of 200 kB."""
    rows = make_bills(40, seed=0, split="train")
    texts = [" ".join(row["text"].split()) for row in rows]
    apart = [sentence for text in texts for sentence in split_sentences(text)]
    assert split_sentences("\n".join(texts)) == apart
    whole = " ".join(texts * 8)
    assert len(whole) > 8 * LONGEST
    assert find_spans(whole) == _join_spans(_load_punkt().span_tokenize(whole))


def test_the_ends_within_a_limit_need_only_what_is_around_it() -> None:
    """At every limit the ends that the whole text has there, though little more is read: of 10 MB
    the part up to the limit is split, and no more.
    """
    chance = random.Random(0)
    parts = ["a", "B", "U.S.", "e.g.", "No. ", "The ", "1.", ". ", ".", "! ", "?", "...", "--"]
    parts += [' "', '"', '" ', ".) ", "(", " ", "  ", "\n", "\r\n", "\u00a0"]
    for _ in range(trials(1000, 200)):
        text = "".join(chance.choices(parts, k=chance.randrange(1, 20)))
        whole = [end for _, end in find_spans(text)]
        for limit in range(len(text) + 1):
            expected = [end for end in whole if end <= limit]
            assert find_sentence_ends(text, limit) == expected, (text, limit)
    start = time.perf_counter()
    assert find_sentence_ends("A sentence of words. " * 500_000, 100) == [20, 41, 62, 83]
    assert time.perf_counter() - start < 1
