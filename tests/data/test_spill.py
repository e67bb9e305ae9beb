"""Token ids of many rows, and mapped files that were read: as lists would be, in little memory."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from compressor.data.spill import IdRows, release_pages

BYTES = 96_000_000


@pytest.mark.parametrize("spill", [2**20, 400, 0])
def test_rows_come_back_as_they_were_added(spill: int) -> None:
    """From memory, from both, and all from the file: single rows, slices, negative places."""
    chance = random.Random(0)
    rows = [[chance.randrange(2**31) for _ in range(chance.randrange(9))] for _ in range(100)]
    ids = IdRows(rows[:30], spill=spill)
    ids.extend(rows[30:31])
    ids.extend(rows[31:])
    assert list(ids) == rows
    assert ids == rows == ids[:]
    assert ids != rows[:-1] and ids != [[*rows[0], 1], *rows[1:]]
    assert (ids[-1], ids[20:40]) == (rows[-1], rows[20:40])
    assert ids.lengths() == [len(row) for row in rows]
    with pytest.raises(IndexError):
        ids[100]


def test_a_token_takes_four_bytes_and_none_beyond_the_limit() -> None:
    """A list of lists took 36 bytes a token: 1.8 GB for 100,000 rows of 512."""
    part = [[40_000 + number for number in range(500)] for _ in range(100)]
    tracemalloc.start()
    ids = IdRows(spill=4_000_000)
    for _ in range(10):
        ids.extend(part)
    small, _ = tracemalloc.get_traced_memory()
    for _ in range(40):
        ids.extend(part)
    large, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 2_000_000 <= small < 2_600_000  # 500,000 tokens
    assert large < 5_000_000  # of 2,500,000: 10 MB
    assert ids[4_999] == part[-1]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="Linux lets pages go")
def test_a_mapped_file_that_was_read_is_let_go_and_reads_the_same(tmp_path: Path) -> None:
    """Rows of a data set of 5 GB that were read once each had all of it resident."""

    def count_resident() -> int:
        return int(psutil.Process().memory_info().rss)

    table = pa.table({"text": ["x" * 999_999 + str(n % 10) for n in range(BYTES // 1_000_000)]})
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        os.fsync(sink.fileno()) if hasattr(sink, "fileno") else os.sync()
    column = pa.ipc.open_stream(pa.memory_map(str(tmp_path / "rows.arrow"))).read_all()["text"]
    del table
    before = count_resident()
    assert sum(len(column[row].as_py()) for row in range(len(column))) == BYTES
    held = count_resident() - before
    assert held > 0.8 * BYTES
    release_pages([column])
    if count_resident() - before > 0.9 * held:
        pytest.skip("this system does not know the advice")
    assert count_resident() - before < 0.2 * BYTES
    assert column[5].as_py()[-1] == "5"
