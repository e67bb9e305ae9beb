"""Move outliers of activations into weights, where int8 holds them better.

SmoothQuant (arXiv 2211.10438), over every channel that an architecture declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressor.compression.layer_inputs import watch_inputs
from compressor.core.numbers import require_finite
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.structure import Channels

BATCH = 8
"""Calibration rows that are read at once."""
LEAST, MOST = 1e-3, 1e3
"""Factors are kept within these: a channel that was never used says nothing."""


@contextmanager
def input_peaks(model: nn.Module, weights: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, keep the largest |input| of each channel of each named weight's layer."""
    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in weights}
    peaks: dict[str, Tensor] = {}

    def keep_peaks(name: str, tokens: Tensor) -> None:
        largest = tokens.abs().amax(0)
        peaks[name] = torch.maximum(peaks.get(name, largest), largest)

    with watch_inputs(modules, keep_peaks):
        yield peaks


def compute_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Compute `max|x|^alpha / max|w|^(1 - alpha)` for each channel (equation 4 of the paper).

    `inputs` [C] and `weights` [C] are the largest magnitudes. A channel that no input or no weight
    uses keeps a factor of 1.
    """
    used = (inputs > 0) & (weights > 0)
    factors = inputs.clamp_min(1e-30) ** alpha / weights.clamp_min(1e-30) ** (1 - alpha)
    return torch.where(used, factors.clamp(LEAST, MOST), 1.0)


@torch.no_grad()
def rescale_channels(
    model: nn.Module, channels: Iterable[Channels], peaks: dict[str, Tensor], alpha: float
) -> list[Tensor]:
    """Divide and multiply the weights around each of `channels`, and give the factors.

    What the model computes stays as it was, but for rounding. Zeros stay zeros.
    """
    factors = []
    for part in channels:
        readers = [model.get_parameter(name) for name in part.readers]
        largest = torch.stack([weight.abs().amax(0) for weight in readers]).amax(0)
        factor = compute_factors(peaks[part.readers[0]].to(largest.device), largest, alpha)
        for name in part.writers:
            writer = model.get_parameter(name)
            writer.div_(factor.view(-1, *[1] * (writer.dim() - 1)))
        for weight in readers:
            weight.mul_(factor)
        factors.append(factor)
    return factors


@torch.no_grad()
def smooth_checkpoint(checkpoint: Checkpoint, examples: Examples, alpha: float) -> list[Tensor]:
    """Rescale all channels of a model by what comes into them on some rows, and give the factors.

    Raises StageError where an activation is not finite.
    """
    model, channels = checkpoint.model, checkpoint.derive_facts().list_channels()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    with input_peaks(model, [c.readers[0] for c in channels]) as peaks:
        for start in range(0, len(examples), BATCH):
            rows = list(range(start, min(start + BATCH, len(examples))))
            batch = examples.batch(rows, checkpoint.pad_id)
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    require_finite(
        peaks,
        "what comes into ",
        "activations on the calibration rows overflow, as after a training that diverged",
    )
    factors = rescale_channels(model, channels, peaks, alpha)
    model.to("cpu")
    return factors
