"""Sentences of bills and news: where they end, and that nothing is lost."""

from __future__ import annotations

import random
import time

import pytest

from compressor.data.truncation import ends, sentences, spans


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
    assert sentences(text) == expected


def test_sentences_lose_no_character() -> None:
    """White space apart, the sentences put together are the text."""
    text = "a.b (c. d) 'e.' F?!g.\x85 h \u2028i . . . j.\u00a0K. \u201cL.\u201d M" * 3
    found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(found)
    assert found == [sentence.strip() for sentence in found]


@pytest.mark.parametrize("text", [". " * 20_000, "a." * 20_000, "?" * 40_000, " " * 99_999 + "a"])
def test_sentences_take_linear_time(text: str) -> None:
    """No text of 100,000 characters keeps a run waiting (a regex can take hours over one)."""
    start = time.perf_counter()
    sentences(text)
    assert time.perf_counter() - start < 10


def test_the_ends_within_a_limit_need_only_what_is_around_it() -> None:
    """At every limit the ends that the whole text has there, though little more is read."""
    chance = random.Random(0)
    parts = ["a", "B", "U.S.", "e.g.", "No. ", "The ", "1.", ". ", ".", "! ", "?", "...", "--"]
    parts += [' "', '"', '" ', ".) ", "(", " ", "  ", "\n", "\r\n", "\u00a0"]
    for _ in range(1000):
        text = "".join(chance.choices(parts, k=chance.randrange(1, 20)))
        whole = [end for _, end in spans(text)]
        for limit in range(len(text) + 1):
            assert ends(text, limit) == [end for end in whole if end <= limit], (text, limit)


def test_a_limit_far_before_the_end_is_quick() -> None:
    """Of a text of 10 MB, the part up to the limit is split, and no more."""
    text = "A sentence of words. " * 500_000
    start = time.perf_counter()
    assert ends(text, 100) == [20, 41, 62, 83]
    assert time.perf_counter() - start < 1
