"""Refit layers to those of their inputs that stay. Chooses no units, and removes none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from compressor.compression.calibration import Calibration
from compressor.compression.importance import is_transposed, linear_modules
from compressor.compression.layer_inputs import add_products
from compressor.compression.pruning import TOO_LARGE
from compressor.compression.sparsegpt import DAMPING
from compressor.core.numbers import require_finite
from compressor.models.structure import Units
from compressor.models.surgery import take_units


def add_affine_products(total: Tensor | None, tokens: Tensor) -> Tensor:
    """Add `Σ x xᵀ` over tokens, each x with a 1 at its end, which a bias multiplies."""
    return add_products(total, functional.pad(tokens, (0, 1), value=1.0))


@torch.no_grad()
def refit_inputs(weight: Tensor, products: Tensor, kept: Tensor) -> Tensor:
    """Refit a weight [outputs, inputs] to the `kept` of its inputs alone: [outputs, kept], float32.

    products: `Σ x xᵀ` over calibration tokens, [inputs, inputs]. The result W' makes
    `Σ ‖W x − W' x_kept‖² + λ ‖W' − W_kept‖²` least, λ being `DAMPING` times the mean of the
    diagonal, as in SparseGPT: what is pruned at once by structured OBS (ZipLM, arXiv 2302.04089).
    """
    gone = torch.ones(len(products), dtype=torch.bool, device=weight.device)
    gone[kept] = False
    damped, old = products[kept][:, kept], weight.float()
    damped.diagonal().add_(DAMPING * products.diagonal().mean())
    pushed: Tensor = torch.linalg.solve(damped, products[kept][:, gone] @ old[:, gone].T)
    return old[:, kept] + pushed.T


@torch.no_grad()
def refit_outputs(calibration: Calibration, kept: Iterable[tuple[Units, Sequence[int]]]) -> None:
    """Refit, in place, what multiplies the outputs of units, to those of them that are kept.

    A bias takes part. A weight with a mask stays as it is: its zeros could not.
    """
    checkpoint = calibration.checkpoint
    chosen = {units.output: (units, indices) for units, indices in kept}
    weights = {n: checkpoint.get_parameter(n) for n in chosen if n not in checkpoint.masks}
    modules = linear_modules(checkpoint.model, weights)
    for shared, products in calibration.sum_by_layer(modules, add_affine_products, "dense"):
        for name, module in shared.items():
            require_finite({name: products}, "the Hessian of ", TOO_LARGE)
            _refit_module(module, products, *chosen[name])


def _refit_module(module: Any, products: Tensor, units: Units, kept: Sequence[int]) -> None:
    rows = module.weight.data.T if is_transposed(module) else module.weight.data
    inputs = torch.arange(rows.shape[1], device=rows.device)
    places = take_units(inputs, 0, units.count, kept)
    if module.bias is None:
        rows[:, places] = refit_inputs(rows, products[:-1, :-1], places).to(rows.dtype)
        return
    affine = torch.cat([rows, module.bias.data[:, None]], 1)
    new = refit_inputs(affine, products, functional.pad(places, (0, 1), value=len(inputs)))
    rows[:, places], module.bias.data[:] = new[:, :-1].to(rows.dtype), new[:, -1]
