"""Memory and time of a training step: adapters of rank 16 against all weights; no GPU.

    make bench NAME=lora

T5-small's shape, 60.5 M parameters, fresh weights, float32, 4 rows of 256 tokens in and 64 out, one
thread. Every case is a process of its own: `full` trains everything, `lora` adapters of all layers'
matrices, both with the package's loop; `…_masked` the same with half of those matrices pruned.
Memory is how far the resident memory rose above what it was with the model loaded; seconds are CPU
time, the median of the steps behind the first two.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import T5Config

from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from compressor.training.adapters import attach_adapters
from compressor.training.lora import Lora
from tests.benchmarks.common import Laps, measure_apart, measure_rise, train_ours, write

CASES = ("full", "lora", "full_masked", "lora_masked")
ROWS, STEPS, SETTLED = 4, 7, 2


class CpuLaps(Laps):
    """In CPU time, which does not depend on who else has the machine."""

    def advance(self, steps: int = 1, **notes: str) -> None:
        self.times.append(time.process_time())


def once(case: str) -> dict[str, float]:
    """One measurement: MiB above the loaded model, CPU seconds of a step, trained parameters."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build_model(T5Config(decoder_start_token_id=0), "seq2seq_lm")
    checkpoint = Checkpoint(model, None, "seq2seq_lm")
    lora = Lora(rank=16)
    if case.endswith("masked"):
        for name in lora.list_targets(checkpoint.derive_facts()):
            checkpoint.masks[name] = torch.rand_like(checkpoint.get_parameter(name)) < 0.5
        checkpoint.apply_masks()
    sources, targets = (
        torch.randint(3, 32000, (ROWS * STEPS, length)).tolist() for length in (256, 64)
    )
    laps = CpuLaps(ROWS)

    def train() -> int:
        adapters = attach_adapters(checkpoint, lora, 0) if case.startswith("lora") else None
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        train_ours(
            model, Examples(sources, targets), 0, laps=laps, masks=checkpoint.masks,
            batch_size=ROWS, learning_rate=1e-4, epochs=1,
        )  # fmt: skip
        if adapters is not None:
            adapters.merge()
        return trained

    mib, trained = measure_rise(train)
    steps = [after - start for start, after in zip(laps.times, laps.times[1:], strict=False)]
    seconds = statistics.median(steps[SETTLED - 1 :])
    return {"mib": mib, "cpu_seconds": seconds, "trained_parameters": trained}


def main() -> None:
    results = {case: measure_apart(once, case) for case in CASES}
    ours, theirs = (results[case]["mib"] for case in ("lora", "full"))
    about = {"unit": "MiB above the loaded model", "model": "T5-small's shape, float32"}
    write("lora", ours=ours, theirs=theirs, ratio=theirs / ours, **about, **results)


if __name__ == "__main__":
    main()
