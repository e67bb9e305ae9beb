"""Peak memory of a training step by length of the input, against transformers' own; no GPU.

    make bench NAME=long_inputs

A LongT5 of 4 + 4 layers, 256 wide, transient-global attention, fresh weights, float32, one row and
64 label tokens; forward and backward, without an optimizer. Every measurement is a process of its
own. What is counted is how far its resident memory rose above what it was with the model loaded.
`theirs` is `model(**batch).loss`, `theirs_checkpointed` the same with gradient checkpointing, and
`ours` the loss that the package trains with, under the allocator's settings of its training loop.
`…_reading` is the encoder alone, without gradients.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from transformers import LongT5Config, LongT5ForConditionalGeneration

from compressor.models.longt5 import encode_in_chunks
from compressor.training.loop import keep_freed_memory
from compressor.training.losses import LabelLoss
from tests.benchmarks.common import measure_apart, measure_rise, write

LENGTHS, LABELS, VOCABULARY = (512, 2048, 8192, 16384), 64, 2000
CASES = (
    "theirs", "theirs_checkpointed", "ours", "ours_checkpointed", "theirs_reading", "ours_reading",
)  # fmt: skip


def model() -> Any:
    torch.manual_seed(0)
    config = LongT5Config(
        vocab_size=VOCABULARY, d_model=256, d_kv=64, d_ff=512, num_layers=4, num_heads=4,
        feed_forward_proj="gated-gelu", encoder_attention_type="transient-global",
        decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return LongT5ForConditionalGeneration(config)


def once(case: str, tokens: int) -> dict[str, float]:
    """One measurement: MiB above the loaded model, seconds of CPU time, and the loss."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # CPU time then does not depend on who else has the other core
    made, draw = model(), torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (1, tokens), generator=draw)
    labels = torch.randint(3, VOCABULARY, (1, LABELS), generator=draw)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    if case.startswith("ours") and not case.endswith("reading"):
        keep_freed_memory()
    if case.endswith("checkpointed"):
        made.gradient_checkpointing_enable()
    is_ours = case.startswith("ours")

    def step() -> float:
        if case.endswith("reading"):
            with torch.inference_mode():
                mask = batch["attention_mask"]
                encoder = made.eval().encoder
                encode_in_chunks(encoder, ids, mask) if is_ours else encoder(ids, mask)
            return 0.0
        loss = LabelLoss(made.train())
        summed = loss(batch) if is_ours else made(**batch).loss * LABELS
        summed.backward()
        return float(summed)

    started = time.process_time()
    mib, value = measure_rise(step)
    return {"mib": mib, "cpu_seconds": time.process_time() - started, "loss": value}


def main() -> None:
    results = {
        case: {tokens: measure_apart(once, case, tokens) for tokens in LENGTHS} for case in CASES
    }
    longest = {case: by_length[LENGTHS[-1]]["mib"] for case, by_length in results.items()}
    for tokens in LENGTHS:
        ours, theirs = (results[case][tokens]["loss"] for case in ("ours", "theirs"))
        assert abs(ours - theirs) < 1e-5 * abs(theirs), "not the same loss"
    write(
        "long_inputs",
        ours=longest["ours"],
        theirs=longest["theirs_checkpointed"],
        ratio=longest["theirs_checkpointed"] / longest["ours"],
        ratio_without_checkpointing=longest["theirs"] / longest["ours"],
        ratio_reading=longest["theirs_reading"] / longest["ours_reading"],
        unit="MiB above the loaded model",
        model="LongT5, 4 + 4 layers of 256, 4 heads, transient-global, float32",
        label_tokens=LABELS,
        input_tokens=LENGTHS[-1],
        by_length=results,
    )


if __name__ == "__main__":
    main()
