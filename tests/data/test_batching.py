"""What a step is made of: every row once, like lengths together, nothing lost between ranks."""

from __future__ import annotations

import itertools
import random

import pytest

from compressor.data.batching import collate_rows, evaluation_batches, global_batches, take_share

ROWS = 1003
CHANCE = random.Random(0)
SOURCES = [CHANCE.randint(40, 512) for _ in range(ROWS)]
TARGETS = [CHANCE.randint(5, 60) for _ in range(ROWS)]


def batches(epoch: int = 0, seed: int = 7) -> list[list[int]]:
    return global_batches(SOURCES, TARGETS, batch_size=8, seed=seed, epoch=epoch)


@pytest.mark.parametrize(("rows", "size"), [(0, 8), (1, 8), (8, 8), (9, 8), (1003, 8), (5, 1)])
def test_every_row_is_in_exactly_one_batch(rows: int, size: int) -> None:
    """Each row is used once an epoch, in ceil(rows / size) batches, all but one of them full."""
    order = global_batches([3] * rows, [2] * rows, batch_size=size, seed=1, epoch=2)
    assert list(range(rows)) == sorted(itertools.chain(*order))
    assert -(-rows // size) == len(order)
    assert sum(len(batch) < size for batch in order) == (rows % size > 0)


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    """Two epochs have next to no batch in common: sorting leaves the company to chance."""
    assert batches() == batches() != batches(seed=8)
    first, second = ({frozenset(batch) for batch in batches(epoch)} for epoch in (0, 1))
    assert len(first & second) <= 1


def test_batches_of_like_length_need_little_padding() -> None:
    """At most 6 % of the sources and 35 % of the targets (random order: 56, 58 %). A batch begins
    with its longest source: who gets one row more gets a short one.
    """
    for lengths, limit in ((SOURCES, 1.06), (TARGETS, 1.35)):
        padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches())
        assert padded <= limit * sum(lengths)
    for batch in batches():
        in_order = [SOURCES[row] for row in batch]
        assert in_order == sorted(in_order, reverse=True)


def test_the_smaller_batch_is_another_one_in_every_epoch() -> None:
    """No row is always in the batch whose step is made of few rows, and it lies anywhere."""
    small = [
        (place, frozenset(batch))
        for epoch in range(8)
        for place, batch in enumerate(batches(epoch))
        if len(batch) == ROWS % 8
    ]
    assert len(small) == 8
    assert len({rows for _, rows in small}) == 8
    assert len({place for place, _ in small}) > 4


def test_ranks_share_a_batch_without_rest() -> None:
    """Nobody gets a row twice, none is lost, and every rank takes as many turns, of like size. By
    hand: 7 rows to 2 ranks in 2 micro-batches, dealt forth and back.
    """
    dealt = [take_share(range(7), rank=r, world_size=2, micro_batches=2) for r in (0, 1)]
    assert dealt == [[[0, 3], [4]], [[1, 2], [5, 6]]]
    for rows, world, micro in itertools.product((1, 2, 7, 8, 16), (1, 2, 3, 5), (1, 2, 3)):
        batch = list(range(100, 100 + rows))
        dealt = [
            take_share(batch, rank=rank, world_size=world, micro_batches=micro)
            for rank in range(world)
        ]
        assert batch == sorted(itertools.chain(*itertools.chain(*dealt)))
        assert {micro} == {len(parts) for parts in dealt}
        counts = [sum(map(len, parts)) for parts in dealt]
        assert max(counts) - min(counts) <= 1
        assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in dealt)


I = -100  # noqa: E741  # ignored


@pytest.mark.parametrize(
    ("layout", "rows", "ids", "mask", "labels"),
    [
        ("pairs", [([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])],
         [[5, 6, 1], [8, 1, 0]], [[1, 1, 1], [1, 1, 0]], [[7, 1, I], [9, 9, 1]]),
        ("joined", [([5, 6, 1], [7, 1]), ([8, 1], [9, 1])],
         [[5, 6, 1, 7, 1], [8, 1, 9, 1, 0]], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]],
         [[I, I, I, 7, 1], [I, I, 9, 1, I]]),
        ("class", [([5, 6, 1], [2]), ([8, 1], [0])],
         [[5, 6, 1], [8, 1, 0]], [[1, 1, 1], [1, 1, 0]], [2, 0]),
        ("pairs", [], [[0]], [[1]], [[I]]),
        ("class", [], [[0]], [[1]], [I]),
    ],
)  # fmt: skip
def test_collate_pads_to_the_longest_row(layout, rows, ids, mask, labels) -> None:
    """By hand. A decoder's labels do not count on the source; a rank without rows has something to
    compute on, and no label in it.
    """
    batch = collate_rows(rows, pad_id=0, layout=layout)
    tables = (batch[name].tolist() for name in ("input_ids", "attention_mask", "labels"))
    assert tuple(tables) == (ids, mask, labels)


def test_evaluation_batches_keep_to_the_budget() -> None:
    """By hand: longest first, at most 10 padded tokens, a longer row alone."""
    assert evaluation_batches([2, 12, 5, 4, 3, 1], tokens=10) == [[1], [2, 3], [4, 0, 5]]
    assert evaluation_batches([], tokens=10) == []
