"""The masks of versions 1 to 6 of the homework, against torch.nn.utils.prune, on T5-small's shape.

    make bench NAME=prune

Both prune the same weights by the same amounts, group by group, version after version, in turn in
one process. Masks must be equal but for entries whose magnitude equals a threshold, of which torch
picks any. Peak memory is that of a process for each side, over what it held before. Then the time
for a weight on the shapes of T5-small, T5-base and T5-large.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from compressor.compression.thresholds import prune_smallest
from compressor.models.facts import Facts, derive_facts
from compressor.models.masks import apply_mask, count_left
from tests.benchmarks.common import write

AMOUNTS = [
    {
        "encoder.self_attention": 0.1,
        "encoder.feed_forward": 0.1,
        "decoder.self_attention": 0.3,
        "decoder.cross_attention": 0.2,
        "decoder.feed_forward": 0.3,
        "lm_head": 0.3,
    }
] * 5 + [
    {
        "encoder.self_attention": 0.0,
        "encoder.feed_forward": 0.0,
        "decoder.self_attention": 0.1,
        "decoder.cross_attention": 0.1,
        "decoder.feed_forward": 0.1,
        "lm_head": 0.2,
    }
]
THREADS = 2
MIB = 2**20
SIZES = {
    "T5-small": {},
    "T5-base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "T5-large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}


def shape(name: str) -> Facts:
    return derive_facts({"model_type": "t5", **SIZES[name]}, head="seq2seq_lm")


def weights_of(known: Facts) -> dict[str, torch.Tensor]:
    """Normal weights for every parameter of a group."""
    generator = torch.Generator().manual_seed(0)
    names = [name for path in AMOUNTS[0] for name in known.list_groups()[path]]
    return {n: torch.randn(known.shapes[n], generator=generator) for n in names}


def ours(known: Facts, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    masks: dict[str, torch.Tensor] = {}
    groups = known.list_groups()
    for amounts in AMOUNTS:
        for path, amount in amounts.items():
            group = {name: weights[name] for name in groups[path]}
            prune_smallest(group, masks, round(amount * count_left(masks, group)))
            for name, weight in group.items():
                apply_mask(weight, masks[name])
    return masks


def theirs(known: Facts, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    layers = {}
    for name, weight in weights.items():
        layers[name] = nn.Linear(1, 1, bias=False)
        layers[name].weight = nn.Parameter(weight, requires_grad=False)
    groups = known.list_groups()
    for amounts in AMOUNTS:
        for path, amount in amounts.items():
            pairs = [(layers[name], "weight") for name in groups[path]]
            prune.global_unstructured(pairs, prune.L1Unstructured, amount=amount)
    return {name: layer.weight_mask for name, layer in layers.items()}


def peak_over(run: Any) -> tuple[float, float]:
    """(MiB at the peak over what the process held before, MiB of the masks)."""
    known = shape("T5-small")
    weights = weights_of(known)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    status = Path("/proc/self/status")

    def field(name: str) -> int:
        line = next(s for s in status.read_text().splitlines() if s.startswith(name))
        return int(line.split()[1]) * 1024

    before = field("VmRSS")
    masks = run(known, weights)
    size = sum(mask.numel() * mask.element_size() for mask in masks.values())
    return (field("VmHWM") - before) / MIB, size / MIB


def differing(
    known: Facts, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]
) -> tuple[int, bool]:
    """(entries that differ, whether each of them has a magnitude that ties at some threshold)."""
    weights, total, ties = weights_of(known), 0, True
    groups = known.list_groups()
    for path in AMOUNTS[0]:
        values = [weights[n][a[n] != b[n].bool()].abs() for n in groups[path]]
        magnitudes = torch.cat(values)
        total += len(magnitudes)
        # A tie swaps equals: as many went here as stayed there.
        here = torch.cat([weights[n][a[n] & ~b[n].bool()].abs() for n in groups[path]])
        there = torch.cat([weights[n][~a[n] & b[n].bool()].abs() for n in groups[path]])
        ties &= torch.equal(here.sort().values, there.sort().values)
    return total, ties


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", choices=["ours", "theirs"])
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if given.memory:
        print(json.dumps(peak_over(ours if given.memory == "ours" else theirs)))
        return
    memory = {}
    for side in ("ours", "theirs"):
        command = [sys.executable, "-m", "tests.benchmarks.prune", "--memory", side]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        memory[side] = json.loads(printed)
    known = shape("T5-small")
    pairs, masks = [], {}
    for _ in range(given.rounds):
        seconds = {}
        for name, run in (("ours", ours), ("theirs", theirs)):
            weights = weights_of(known)
            started = time.perf_counter()
            masks[name] = run(known, weights)
            seconds[name] = time.perf_counter() - started
            del weights
        pairs.append((seconds["ours"], seconds["theirs"]))
    count, ties = differing(known, masks["ours"], masks["theirs"])
    kept = sum(int(mask.count_nonzero()) for mask in masks["ours"].values())
    same_count = kept == sum(int(mask.count_nonzero()) for mask in masks["theirs"].values())
    masks.clear()
    scaling = {}
    for name in SIZES:
        big = shape(name)
        times = []
        for _ in range(3):
            weights = weights_of(big)
            started = time.perf_counter()
            ours(big, weights)
            times.append(time.perf_counter() - started)
            size = sum(weight.numel() for weight in weights.values())
            del weights
        scaling[name] = {
            "weights": size,
            "seconds": min(times),
            "ns_a_weight": 1e9 * min(times) / size,
        }
    mine, other = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    write(
        "prune",
        {
            "ours": mine,
            "theirs": other,
            "ratio": other / mine,
            "unit": "s",
            "pairs": pairs,
            "extra_mib": {side: values[0] for side, values in memory.items()},
            "masks_mib": memory["ours"][1],
            "allowed_mib": memory["ours"][1] + 64,
            "kept": kept,
            "same_count": same_count,
            "differing_entries": count,
            "all_of_them_ties": ties,
            "scaling": scaling,
            "peak_of_this_process_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        },
    )


if __name__ == "__main__":
    main()
