"""What one pruning stage costs a store, for each billion parameters. No training, no quality.

    make bench NAME=store

T5-base's shape, fresh weights: verify and read an artifact, prune it, write weights and masks,
commit (SHA-256 and fsync). The median of some rounds. README scales these to 1,000 points of a
large model.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import T5Config, T5ForConditionalGeneration

from compressor.compression.pruning import Grouping, Pruner
from compressor.core import machine
from compressor.engine.store.store import Store
from compressor.models.checkpoint import Checkpoint
from tests.benchmarks.common import write

ROUNDS = 3
SHAPE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}
AMOUNT = 0.3


def main() -> None:
    """Measure each part, write `outputs/bench/store.json`."""
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **SHAPE)).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    seconds: dict[str, list[float]] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    with tempfile.TemporaryDirectory(dir=".") as place:
        store = Store(Path(place) / "store")
        source = store.begin("0" * 64)
        Checkpoint(model, None, "seq2seq_lm").save(source)
        store.commit("0" * 64, source, {})
        for number in range(1, ROUNDS + 1):
            key = f"{number:064d}"
            with timed("verify"):
                store.verify("0" * 64)
            with timed("load"):
                checkpoint = Checkpoint.load(store.path("0" * 64))
            with timed("prune"):
                groups = checkpoint.derive_facts().list_groups()
                pruner = Pruner(checkpoint, Grouping(), seed=0, examples=None)
                for path in ("encoder.feed_forward", "decoder.feed_forward", "lm_head"):
                    names = groups[path]
                    size = sum(checkpoint.get_parameter(name).numel() for name in names)
                    pruner.prune_group(names, round(AMOUNT * size))
            with timed("write"):
                partial = store.begin(key)
                checkpoint.save(partial)
            with timed("commit"):
                manifest = store.commit(key, partial, {})
        written = sum(entry["bytes"] for entry in manifest["files"].values())
    billions = parameters / 1e9
    write(
        "store",
        machine=machine.describe_machine(),
        parameters=parameters,
        artifact_bytes=written,
        bytes_for_each_parameter=round(written / parameters, 3),
        seconds_for_each_billion={
            name: round(statistics.median(times) / billions, 2) for name, times in seconds.items()
        },
    )


if __name__ == "__main__":
    main()
