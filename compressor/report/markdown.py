"""Markdown in which texts of recipes, data and machines are texts: never markup, never a cell."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"([\\`*_{}\[\]|~#$!])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def plain(text: str) -> str:
    """A text in one line, with all that Markdown or HTML would take for markup escaped."""
    line = " ".join(text.split())
    escaped = "".join(_ENTITIES.get(mark, mark) for mark in _MARKUP.sub(r"\\\1", line))
    # A line that begins so would be a list, a rule or a heading.
    return re.sub(r"^([-+=]|\d+[.)])", lambda found: f"\\{found[0]}" if not found[0][0].isdigit()
                  else f"{found[0][:-1]}\\{found[0][-1]}", escaped)  # fmt: skip


def code(text: str) -> str:
    """A text in one line as a code span, whatever backticks it has."""
    line = " ".join(text.split())
    longest = max((len(run) for run in re.findall(r"`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if line.startswith("`") or line.endswith("`") or not line else ""
    return f"{fence}{room}{line}{room}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block, with a fence that nothing in it ends."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def quote(text: str) -> str:
    """A quotation, as plain text."""
    return f"> {plain(text)}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A table of finished Markdown cells; columns after the first `texts` are numbers.

    Columns without any cell are left out.
    """
    kept = [n for n in range(len(headings)) if n < texts or any(row[n] for row in rows)]
    lines = [
        [headings[n] for n in kept],
        ["---" if n < texts else "---:" for n in kept],
        *([_cell(row[n]) for n in kept] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """A pipe ends a cell even in a code span, unless it is escaped there too."""
    return re.sub(r"(?<!\\)\|", r"\\|", text)
