"""Score how much each weight matters, by gradients and inputs. `thresholds` says which go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

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
    weights: Mapping[str, nn.Parameter], loss: Loss, batches: Batches
) -> dict[str, Tensor]:
    """Compute `|w · dL/dw|`: the first-order change of the loss if the entry were zero.

    L is summed over all label tokens of all batches (Molchanov et al., arXiv 1611.06440, there for
    whole feature maps).
    """
    parameters = list(weights.values())
    gradients = [torch.zeros_like(weight) for weight in parameters]
    for batch in batches:
        torch._foreach_add_(gradients, list(torch.autograd.grad(loss(batch), parameters)))
    scores = [(w.detach() * g).abs() for w, g in zip(parameters, gradients, strict=True)]
    return dict(zip(weights, scores, strict=True))


def wanda_scores(weights: Mapping[str, Tensor], norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute `|w_ij| · ‖x_j‖₂` of [outputs, inputs] weights (Wanda, arXiv 2306.11695)."""
    return {name: weight.detach().abs() * norms[name] for name, weight in weights.items()}


@torch.no_grad()
def input_norms(
    modules: Mapping[str, nn.Module], loss: Loss, batches: Batches
) -> dict[str, Tensor]:
    """Compute ‖x_j‖₂ of each input of each module over all tokens: name → [inputs]."""
    squares: dict[str, Tensor] = {}

    def add(name: str, tokens: Tensor) -> None:
        squares[name] = squares.get(name, 0) + tokens.square().sum(0)

    with watch_inputs(modules, add):
        for batch in batches:
            loss(batch)
    return {name: square.sqrt() for name, square in squares.items()}


@torch.no_grad()
def compute_hessians(
    modules: Mapping[str, nn.Module], loss: Loss, batches: Batches
) -> dict[str, Tensor]:
    """Compute `Σ x xᵀ` over all tokens for each module: name → [inputs, inputs], float32.

    Half the Hessian of `‖W x − W' x‖²` with regard to a row of W'; the factor does not matter.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, tokens: Tensor) -> None:
        if name not in sums:
            sums[name] = tokens.new_zeros(tokens.shape[1], tokens.shape[1])
        sums[name].addmm_(tokens.T, tokens)

    with watch_inputs(modules, add):
        for batch in batches:
            loss(batch)
    return sums


@contextmanager
def watch_inputs(
    modules: Mapping[str, nn.Module], add: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `add(name, [tokens, inputs])` with what comes into each module, in float32.

    A padded position is a token like any other here.
    """

    def hook(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        add(name, inputs[0].detach().flatten(0, -2).float())

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, name)))
        yield


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
