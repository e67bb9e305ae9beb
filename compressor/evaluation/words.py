"""The words of a text in any script. No scores or files here."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any


@functools.cache
def _compile_patterns() -> tuple[Any, Any]:
    """Compile patterns of what is dropped from a text, and of the words in the rest."""
    import regex  # type: ignore[import-untyped]  # no types

    ignored = r"[\p{Default_Ignorable_Code_Point}--\u200b]"  # U+200B parts words, as a space does
    # Scripts that are written without spaces: Chinese and Japanese, and those whose lines Unicode
    # breaks by a dictionary (Thai, Lao, Khmer, Myanmar and others). Tibetan marks its syllables.
    unspaced = (
        r"[[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{scx=Bopomofo}\p{Line_Break=SA}]"
        r"&&[\p{L}\p{N}]]"
    )
    word = (
        rf"{unspaced}\p{{M}}*|[[\p{{L}}\p{{N}}]--{unspaced}][[\p{{L}}\p{{N}}\p{{M}}]--{unspaced}]*"
    )
    return regex.compile(ignored, regex.V1), regex.compile(word, regex.V1)


def split_words(text: str) -> list[str]:
    """Split a text into words of letters, marks and digits, without case.

    In scripts that are written without spaces each character is one, with its marks. Forms of the
    same characters are equal: composed or not, full width or half, with or without soft hyphens.
    """
    ignored, word = _compile_patterns()
    text = unicodedata.normalize("NFKC", ignored.sub("", text)).casefold()
    # Without the dot that the lower case of a Turkish "\u0130" has above its own.
    text = unicodedata.normalize("NFKC", text).replace("i\u0307", "i")
    words: list[str] = word.findall(text)
    return words
