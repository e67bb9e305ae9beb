"""Choose which entries of a group go: the smallest of many tensors, by exact counts.

The threshold is the k-th smallest magnitude over all tensors of a group. The bits of a float that
is not negative order as the float does, so magnitudes are compared as integers; an interval of
bits that holds the threshold comes from a sample, is counted chunk by chunk, and narrowed until
what is inside can be looked at as a whole. Nothing is concatenated or sorted, nothing copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.models.masks import _BITS, CHUNK, _view_as_numpy, count_left

SAMPLE = 2**16
"""Entries from which the first interval is guessed: 1 % of the group, wrong once in 400 times."""

INSIDE = 2**21
"""The most entries that are gathered to find the threshold among them."""

BINS = 2**12
"""Parts that an interval is cut into where it holds more than `INSIDE`."""


def prune_smallest(
    values: dict[str, Tensor], masks: dict[str, Tensor], count: int, *, release: bool = False
) -> None:
    """Mask the `count` entries of smallest magnitude over all of `values`, in place in `masks`.

    values (name → float32, bfloat16 or float16, all of one dtype and device): weights, or scores
    of importance; 0 wherever `masks` has False already. masks (name → bool of the value's shape,
    True where an entry stays): a missing one is all True, and is added. Of equal magnitudes the
    earlier entry goes first, in the order of `values` and then row by row. As
    `torch.nn.utils.prune.global_unstructured` with L1, whose order of equal ones is undefined.
    `release`: empty `values`, each as its mask is written, so that not all lie beside all masks.

    Raises ValueError where fewer than `count` entries are left, or the values are of other dtypes.
    """
    dtypes = {value.dtype for value in values.values()}
    if len(dtypes) != 1 or not dtypes <= _BITS.keys():
        raise ValueError(f"expected values of one dtype of {list(_BITS)}, got {dtypes}")
    total = sum(value.numel() for value in values.values())
    gone = total - count_left(masks, values)
    if not 0 <= count <= total - gone:
        raise ValueError(f"cannot prune {count} entries: {total - gone} are left")
    flat = {name: value.detach().contiguous().view(-1) for name, value in values.items()}
    # What is masked is zero, the smallest there is: it only moves the rank.
    threshold, below, equal = 0, 0, 0
    if count:
        threshold, below, equal = _kth_smallest(list(flat.values()), gone + count)
    ties = gone + count - below if threshold else count  # how many that equal it go
    every = ties == equal
    for name in list(values):
        value, bits = values.pop(name) if release else values[name], flat.pop(name)
        if name not in masks:
            new = torch.empty if threshold else torch.ones
            masks[name] = new(value.shape, dtype=torch.bool, device=value.device)
        mask = masks[name].view(-1)
        if threshold:
            ties -= _mask_below(bits, mask, threshold, ties, every=every)
        elif ties:  # only zeros go, of those that no mask has taken yet
            zeros = (mask & (bits == 0)).nonzero().view(-1)[:ties]
            mask[zeros] = False
            ties -= len(zeros)


def _read_magnitude_bits(flat: Tensor) -> Iterator[Any]:
    """Yield the bits of each chunk's magnitudes, in a buffer that the next chunk overwrites.

    On a CPU as a NumPy array: there its comparisons, counts and selections of a chunk take half of
    torch's time or less. Both understand what is done with them here.
    """
    integer, positive = _BITS[flat.dtype]
    bits = flat.view(integer)
    buffer = torch.empty(min(CHUNK, bits.numel()), dtype=integer, device=flat.device)
    for chunk in torch.split(bits, CHUNK):
        functions = np if flat.device.type == "cpu" else torch
        yield functions.bitwise_and(
            _view_as_numpy(chunk), positive, out=_view_as_numpy(buffer[: chunk.numel()])
        )


def _kth_smallest(parts: list[Tensor], rank: int) -> tuple[int, int, int]:
    """Find (bits of the `rank`-th smallest magnitude, entries that are smaller, or equal)."""
    low, high = _guess_interval(parts, rank)
    while True:
        below, inside, gathered = _count_in_interval(parts, low, high)
        if rank <= below:
            low, high = 0, low - 1
        elif rank > below + inside:
            low, high = high + 1, _BITS[parts[0].dtype][1]
        elif low == high:
            return low, below, inside
        elif gathered is not None:
            threshold = int(gathered.kthvalue(rank - below).values)
            smaller = int((gathered < threshold).count_nonzero())
            return threshold, below + smaller, int((gathered == threshold).count_nonzero())
        else:
            low, high = _narrow_interval(parts, low, high, rank - below)


def _guess_interval(parts: list[Tensor], rank: int) -> tuple[int, int]:
    """Guess an interval of bits that holds the `rank`-th smallest, and little else."""
    total = sum(part.numel() for part in parts)
    step = max(1, total // SAMPLE)
    positive = _BITS[parts[0].dtype][1]
    # A stride that shares no factor with the usual widths, so that all columns are seen.
    step += 1 - step % 2
    sample = torch.cat([part[::step] for part in parts])
    sample = (sample.view(_BITS[sample.dtype][0]) & positive).to(torch.int32)
    order = sample.sort().values  # of the sample alone
    size = len(order)
    share = rank / total
    margin = 3 * math.sqrt(size * share * (1 - share)) + 4
    first, last = math.floor(size * share - margin), math.ceil(size * share + margin)
    low = int(order[first]) if first >= 0 else 0
    high = int(order[last]) if last < size else positive
    return low, high


def _count_in_interval(parts: list[Tensor], low: int, high: int) -> tuple[int, int, Tensor | None]:
    """Count (entries below `low`, in [low, high], and give the latter where they are few)."""
    below = inside = 0
    gathered: list[Any] | None = [] if low < high else None
    functions = np if parts[0].device.type == "cpu" else torch
    for part in parts:
        for bits in _read_magnitude_bits(part):
            within = bits <= high
            if low:
                under = bits < low
                below += int(functions.count_nonzero(under))
                within ^= under
            if gathered is None:
                inside += int(functions.count_nonzero(within))
                continue
            part_inside = np.compress(within, bits) if functions is np else bits[within]
            inside += len(part_inside)
            gathered = [*gathered, part_inside] if inside <= INSIDE else None
    if not gathered:
        return below, inside, None
    return below, inside, torch.cat(list(map(torch.as_tensor, gathered)))


def _narrow_interval(parts: list[Tensor], low: int, high: int, rank: int) -> tuple[int, int]:
    """Find the part of [low, high], one of `BINS`, that holds the `rank`-th smallest in it."""
    width = -(-(high - low + 1) // BINS)
    histogram = torch.zeros(BINS, dtype=torch.int64, device=parts[0].device)
    for part in parts:
        for bits in _read_magnitude_bits(part):
            within = torch.as_tensor(bits[(bits <= high) & (bits >= low)])
            histogram += torch.bincount((within - low) // width, minlength=BINS)
    index = int((histogram.cumsum(0) < rank).sum())
    return low + index * width, min(high, low + (index + 1) * width - 1)


def _mask_below(flat: Tensor, mask: Tensor, threshold: int, ties: int, *, every: bool) -> int:
    """Have `mask` keep what is above `threshold`, and of what equals it all but the first `ties`.

    `every`: none that equals it is kept, here or in another tensor. Returns how many went.
    """
    start = went = 0
    for bits in _read_magnitude_bits(flat):
        chunk = _view_as_numpy(mask[start : start + len(bits)])
        start += len(bits)
        chunk[:] = bits > threshold if every else bits >= threshold
        if not every and went < ties:
            equal = torch.as_tensor(bits == threshold).nonzero().view(-1)[: ties - went]
            chunk[_view_as_numpy(equal)] = False
            went += len(equal)
    return went


def split_count(sizes: list[int], count: int) -> list[int]:
    """Split `count` over parts of these sizes, in proportion, to whole numbers that add up.

    The largest remainders get one more; of equal ones the earlier part does. No part gets more
    than its size.
    """
    total = sum(sizes)
    if total == 0:
        return [0 for _ in sizes]
    whole = [count * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(count * sizes[i] % total), i))
    for index in order[: count - sum(whole)]:
        whole[index] += 1
    return whole


def row_counts(masks: Sequence[Tensor], count: int) -> list[Tensor]:
    """Choose how many entries go in each row of each matrix, `count` together: [rows] each.

    masks: [rows, columns] each, True where an entry is left. In proportion to what is left.
    """
    left = [mask.sum(1) for mask in masks]
    goes = split_count([int(size) for sizes in left for size in sizes.tolist()], count)
    return [*torch.split(torch.tensor(goes), [len(sizes) for sizes in left])]


def prune_rows(score: Tensor, mask: Tensor, goes: Tensor) -> Tensor:
    """Mask in each row as many more entries as `goes` [rows] says, those of the smallest scores.

    score: [rows, columns], at least 0: compared inside a row only, as Wanda does (arXiv
    2306.11695). mask: True where an entry may stay. Gives the new mask.
    """
    ranked = torch.where(mask, score.float(), -1).sort(dim=1, stable=True).indices
    gone = mask.shape[1] - mask.sum(1)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    kept = places >= (gone + goes.to(mask.device))[:, None]
    return torch.empty_like(kept).scatter_(1, ranked, kept)


def prune_blocks(
    scores: Mapping[str, Tensor], masks: dict[str, Tensor], keep: int, block: int
) -> None:
    """Mask, in place in `masks`, all but the `keep` best of every `block` entries along a row.

    N:M sparsity (N = keep, M = block; 2:4 is what sparse tensor cores multiply). scores (name →
    [rows, columns], whose sign does not count), the columns a multiple of `block`. What is masked
    stays masked.
    """
    for name, score in scores.items():
        old = masks.get(name, torch.ones_like(score, dtype=torch.bool))
        parts = torch.where(old, score.float().abs(), -1).reshape(-1, block)
        # Of equal scores the earlier entry goes, as everywhere here.
        ranked = parts.sort(dim=1, stable=True).indices[:, : block - keep]
        kept = torch.ones_like(parts, dtype=torch.bool).scatter_(1, ranked, value=False)
        masks[name] = kept.reshape(old.shape) & old
