"""Texts stay texts in Markdown: held against markdown-it, an implementation of CommonMark."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from compressor.reports.model_card.markdown import (
    escape,
    format_block,
    format_code,
    format_table,
)
from tests.harness.pages import EVIL, Text

HOSTILE = [
    EVIL,
    "a | b \\| c `d` ``e`` *f* _g_ [h](i) ![j](k) <b>l</b> &amp; ~~m~~ $n$ # o",
    *("- not a list", "1. nor this", "12) or this", "> a quote", "# a heading", "=== ---"),
    *("two\nlines\n\nand a paragraph", "`` `", "\\", "```\nblock\n```"),
]


def read(markdown: str) -> tuple[str, list[str]]:
    """Read the text and the elements that a reader of CommonMark sees."""
    page = Text(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))
    return " ".join(page.plain.split()), [tag for tag, _ in page.tags]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_element_or_cell_whose_text_it_is(text: str) -> None:
    """A paragraph, a quotation, a span or a block of code, and no other element; in a table the
    number beside it stays in its own cell.
    """
    line = " ".join(text.split())
    for markdown, tags in (
        (escape(text), ["p"]),
        (f"> {escape(text)}", ["blockquote", "p"]),
        (format_code(text), ["p", "code"]),
        (format_block(text), ["pre", "code"]),
    ):
        assert read(markdown) == (line, tags)
    for cell, codes in ((escape(text), 0), (format_code(text), 1)):
        shown, tags = read(format_table(["model", "score"], [[cell, "0.5"]]))
        assert (tags.count("td"), tags.count("code")) == (2, codes)
        assert set(tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
        assert codes or line in shown


def test_a_column_without_cells_is_left_out() -> None:
    """No empty columns of numbers; the first stays."""
    table = format_table(["model", "a", "b"], [["x", "", "1"], ["y", "", ""]])
    assert table.splitlines()[0] == "| model | b |"
