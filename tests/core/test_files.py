"""Files: replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.files import write_text


def test_a_reader_of_a_replaced_file_reads_the_old_one_to_its_end(tmp_path: Path) -> None:
    """The new one takes its place, whole."""
    write_text(tmp_path / "card.md", "old")
    with (tmp_path / "card.md").open() as reader:
        write_text(tmp_path / "card.md", "new and longer")
        assert reader.read() == "old"
    assert (tmp_path / "card.md").read_text() == "new and longer"


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_half(tmp_path: Path) -> None:
    """UTF-8 has no half of a surrogate pair: the write ends in its middle."""
    write_text(tmp_path / "card.md", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "card.md", "new" * 100_000 + "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["card.md"]
    assert (tmp_path / "card.md").read_text() == "old"
