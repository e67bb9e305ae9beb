"""What slicing heads, neurons and the vocabulary does to latency; no quality, no GPU.

    make bench NAME=slice

T5-small's shape with fresh weights: as it is, with half its heads and neurons, and that with 8,000
pieces. One row of 256 tokens, 32 greedy ones out, with transformers' own `generate`, on 2 threads;
the three in turn, so that they share the machine's mood. Fresh weights have no rows whose pieces
could be counted, so the first 8,000 stay, cut by the function that the stage uses.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch
from transformers import T5Config

from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from compressor.models.surgery import keep_units
from compressor.stages.slice import Slice
from tests.benchmarks.common import compare, time_call, write
from tests.harness.stages import run_stage

PIECES, SOURCE, TARGET, ROUNDS = 8000, 256, 32, 15


def models() -> dict[str, Checkpoint]:
    """The original, sliced to half, and that with fewer pieces."""
    torch.manual_seed(0)
    config = T5Config(decoder_start_token_id=0)
    original = Checkpoint(build_model(config, "seq2seq_lm").eval(), None, "seq2seq_lm")
    with tempfile.TemporaryDirectory() as folder:
        half, _ = run_stage(Slice(heads=0.5, feed_forward=0.5), original, Path(folder))
    (vocabulary,) = half.derive_facts().list_units("vocabulary")
    return {
        "original": original,
        "sliced": half,
        "sliced_8k_pieces": keep_units(half, [(vocabulary, range(PIECES))]),
    }


def seconds(checkpoint: Checkpoint, ids: torch.Tensor) -> float:
    exactly = {"min_new_tokens": TARGET, "max_new_tokens": TARGET}
    taken, output = time_call(
        lambda: checkpoint.model.generate(ids, **exactly, do_sample=False, num_beams=1)
    )
    assert output.shape == (1, TARGET + 1)
    return taken


def main() -> None:
    torch.set_num_threads(2)
    checkpoints = models()
    ids = torch.randint(3, PIECES, (1, SOURCE), generator=torch.Generator().manual_seed(0))
    rounds = [
        {name: seconds(checkpoint, ids) for name, checkpoint in checkpoints.items()}
        for _ in range(ROUNDS + 2)
    ][2:]  # two to warm up
    times = {name: [taken[name] for taken in rounds] for name in checkpoints}
    write(
        "slice",
        model="T5-small's shape, fresh, float32",
        source_tokens=SOURCE,
        target_tokens=TARGET,
        threads=2,
        **compare(times["sliced"], times["original"], "s"),
        parameters={n: c.derive_facts().parameters for n, c in checkpoints.items()},
        medians={name: statistics.median(values) for name, values in times.items()},
        # Of each round, since a round shares the machine's mood.
        ratios={
            name: 1 / compare(values, times["original"], "")["ratio"]
            for name, values in times.items()
        },
        rounds=times,
    )


if __name__ == "__main__":
    main()
