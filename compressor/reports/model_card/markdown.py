"""Write Markdown in which texts of recipes, data and machines are texts: never markup or a cell."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"([\\`*_{}\[\]|~#$!])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escape(text: str) -> str:
    """Escape all that Markdown or HTML would take for markup, in one line."""
    line = " ".join(text.split())
    escaped = "".join(_ENTITIES.get(mark, mark) for mark in _MARKUP.sub(r"\\\1", line))
    # A line that begins so would be a list, a rule or a heading.
    return re.sub(r"^(?=[-+=])|^(\d+)(?=[.)])", r"\1\\", escaped)


def format_code(text: str) -> str:
    """Write a text in one line as a code span, whatever backticks it has."""
    line = " ".join(text.split())
    fence = _make_fence(line, 1)
    room = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{room}{line}{room}{fence}"


def format_block(text: str, language: str = "") -> str:
    """Write a fenced block, with a fence that nothing in it ends."""
    fence = _make_fence(text, 3)
    return f"{fence}{language}\n{text}\n{fence}"


def _make_fence(text: str, least: int) -> str:
    """Make a fence that is longer than any run of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(least, longest + 1)


def format_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Write a table of finished Markdown cells; columns after the first `texts` are numbers.

    Columns without any cell are left out.
    """
    kept = [n for n in range(len(headings)) if n < texts or any(row[n] for row in rows)]
    lines = [
        [headings[n] for n in kept],
        ["---" if n < texts else "---:" for n in kept],
        # A pipe ends a cell even in a code span, unless it is escaped there too.
        *([re.sub(r"(?<!\\)\|", r"\\|", row[n]) for n in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
