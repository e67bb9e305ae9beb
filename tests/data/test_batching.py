"""What a step is made of: every row once, like lengths together, nothing lost between ranks."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest

from compressor.data.batching import collate_rows, evaluation_batches, global_batches, take_share

ROWS = 1003


def lengths(seed: int = 0) -> tuple[list[int], list[int]]:
    chance = random.Random(seed)
    return (
        [chance.randint(40, 512) for _ in range(ROWS)],
        [chance.randint(5, 60) for _ in range(ROWS)],
    )


def batches(epoch: int = 0, seed: int = 7, batch_size: int = 8) -> list[list[int]]:
    return global_batches(*lengths(), batch_size=batch_size, seed=seed, epoch=epoch)


def padded(order: list[list[int]], of: list[int]) -> int:
    return sum(len(batch) * max(of[row] for row in batch) for batch in order)


@pytest.mark.parametrize(("rows", "size"), [(0, 8), (1, 8), (8, 8), (9, 8), (1003, 8), (5, 1)])
def test_every_row_is_in_exactly_one_batch(rows: int, size: int) -> None:
    """Each row is used once an epoch, in ceil(rows / size) batches, all but one of them full."""
    found = global_batches([3] * rows, [2] * rows, batch_size=size, seed=1, epoch=2)
    assert list(range(rows)) == sorted(itertools.chain(*found))
    assert -(-rows // size) == len(found)
    assert sum(len(batch) < size for batch in found) == (rows % size > 0)


def test_batches_depend_on_seed_and_epoch_and_on_nothing_else() -> None:
    """The same arguments give the same batches; another epoch or seed gives others."""
    assert batches() == batches()
    assert batches() != batches(epoch=1)
    assert batches() != batches(seed=8)


def test_rows_meet_other_rows_in_every_epoch() -> None:
    """Two epochs have next to no batch in common: sorting leaves the company to chance."""
    first, second = ({frozenset(batch) for batch in batches(epoch)} for epoch in (0, 1))
    assert len(first & second) <= 1


def test_batches_of_like_length_need_little_padding() -> None:
    """Padding is at most 6 % of the sources and 35 % of the targets (random order: 56, 58 %)."""
    sources, targets = lengths()
    assert padded(batches(), sources) <= 1.06 * sum(sources)
    assert padded(batches(), targets) <= 1.35 * sum(targets)


def test_the_order_of_the_epoch_is_not_by_length() -> None:
    """Short and long batches come in random order, so the weights do not drift with length."""
    sources, _ = lengths()
    means = [sum(sources[row] for row in batch) / len(batch) for batch in batches()]
    half = len(means) // 2
    assert sum(means[:half]) / half == pytest.approx(
        sum(means[half:]) / (len(means) - half), rel=0.2
    )
    rises = sum(left < right for left, right in itertools.pairwise(means))
    assert 0.3 < rises / len(means) < 0.7


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


def test_a_batch_begins_with_its_longest_source() -> None:
    """Who gets one row more by `share` gets it at the end, where rows are short."""
    sources, _ = lengths()
    for batch in batches():
        own = [sources[row] for row in batch]
        assert own == sorted(own, reverse=True)


def test_rows_are_dealt_forth_and_back() -> None:
    """By hand: 7 rows to 2 ranks in 2 micro-batches."""
    dealt = [
        take_share([0, 1, 2, 3, 4, 5, 6], rank=r, world_size=2, micro_batches=2) for r in (0, 1)
    ]
    assert dealt == [[[0, 3], [4]], [[1, 2], [5, 6]]]


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 16])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_ranks_share_a_batch_without_rest(rows: int, world_size: int, micro_batches: int) -> None:
    """Nobody gets a row twice, none is lost, and every rank takes as many turns, of like size."""
    batch = list(range(100, 100 + rows))
    dealt = [
        take_share(batch, rank=rank, world_size=world_size, micro_batches=micro_batches)
        for rank in range(world_size)
    ]
    assert batch == sorted(itertools.chain(*itertools.chain(*dealt)))
    assert {micro_batches} == {len(parts) for parts in dealt}
    counts = [sum(map(len, parts)) for parts in dealt]
    assert max(counts) - min(counts) <= 1
    for parts in dealt:
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_ranks_get_a_like_load_of_tokens() -> None:
    """Over an epoch, two ranks differ by less than 1 % in real source tokens."""
    sources, _ = lengths()
    load = [
        sum(sources[row] for batch in batches() for row in take_share(batch, **at)[0])
        for at in ({"rank": r, "world_size": 2, "micro_batches": 1} for r in (0, 1))
    ]
    assert load[0] == pytest.approx(load[1], rel=0.01)


def test_collate_pads_to_the_longest_row() -> None:
    """By hand: pads in the source, a mask of ones and zeros, -100 in the labels."""
    batch = collate_rows([([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [8, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[7, 1, -100], [9, 9, 1]]


def test_collate_of_no_rows_is_a_row_that_does_not_count() -> None:
    """A rank without rows has something to compute on, and no label in it."""
    batch = collate_rows([], pad_id=3)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[3]],
        "attention_mask": [[1]],
        "labels": [[-100]],
    }


def test_collate_joins_source_and_target_for_a_decoder() -> None:
    """By hand: one sequence each, labels -100 on the source and on the padding."""
    rows = [([5, 6, 1], [7, 1]), ([8, 1], [9, 1])]
    batch = collate_rows(rows, pad_id=0, layout="joined")
    assert batch["input_ids"].tolist() == [[5, 6, 1, 7, 1], [8, 1, 9, 1, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    ignored = -100
    assert batch["labels"].tolist() == [
        [ignored, ignored, ignored, 7, 1],
        [ignored, ignored, 9, 1, ignored],
    ]


def test_collate_gives_a_classifier_one_label_a_row() -> None:
    """The class ids [B], also for no rows."""
    batch = collate_rows([([5, 6, 1], [2]), ([8, 1], [0])], pad_id=0, layout="class")
    assert batch["labels"].tolist() == [2, 0]
    assert batch["input_ids"].tolist() == [[5, 6, 1], [8, 1, 0]]
    assert collate_rows([], pad_id=0, layout="class")["labels"].tolist() == [-100]


def test_evaluation_batches_keep_to_the_budget() -> None:
    """By hand: longest first, at most 10 padded tokens, a longer row alone."""
    assert evaluation_batches([2, 12, 5, 4, 3, 1], tokens=10) == [[1], [2, 3], [4, 0, 5]]
    assert evaluation_batches([], tokens=10) == []


def test_importing_needs_no_torch() -> None:
    """Planning and the command line can name batches without loading torch."""
    code = "import sys, compressor.data.batching; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
