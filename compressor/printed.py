r"""What is printed: texts of data, models and strangers' recipes can only be read, never act.

A terminal takes an escape sequence in a text for an order: to move the cursor over what was said,
to set the clipboard, to open a link. Here it is shown as `\x1b`. What a file gets is as it was.
Tables and bars are `compressor.console`'s.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace

from compressor.errors import Problem
from compressor.redaction import redacted_text

ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters but tab and line feed, and those that turn the direction of writing."""

_LONGEST = 600
"""Characters."""


def printable(text: str) -> str:
    r"""A text with each character that a terminal would act on written out: `\x1b`, `\u202e`."""
    return ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def brief(message: str) -> str:
    """As much as a person reads of a message of others, which may repeat a whole value."""
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]} …"


def complain(kind: str, text: object) -> None:
    """Print `error: …` or `warning: …` on the standard error, without a secret in it."""
    if isinstance(text, Problem):  # whose path may be a secret's, and whose message is not it
        told = str(replace(text, message=redacted_text(text.message)))
    else:
        told = redacted_text(str(text))
    print(f"{kind}: {printable(told)}", file=sys.stderr)
