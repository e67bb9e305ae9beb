"""Run calibration rows through a checkpoint, for what prunes or rounds weights by their inputs.

Chooses no weight. The sums, and the walk from layer to layer, are `layer_inputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.compression import layer_inputs
from compressor.compression.pruning import Origin, walks_layers
from compressor.compression.sparsegpt import Curvature, factorize_hessian
from compressor.core.errors import StageError
from compressor.core.numbers import require_finite
from compressor.data.examples import Examples
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import list_stacks
from compressor.training.losses import LabelLoss


@dataclass(frozen=True)
class Calibration:
    """A checkpoint, and rows of the data that it reads one by one: without padding."""

    checkpoint: Checkpoint
    examples: Examples

    @property
    def loss(self) -> LabelLoss:
        """The loss of a batch, which runs the model."""
        return LabelLoss(self.checkpoint.model)

    def list_batches(self) -> list[dict[str, Tensor]]:
        """Make a batch of each row, where the model is."""
        pad_id, device = self.checkpoint.pad_id, self.checkpoint.model.device
        batches = (self.examples.batch([row], pad_id) for row in range(len(self.examples)))
        return [{name: tensor.to(device) for name, tensor in b.items()} for b in batches]

    def sum_by_layer(
        self, modules: Mapping[str, nn.Module], statistic: layer_inputs.Statistic, origin: Origin
    ) -> Iterator[tuple[dict[str, nn.Module], Tensor]]:
        """Yield modules that read the same, by name, and their sum, one layer after the other.

        What was yielded may change before the next is asked for (see `layer_inputs.sum_by_layer`).
        """
        walk = list_walked_layers(self.checkpoint), self.loss, self.list_batches()
        for sums in layer_inputs.sum_by_layer(modules, *walk, statistic, origin):
            while sums:
                total = next(iter(sums.values()))
                shared = [name for name in sums if sums[name] is total]
                for name in shared:
                    del sums[name]
                yield {name: modules[name] for name in shared}, total


def list_walked_layers(checkpoint: Checkpoint) -> list[list[nn.Module]]:
    """List the layers of each stack, but of those whose layers hand on more than states."""
    return list_layers(checkpoint) if walks_layers(checkpoint.model.config.model_type) else []


def list_layers(checkpoint: Checkpoint) -> list[list[nn.Module]]:
    """List the layers of each stack."""
    model = checkpoint.model
    return [
        [model.get_submodule(f"{stack.prefix}.{index}") for index in range(stack.layers)]
        for stack in list_stacks(model.config, checkpoint.head).values()
    ]


def factorize(name: str, hessian: Tensor, cure: str) -> Curvature:
    """Factorize the Hessian of what comes into `name`, in place. Raises StageError with `cure`
    where that is not finite or has no inverse.
    """
    require_finite({name: hessian}, "the Hessian of ", cure)
    try:
        return factorize_hessian(hessian)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it is there
        raise StageError(f"the Hessian of {name} has no inverse; {cure}") from error
