"""Choose which layers stay, by the loss of the model without each of them. Removes none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor

from compressor.core.errors import StageError
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import list_stacks
from compressor.models.surgery import keep_layers
from compressor.training.loop import NO_LABELS
from compressor.training.losses import LabelLoss, mean_loss

ROUNDS = 4
"""Most rounds in which a stack loses its layers: each measures all that could go."""


def list_rounds(layers: int, depth: int) -> list[int]:
    """List how many layers go in each round: one, or as many as leave `ROUNDS` rounds."""
    most = -(-(layers - depth) // ROUNDS)
    return [min(most, layers - gone - depth) for gone in range(0, layers - depth, most or 1)]


def count_models(stack: str, layers: int, depth: int) -> int:
    """Count the models that are measured to leave `depth` of a stack's layers."""
    rounds = list_rounds(layers, depth)
    ends = len(_list_fixed(stack, layers, depth))
    return sum(layers - sum(rounds[:index]) - ends for index in range(len(rounds)))


def _list_fixed(stack: str, layers: int, depth: int) -> set[int]:
    """List the layers that stay whatever they do: a decoder's first and last, if two stay."""
    return {0, layers - 1} if stack == "decoder" and depth > 1 else set()


def choose_layers(
    checkpoint: Checkpoint,
    depths: Mapping[str, int],
    listed: Mapping[str, list[int]],
    examples: Examples,
    advance: Callable[[], object],
) -> tuple[dict[str, list[int]], dict[str, dict[int, float]]]:
    """Choose the layers of each stack that stay: without the others the loss on the rows is least.

    Stack by stack, each after the one before it has lost its layers, and round by round: those go
    without each of which the loss is least. A decoder's first and last layers stay. Gives, beside
    the choice, each layer's loss: the model's mean loss by label without it, in the first round.
    `listed`: layers that stay of other stacks. `advance` is called after each measurement.
    """
    if not any(examples.targets):
        raise StageError(NO_LABELS.format("train"))
    stacks = list_stacks(checkpoint.model.config, checkpoint.head)
    kept = dict(listed)
    measured: dict[str, dict[int, float]] = {}
    for stack, depth in depths.items():
        count = stacks[stack].layers
        fixed, kept[stack] = _list_fixed(stack, count, depth), list(range(count))
        states = dict[bytes, Any]() if stack == "decoder" and len(stacks) > 1 else None
        for goes in list_rounds(count, depth):
            losses = dict[int, float]()
            for layer in kept[stack]:
                if layer not in fixed:
                    left = [other for other in kept[stack] if other != layer]
                    smaller = keep_layers(checkpoint, kept | {stack: left})
                    losses[layer] = _measure(smaller, examples, states)
                    advance()
            measured.setdefault(stack, losses)
            gone = sorted(losses, key=lambda layer: losses[layer])[:goes]
            kept[stack] = [layer for layer in kept[stack] if layer not in gone]
    return kept, measured


def _measure(checkpoint: Checkpoint, examples: Examples, states: dict[bytes, Any] | None) -> float:
    """Measure the loss. `states`: what an encoder that all models share gave, and gives again."""
    model: Any = checkpoint.model
    with ExitStack() as undo:  # else a model that holds itself is not freed before the next
        if states is not None:
            encoder = model.get_encoder()
            undo.callback(delattr, encoder, "forward")
            encoder.forward = partial(_encode_once, encoder.forward, states)
        loss = mean_loss(LabelLoss(model), examples, checkpoint.pad_id, model.device)
    return loss if math.isfinite(loss) else math.inf


def _encode_once(
    encode: Callable[..., Any], states: dict[bytes, Any], input_ids: Tensor, **options: Any
) -> Any:
    key = input_ids.cpu().numpy().tobytes()
    if key not in states:
        states[key] = encode(input_ids, **options)
    return states[key]
