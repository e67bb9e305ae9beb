"""Files: replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.files import write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """A reader reads the old one to its end. UTF-8 has no half of a surrogate pair: that write ends
    in its middle, and leaves the old one and no half.
    """
    card = tmp_path / "card.md"
    write_text(card, "old")
    with card.open() as reader:
        write_text(card, "new and longer")
        assert reader.read() == "old"
    with pytest.raises(UnicodeEncodeError):
        write_text(card, "newer" * 100_000 + "\ud800")
    assert list(tmp_path.iterdir()) == [card]
    assert card.read_text() == "new and longer"
