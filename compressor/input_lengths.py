"""What an input of a given length takes of a model: time and peak memory, to read and to train."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.checkpoint import Checkpoint
from compressor.data.examples import Examples
from compressor.generation import decode
from compressor.hyperparameters import Hyperparameters
from compressor.losses import LabelLoss
from compressor.memory import Peak
from compressor.progress import Progress
from compressor.training import Training


def of_length(sources: Sequence[Sequence[int]], tokens: int, start: int = 0) -> list[int]:
    """`tokens` ids: those of `sources`, from one on and around again, ended as the last one is.

    A source's own end, its last token, is left out.
    """
    end = sources[-1][-1]
    bare = [source[:-1] if source[-1] == end else source for source in sources]
    around = chain.from_iterable(cycle([*bare[start % len(bare) :], *bare[: start % len(bare)]]))
    return [*islice(around, tokens - 1), end]


def read(
    checkpoint: Checkpoint,
    sources: Sequence[Sequence[int]],
    *,
    tokens: int,
    max_length: int,
    repeats: int,
) -> dict[str, Any]:
    """Summarize one text of `tokens` tokens, and others after it: median time, and the peak."""
    peak, taken = Peak(checkpoint.model.device), []
    for start in range(repeats):
        begun = time.perf_counter()
        decode(checkpoint.model, [of_length(sources, tokens, start)], max_length=max_length)
        taken.append(time.perf_counter() - begun)
    latency = 1000 * statistics.median(taken)
    return {"tokens": tokens, "latency_p50_ms": latency, "peak_bytes": peak.bytes()}


def train(
    checkpoint: Checkpoint,
    sources: Sequence[Sequence[int]],
    *,
    tokens: int,
    target_tokens: int,
    gradient_checkpointing: bool,
    resume: Path,
) -> dict[str, Any]:
    """A step of training, with one row of `tokens` tokens and `target_tokens` to learn.

    It goes through the loop that trains, at a learning rate that leaves the weights as they are.
    """
    example = Examples([of_length(sources, tokens)], [of_length(sources, target_tokens)])
    settings = Hyperparameters(
        batch_size=1,
        max_steps=1,
        learning_rate=1e-30,
        gradient_checkpointing=gradient_checkpointing,
        checkpoint_seconds=float("inf"),
    )
    device = checkpoint.model.device
    peak = Peak(device)
    history = Training(
        loss=LabelLoss(checkpoint.model),
        model=checkpoint.model,
        train=example,
        validation=None,
        settings=settings,
        masks={},
        pad_id=checkpoint.pad_id,
        seed=0,
        resume=resume,
        progress=Progress(Console(quiet=True), quiet=True),
    ).run()
    found = {"seconds": history.seconds, "peak_bytes": peak.bytes()}
    checkpoint.model.zero_grad()
    checkpoint.model.to(device)
    return found
