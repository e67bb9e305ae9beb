"""The console that tables, bars and lines are printed on. What they say is for others to know."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from compressor.core.errors import Problem
from compressor.core.redaction import redact_text


class PlainConsole(Console):
    """A console on which no text sends the terminal an order of its own: only rich does."""

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or not ACTING.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters but tab and line feed, and those that turn the direction of writing."""

_LONGEST = 600
"""Characters."""


def printable(text: str) -> str:
    r"""A text with each character that a terminal would act on written out: `\x1b`, `\u202e`."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print a text that may be a stranger's, so that no terminal acts on it."""
    print(printable(text), file=file)


def brief(message: str) -> str:
    """As much as a person reads of a message of others, which may repeat a whole value."""
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]} …"


def complain(kind: str, text: object, file: TextIO | None = None) -> None:
    """Print `error: …` or `warning: …`, without a secret, on the standard error or in a log."""
    if isinstance(text, Problem):  # whose path may be a secret's, and whose message is not it
        told = str(replace(text, message=redact_text(text.message)))
    else:
        told = redact_text(str(text))
    print_text(f"{kind}: {told}", file or sys.stderr)
