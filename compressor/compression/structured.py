"""Choose heads and neurons by what the loss does without them when the others make up for it.

Structured OBS (ZipLM, arXiv 2302.04089), here weighted by how much the loss needs each output.
Removes nothing: `models.surgery` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressor.compression.calibration import Calibration
from compressor.compression.importance import linear_modules
from compressor.compression.pruning import TOO_LARGE
from compressor.compression.reconstruction import (
    add_affine_products,
    damp_products,
    refit_module,
    view_affine,
)
from compressor.core.numbers import require_finite
from compressor.models.structure import Units

POOL, AT_ONCE = 64, 16
"""Units of least cost that are looked at closely, and how many of them go, before all are weighed
again: one by one it would be the whole inverse that changes each time.
"""


@dataclass
class _State:
    """A layer while units leave it: its weight [outputs, inputs], and its Hessian's inverse."""

    weight: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, module: Any, products: Tensor, gradients: Tensor) -> _State:
        """Begin with a module's own weight, its rows as large as their outputs are needed."""
        weight, products = view_affine(module, products)
        factor = torch.linalg.cholesky(damp_products(products))
        return cls(weight.float() * gradients.sqrt()[:, None], torch.cholesky_inverse(factor))

    def costs(self, count: int, size: int) -> Tensor:
        """Compute what it costs to lose each of `count` units of `size` inputs: [count].

        The least `Σ ‖W x − W' x‖²` with all of the unit's inputs gone, by the rest's best weights.
        """
        inputs = count * size
        blocks = self.weight[:, :inputs].T.reshape(count, size, -1)
        places = torch.arange(inputs, device=blocks.device).reshape(count, size)
        inside = self.inverse[places[:, :, None], places[:, None, :]]
        pushed: Tensor = torch.linalg.solve(inside, blocks)
        return (pushed * blocks).sum((1, 2))

    def take(self, places: Tensor) -> _State:
        return _State(self.weight[:, places], self.inverse[places][:, places])

    def lose(self, places: Tensor) -> None:
        """Take inputs away, in place; what stays makes up for them. Theirs cost nothing after."""
        pushed = torch.linalg.solve(self.inverse[places][:, places], self.inverse[places])
        self.weight -= self.weight[:, places] @ pushed
        self.inverse -= self.inverse[:, places] @ pushed
        self.weight[:, places] = 0
        self.inverse[places] = 0
        self.inverse[:, places] = 0
        self.inverse[places, places] = 1


def select_units(states: Sequence[_State], count: int, width: int) -> list[int]:
    """Select the `width` of `count` units whose absence costs least, summed over layers.

    The layers lose them one by one, in place. Inputs of a layer beyond those of units stay.
    """
    sizes = [len(state.inverse) // count for state in states]

    def weigh(parts: Sequence[_State], units: Sequence[int]) -> Tensor:
        costs = [part.costs(len(units), s) for part, s in zip(parts, sizes, strict=True)]
        is_gone = torch.tensor([unit in gone for unit in units], device=costs[0].device)
        return torch.stack(costs).sum(0).masked_fill(is_gone, torch.inf)

    gone: dict[int, None] = {}
    while len(gone) < count - width:
        order = weigh(states, range(count)).argsort(stable=True)
        pool = order[: min(POOL, count - len(gone))].tolist()
        parts = [s.take(_places(pool, size)) for s, size in zip(states, sizes, strict=True)]
        goes = []
        for _ in range(min(AT_ONCE, count - width - len(gone))):
            least = int(weigh(parts, pool).argmin())
            goes.append(pool[least])
            gone[pool[least]] = None
            for part, size in zip(parts, sizes, strict=True):
                part.lose(_places([least], size))
        for state, size in zip(states, sizes, strict=True):
            state.lose(_places(goes, size))
    return [unit for unit in range(count) if unit not in gone]


def _places(units: Sequence[int], size: int) -> Tensor:
    """List the inputs of units."""
    return (torch.tensor(units)[:, None] * size + torch.arange(size)).flatten()


def sum_output_gradients(
    calibration: Calibration,
    modules: Mapping[str, nn.Module],
    advance: Callable[[], object] = lambda: None,
) -> dict[str, Tensor]:
    """Sum `(dL/dy)²` over the calibration tokens, y being what a module gives: name → [outputs].

    What an error in an output costs, to second order: the diagonal of K-FAC's other factor.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:
        squares = gradient.flatten(0, -2).float().square().sum(0)
        sums[name] = sums.get(name, 0) + squares

    def watch(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(add, name))  # type: ignore[no-untyped-call]  # torch's

    weights: list[Any] = [module.weight for module in modules.values()]
    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(watch, name)))
        for batch in calibration.list_batches():
            torch.autograd.backward(calibration.loss(batch), inputs=weights)
            for weight in weights:
                weight.grad = None
            advance()
    require_finite(sums, "the gradients after ", TOO_LARGE)
    return sums


def choose_units(
    calibration: Calibration,
    widths: Iterable[tuple[Units, int]],
    *,
    refits: bool,
    advance: Callable[[], object] = lambda: None,
) -> list[tuple[Units, list[int]]]:
    """Choose which units stay, as many as `widths` say.

    Where it `refits`, what multiplies their outputs is refit in place to those that stay. `advance`
    is called after each row, and after each of `widths`.
    """
    checkpoint, chosen = calibration.checkpoint, list[tuple[Units, list[int]]]()
    together: dict[str, dict[str, tuple[Units, int]]] = {}
    for units, width in widths:
        group = together.setdefault(units.chosen_with or units.name, {})
        group[units.output] = units, width
    weights = {n: checkpoint.get_parameter(n) for group in together.values() for n in group}
    modules: dict[str, Any] = dict(linear_modules(checkpoint.model, weights))
    gradients, ready = sum_output_gradients(calibration, modules, advance), dict[str, Tensor]()
    for shared, products in calibration.sum_by_layer(modules, add_affine_products, "dense"):
        require_finite(dict.fromkeys(shared, products), "the Hessian of ", TOO_LARGE)
        ready |= dict.fromkeys(shared, products)
        for key in [key for key, group in together.items() if group.keys() <= ready.keys()]:
            group = together.pop(key)
            states = [_State.of(modules[name], ready[name], gradients[name]) for name in group]
            units, width = next(iter(group.values()))
            kept = select_units(states, units.count, width)
            for name, (units, _) in group.items():
                chosen.append((units, kept))
                known = ready.pop(name)
                if refits and name not in checkpoint.masks:
                    refit_module(modules[name], known, units, kept)
                advance()
    return chosen
