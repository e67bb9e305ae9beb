"""Make batches: the rows of a step, the share of a rank, and padding. No reading, no tokenizing.

Everything here is a function of its arguments alone: no generator is carried from step to step,
so a killed run goes on at any step and any number of processes sees the same global batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""The label that no loss counts, as everywhere in transformers."""
Layout = Literal["pairs", "joined", "class", "labels"]
"""How a row becomes inputs and labels: a source and its target apart, for an encoder-decoder; one
after the other, for a decoder; a source and its class; or a source and 0 or 1 for each label."""
WINDOW = 64
"""Batches sorted together. Padded source tokens on SciTLDR (batch 8, real ones: 232 a row): 338 in
random order, 253 with a window of 16, 243 with 64, 235 with the whole epoch; a smaller window
leaves more to chance, so that a row meets other rows in every epoch."""
GROUP = 4
"""Batches of like sources that are sorted again by target: 8 % more source is saved in target
padding (47 → 35 tokens a row, real ones: 30) than it costs (236 → 243 a row)."""


def global_batches(
    source_lengths: Sequence[int],
    target_lengths: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[list[int]]:
    """List the row indices of every optimizer step of one epoch, every row exactly once.

    A batch has rows of like source and target length, and lies at a random place of the epoch.
    If the rows do not divide, one batch is smaller; chance picks its rows and its place.
    """
    sources, targets = np.asarray(source_lengths), np.asarray(target_lengths)
    chance = np.random.default_rng((seed, epoch))
    order = chance.permutation(len(sources))
    whole = len(order) - len(order) % batch_size
    batches = [order[whole:]] if whole < len(order) else []
    for window in _cut_batches(order[:whole], WINDOW * batch_size):
        for group in _cut_batches(_sort_by_length(sources, window), GROUP * batch_size):
            batches += _cut_batches(_sort_by_length(targets, group), batch_size)
    # The longest source first: `share` deals from the front, so every rank gets a like load.
    return [
        _sort_by_length(-sources, batches[place]).tolist()
        for place in chance.permutation(len(batches))
    ]


def _sort_by_length(lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return rows[np.argsort(lengths[rows], kind="stable")]


def _cut_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def take_share(
    batch: Sequence[int], *, rank: int, world_size: int, micro_batches: int
) -> list[list[int]]:
    """Take one rank's part of a global batch, as exactly `micro_batches` lists of rows.

    Every row goes to one rank. A list may be empty, so that all ranks take as many turns. Rows are
    dealt forth and back (0 1 2 2 1 0 …): from a batch in order of length, every rank gets a like
    load, and its micro-batches have rows of like length.
    """
    turn = (rank, 2 * world_size - 1 - rank)
    mine = [row for place, row in enumerate(batch) if place % (2 * world_size) in turn]
    size, larger = divmod(len(mine), micro_batches)
    starts = [index * size + min(index, larger) for index in range(micro_batches + 1)]
    return [mine[start:end] for start, end in pairwise(starts)]


def collate_rows(
    rows: Sequence[tuple[Sequence[int], Sequence[int]]], *, pad_id: int, layout: Layout = "pairs"
) -> dict[str, Tensor]:
    """Make `input_ids`, `attention_mask` [B, S] and `labels` [B, T] (int64), padded alike.

    With `layout` "joined", `input_ids` are a source and its target, and `labels` [B, S] the same,
    but -100 on the source. With "class", `labels` [B] are the one number of each target; with
    "labels", they are all of them [B, L] ([1, 1], for no rows).

    Labels are padded with -100. No rows give one row of a pad and a label that does not count: a
    rank without rows still takes part in the step, with a loss of 0.
    """
    import torch

    if not rows:
        # Attended to, because a softmax over nothing is not a number.
        # Two tokens where joined, as a causal model's first predicts nothing.
        single = torch.ones((1, 2 if layout == "joined" else 1), dtype=torch.int64)
        return {
            "input_ids": single * pad_id,
            "attention_mask": single,
            "labels": single[0] * IGNORED if layout == "class" else single * IGNORED,
        }
    sources, targets = zip(*rows, strict=True)
    if layout == "joined":
        targets = tuple([IGNORED] * len(source) + list(target) for source, target in rows)
        sources = tuple([*source, *target] for source, target in rows)
    if layout == "class":
        labels = torch.tensor([label for (label,) in targets])
    else:
        labels = torch.from_numpy(_pad_rows(targets, IGNORED))
    return {
        "input_ids": torch.from_numpy(_pad_rows(sources, pad_id)),
        "attention_mask": torch.from_numpy(_pad_rows([[1] * len(row) for row in sources], 0)),
        "labels": labels,
    }


def _pad_rows(rows: Sequence[Sequence[int]], value: int) -> np.ndarray:
    table = np.full((len(rows), max(1, *map(len, rows))), value, dtype=np.int64)
    for line, row in zip(table, rows, strict=True):
        line[: len(row)] = row
    return table


def cut_windows(
    ids: Sequence[int], *, size: int, stride: int
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Cut a text into windows of at most `size` tokens, the next `stride` tokens after the last.

    Each is given as the tokens that are only read, and those that are predicted after them: what no
    window before it predicts. That is of the first all tokens but one, of a later one `stride`, or
    what is left, after at least `size - stride` others. So every token but a text's first is
    predicted once. `stride` is at least 1, and less than `size`.
    """
    windows, end = [], 1
    for start in range(0, len(ids), stride):
        if end >= len(ids):
            break
        windows.append((ids[start:end], ids[end : start + size]))
        end = start + size
    return windows


def evaluation_batches(
    lengths: Sequence[int], *, tokens: int, equal: bool = False
) -> list[list[int]]:
    """Put every row in a batch of at most `tokens` padded tokens; a longer row stands alone.

    The longest rows come first: what does not fit into memory shows at once. Rows of equal length
    keep their order, so that rows in this order can be split once more. `equal`: those of a batch
    have one length.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = bool(batches) and (len(batches[-1]) + 1) * longest <= tokens
        if fits and not (equal and lengths[row] < longest):
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
