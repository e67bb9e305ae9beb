"""What was read of a mapped file need not stay in memory."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from compressor.data.spill import let_go

BYTES = 96_000_000


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux lets pages go")
def test_a_mapped_file_that_was_read_is_let_go_and_reads_the_same(tmp_path: Path) -> None:
    """Rows of a data set of 5 GB that were read once each had all of it resident."""
    table = pa.table({"text": ["x" * 999_999 + str(n % 10) for n in range(BYTES // 1_000_000)]})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        os.fsync(sink.fileno()) if hasattr(sink, "fileno") else os.sync()
    column = pa.ipc.open_stream(pa.memory_map(str(tmp_path / "rows.arrow"))).read_all()["text"]
    del table
    before = resident()
    read = sum(len(column[row].as_py()) for row in range(len(column)))
    assert read == BYTES
    held = resident() - before
    assert held > 0.8 * BYTES
    let_go([column])
    if resident() - before > 0.9 * held:
        pytest.skip("this system does not know the advice")
    assert resident() - before < 0.2 * BYTES
    assert column[5].as_py()[-1] == "5"
