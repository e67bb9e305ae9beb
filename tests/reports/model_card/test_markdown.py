"""Texts stay texts in Markdown: held against markdown-it, an implementation of CommonMark."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from compressor.reports.model_card.markdown import (
    escape,
    format_block,
    format_code,
    format_table,
)
from tests.harness.pages import EVIL

HOSTILE = [
    EVIL,
    "a | b \\| c `d` ``e`` *f* _g_ [h](i) ![j](k) <b>l</b> &amp; ~~m~~ $n$ # o",
    "- not a list",
    "1. nor this",
    "12) or this",
    "> a quote",
    "# a heading",
    "=== ---",
    "two\nlines\n\nand a paragraph",
    "`` `",
    "\\",
    "```\nblock\n```",
    "<!-- comment -->",
    "https://example.org?a=b&c=d",
]


class _Shown(HTMLParser):
    """The text of HTML, and the elements in it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags = "", []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(markdown: str) -> _Shown:
    return _Shown(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown))


def _line(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_one_element_whose_text_it_is(text: str) -> None:
    """A paragraph, a quotation, a span or a block of code, and no other element."""
    for markdown, tags in (
        (escape(text), ["p"]),
        (f"> {escape(text)}", ["blockquote", "p"]),
        (format_code(text), ["p", "code"]),
    ):
        shown = _read(markdown)
        assert _line(shown.text) == _line(text) and shown.tags == tags
    shown = _read(format_block(text))
    assert shown.text.rstrip("\n") == text and shown.tags == ["pre", "code"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_is_one_cell(text: str) -> None:
    """Plain and as code: two columns, and the number beside it stays in its own."""
    shown = _read(format_table(["model", "score"], [[escape(text), "0.5"]]))
    assert shown.tags.count("td") == 2
    assert set(shown.tags) <= {"table", "thead", "tbody", "tr", "th", "td"}
    assert _line(text) in _line(shown.text)
    shown = _read(format_table(["model", "score"], [[format_code(text), "0.5"]]))
    assert shown.tags.count("td") == 2 and shown.tags.count("code") == 1


def test_a_column_without_cells_is_left_out() -> None:
    """No empty columns of numbers; the first stays."""
    table = format_table(["model", "a", "b"], [["x", "", "1"], ["y", "", ""]])
    assert table.splitlines()[0] == "| model | b |"
