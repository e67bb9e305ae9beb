"""What a step of training on an input of a given length takes of a model: time and peak memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.checkpoint import Checkpoint
from compressor.data.examples import Examples
from compressor.hyperparameters import Hyperparameters
from compressor.losses import LabelLoss
from compressor.memory import Peak
from compressor.progress import Progress
from compressor.timing import of_length
from compressor.training import Training


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
        checkpoint_seconds=1e9,
    )
    device = checkpoint.model.device
    peak = Peak(str(device))
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
