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


def damp_products(products: Tensor) -> Tensor:
    """Add `DAMPING` times the mean of the diagonal to it, as SparseGPT does; a new tensor."""
    mean = products.diagonal().mean().clamp(min=1e-30)  # of inputs that are always 0, too
    return products + DAMPING * mean * torch.eye(len(products), device=products.device)


def view_affine(module: Any, products: Tensor) -> tuple[Tensor, Tensor]:
    """Give a module's weight as [outputs, inputs], its bias after them if there is one, and the
    `products` of those inputs.
    """
    rows = module.weight.data.T if is_transposed(module) else module.weight.data
    if module.bias is None:
        return rows, products[:-1, :-1]
    return torch.cat([rows, module.bias.data[:, None]], 1), products


@torch.no_grad()
def refit_inputs(weight: Tensor, products: Tensor, kept: Tensor) -> Tensor:
    """Refit a weight [outputs, inputs] to the `kept` of its inputs alone: [outputs, kept], float32.

    products: `Σ x xᵀ` over calibration tokens, [inputs, inputs]. The result W' makes
    `Σ ‖W x − W' x_kept‖² + λ ‖W' − W_kept‖²` least, λ being `DAMPING` times the mean of the
    diagonal, as in SparseGPT: what is pruned at once by structured OBS (ZipLM, arXiv 2302.04089).
    """
    gone = torch.ones(len(products), dtype=torch.bool, device=weight.device)
    gone[kept] = False
    damped, old = damp_products(products)[kept][:, kept], weight.float()
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
            refit_module(module, products, *chosen[name])


@torch.no_grad()
def refit_module(module: Any, products: Tensor, units: Units, kept: Sequence[int]) -> None:
    """Refit, in place, what multiplies the outputs of units, to those of them that are kept."""
    affine, products = view_affine(module, products)
    rows = module.weight.data.T if is_transposed(module) else module.weight.data
    places = take_units(torch.arange(rows.shape[1], device=rows.device), 0, units.count, kept)
    rest = torch.arange(rows.shape[1], affine.shape[1], device=rows.device)  # the bias, if any
    new = refit_inputs(affine, products, torch.cat([places, rest])).to(rows.dtype)
    rows[:, places] = new[:, : len(places)]
    if module.bias is not None:
        module.bias.data[:] = new[:, -1]
