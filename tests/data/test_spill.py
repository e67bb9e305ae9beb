"""Token ids of many rows: as lists would be, in little memory."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from compressor.data.spill import IdRows


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
