"""The masks of versions 1 to 6 of the homework, against torch.nn.utils.prune, on T5-small's shape.

    make bench NAME=prune

Both prune the same weights by the same amounts, group by group, version after version, in turn in
one process. Masks must be equal but for entries whose magnitude equals a threshold, of which torch
picks any. Peak memory is that of a process for each side, over what it held before. Then the time
for a weight on the shapes of T5-small, T5-base and T5-large.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn.utils import prune

from compressor.compression.thresholds import prune_smallest
from compressor.models.facts import Facts, derive_facts
from compressor.models.masks import apply_mask, count_left
from tests.benchmarks.common import (
    MIB,
    compare,
    measure_apart,
    measure_rise,
    time_call,
    write,
)

AMOUNTS = [
    {
        "encoder.self_attention": 0.1, "encoder.feed_forward": 0.1, "decoder.self_attention": 0.3,
        "decoder.cross_attention": 0.2, "decoder.feed_forward": 0.3, "lm_head": 0.3,
    }
] * 5 + [
    {
        "encoder.self_attention": 0.0, "encoder.feed_forward": 0.0, "decoder.self_attention": 0.1,
        "decoder.cross_attention": 0.1, "decoder.feed_forward": 0.1, "lm_head": 0.2,
    }
]  # fmt: skip
STEPS = [step for amounts in AMOUNTS for step in amounts.items()]
THREADS = 2
Tensors = dict[str, torch.Tensor]
SIZES = {
    "T5-small": {},
    "T5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "T5-large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}


def shape(name: str) -> Facts:
    return derive_facts({"model_type": "t5", **SIZES[name]}, head="seq2seq_lm")


def weights_of(known: Facts) -> Tensors:
    """Normal weights for every parameter of a group."""
    generator = torch.Generator().manual_seed(0)
    names = [name for path in AMOUNTS[0] for name in known.list_groups()[path]]
    return {n: torch.randn(known.shapes[n], generator=generator) for n in names}


def ours(known: Facts, weights: Tensors) -> Tensors:
    masks: Tensors = {}
    groups = known.list_groups()
    for path, amount in STEPS:
        group = {name: weights[name] for name in groups[path]}
        prune_smallest(group, masks, round(amount * count_left(masks, group)))
        for name, weight in group.items():
            apply_mask(weight, masks[name])
    return masks


def theirs(known: Facts, weights: Tensors) -> Tensors:
    layers = {}
    for name, weight in weights.items():
        layers[name] = nn.Linear(1, 1, bias=False)
        layers[name].weight = nn.Parameter(weight, requires_grad=False)
    groups = known.list_groups()
    for path, amount in STEPS:
        pairs = [(layers[name], "weight") for name in groups[path]]
        prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
    return {name: layer.weight_mask for name, layer in layers.items()}


SIDES = {"ours": ours, "theirs": theirs}


def measure_memory(side: str) -> tuple[float, float]:
    """(MiB at the peak over what the process held before, MiB of the masks)."""
    torch.set_num_threads(THREADS)
    known = shape("T5-small")
    weights = weights_of(known)
    mib, masks = measure_rise(lambda: SIDES[side](known, weights))
    return mib, sum(mask.numel() * mask.element_size() for mask in masks.values()) / MIB


def time_side(side: str, known: Facts) -> tuple[float, Tensors]:
    weights = weights_of(known)
    return time_call(lambda: SIDES[side](known, weights))


def differing(known: Facts, a: Tensors, b: Tensors) -> tuple[int, bool]:
    """(entries that differ, whether each of them has a magnitude that ties at some threshold)."""
    weights, total, ties = weights_of(known), 0, True
    for names in map(known.list_groups().__getitem__, AMOUNTS[0]):
        # A tie swaps equals: as many went here as stayed there.
        here = torch.cat([weights[n][a[n] & ~b[n].bool()].abs() for n in names])
        there = torch.cat([weights[n][~a[n] & b[n].bool()].abs() for n in names])
        total += len(here) + len(there)
        ties &= torch.equal(here.sort().values, there.sort().values)
    return total, ties


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(THREADS)
    memory = {side: measure_apart(measure_memory, side) for side in SIDES}
    known, masks = shape("T5-small"), dict[str, Tensors]()
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            taken, masks[side] = time_side(side, known)
            seconds[side].append(taken)
    count, ties = differing(known, masks["ours"], masks["theirs"])
    kept = {side: sum(int(m.count_nonzero()) for m in masks.pop(side).values()) for side in SIDES}
    scaling = {}
    for name in SIZES:
        big = shape(name)
        size = sum(weight.numel() for weight in weights_of(big).values())
        best = min(time_side("ours", big)[0] for _ in range(3))
        scaling[name] = {"weights": size, "seconds": best, "ns_a_weight": 1e9 * best / size}
    compared = compare(seconds["ours"], seconds["theirs"], "s")
    write(
        "prune",
        **compared | {"ratio": compared["theirs"] / compared["ours"]},
        extra_mib={side: mib for side, (mib, _) in memory.items()},
        masks_mib=memory["ours"][1],
        allowed_mib=memory["ours"][1] + 64,
        kept=kept["ours"],
        same_count=kept["ours"] == kept["theirs"],
        differing_entries=count,
        all_of_them_ties=ties,
        scaling=scaling,
    )


if __name__ == "__main__":
    main()
