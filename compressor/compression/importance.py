"""Score how much each weight matters, by gradients and inputs. `thresholds` says which go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from compressor.models.recompute import recompute_layers

Batches = Iterable[dict[str, Tensor]]
Loss = Callable[[dict[str, Tensor]], Tensor]
"""A batch's loss, summed over its label tokens; calling it runs the model."""


def random_scores(weights: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Draw a uniform number in (0, 1] for each entry: what any other importance has to beat."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 1 - torch.rand(weight.shape, generator=generator).to(weight.device)
        for name, weight in weights.items()
    }


def taylor_scores(
    weights: Mapping[str, nn.Parameter],
    loss: Loss,
    batches: Batches,
    layers: Iterable[nn.Module] = (),
) -> dict[str, Tensor]:
    """Compute `|w · dL/dw|`: the first-order change of the loss if the entry were zero.

    L is summed over all label tokens of all batches (Molchanov et al., arXiv 1611.06440, there for
    whole feature maps). `layers` of the model are computed twice, so that what only one of them
    needs is kept at a time, beside weights and gradients.
    """
    parameters, scores = list(weights.values()), {}
    with recompute_layers(layers):
        for batch in batches:  # summed where the weights hold their gradients, and no second time
            torch.autograd.backward(loss(batch), inputs=parameters)
    for name, weight in weights.items():
        gradient, weight.grad = weight.grad, None
        scores[name] = torch.zeros_like(weight) if gradient is None else gradient
        scores[name].mul_(weight.detach()).abs_()
    return scores


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Compute `|w_ij| · ‖x_j‖₂` of a weight [outputs, inputs] (Wanda, arXiv 2306.11695)."""
    return weight.detach().abs().mul_(norms)


def linear_modules(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> dict[str, nn.Module]:
    """Find the module that multiplies by each weight: for a tied one the head."""
    by_weight = {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, nn.Linear) or is_transposed(module)
    }
    return {name: by_weight[id(weight)] for name, weight in weights.items()}


def is_transposed(module: nn.Module) -> bool:
    """Tell whether a module's weight is [inputs, outputs], as GPT-2's are."""
    return type(module).__name__ == "Conv1D"
