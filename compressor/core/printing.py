"""Print messages, so that a terminal takes nothing in a text of others for an order.

Imports no rich, so that `--help` and errors are quick; tables and bars are printed on `console`.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import TextIO

from compressor.core.errors import Problem
from compressor.core.redaction import redact_text

ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Control characters but tab and line feed, and those that turn the direction of writing."""
LONGEST = 600
"""Characters of a message of others."""


def escape_controls(text: str) -> str:
    r"""Write out each character that a terminal would act on: `\x1b`, `\u202e`."""
    return ACTING.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def shorten(message: str) -> str:
    """Cut a message of others, which may repeat a whole value, to what a person reads."""
    return message if len(message) <= LONGEST else f"{message[:LONGEST]} …"


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print a text that may be a stranger's, so that no terminal acts on it."""
    print(escape_controls(text), file=file)


def print_error(text: object, file: TextIO | None = None) -> None:
    """Print `error: …`, without a secret, on the standard error or in a log."""
    _print_message("error", text, file)


def print_warning(text: object) -> None:
    """Print `warning: …`, without a secret, on the standard error."""
    _print_message("warning", text)


def print_note(text: object) -> None:
    """Print `note: …`, without a secret, on the standard error."""
    _print_message("note", text)


def _print_message(kind: str, text: object, file: TextIO | None = None) -> None:
    if isinstance(text, Problem):  # whose path may be a secret's, and whose message is not it
        text = replace(text, message=redact_text(text.message))
    else:
        text = redact_text(str(text))
    print_text(f"{kind}: {text}", file or sys.stderr)
