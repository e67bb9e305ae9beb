"""Moves outliers of activations into weights, where int8 holds them better. No files, no recipes.

SmoothQuant (arXiv 2211.10438), over every channel that an architecture declares.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.facts import Channels

LEAST, MOST = 1e-3, 1e3
"""Factors are kept within these: a channel that was never used says nothing."""


@contextmanager
def input_peaks(model: nn.Module, weights: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, the largest |input| of each channel is kept for each named weight's layer."""
    peaks: dict[str, Tensor] = {}

    def keep_peaks(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0].detach().abs().flatten(0, -2).amax(0).float()
            peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

        return hook

    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            keep_peaks(name)
        )
        for name in dict.fromkeys(weights)
    ]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def compute_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """`max|x|^alpha / max|w|^(1 - alpha)` for each channel (equation 4 of the paper).

    `inputs` [C] and `weights` [C] are the largest magnitudes. A channel that no input or no weight
    uses keeps a factor of 1.
    """
    used = (inputs > 0) & (weights > 0)
    found = inputs.clamp_min(1e-30) ** alpha / weights.clamp_min(1e-30) ** (1 - alpha)
    return torch.where(used, found.clamp(LEAST, MOST), torch.ones_like(found))


@torch.no_grad()
def rescale_channels(
    model: nn.Module, channels: Iterable[Channels], peaks: dict[str, Tensor], alpha: float
) -> list[Tensor]:
    """Divide and multiply the weights around each of `channels`; gives the factors.

    What the model computes stays as it was, but for rounding. Zeros stay zeros.
    """
    done = []
    for each in channels:
        readers = [model.get_parameter(name) for name in each.readers]
        largest = torch.stack([weight.abs().amax(0) for weight in readers]).amax(0)
        factor = compute_factors(peaks[each.readers[0]].to(largest.device), largest, alpha)
        for name in each.writers:
            writer = model.get_parameter(name)
            writer.div_(factor.view(-1, *[1] * (writer.dim() - 1)))
        for weight in readers:
            weight.mul_(factor)
        done.append(factor)
    return done
