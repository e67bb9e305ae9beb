"""GPTQ against the loop of arXiv 2210.17323 in plain torch, and against every possible rounding."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from compressor.compression.gptq import round_columns
from compressor.compression.sparsegpt import factorize_hessian
from compressor.models.quantization import Kind
from compressor.models.quantized_layers import dequantize_weight, quantize_weight
from tests.compression.test_sparsegpt import draw_correlated


def inverse_factor(hessian: Tensor) -> Tensor:
    """Cholesky(H⁻¹)ᵀ in float64, of H with 1 % of its mean diagonal added."""
    damping = 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    return torch.linalg.cholesky(torch.linalg.inv(hessian.double() + damping)).T


def least_scale(row: Tensor, costs: Tensor) -> float:
    """The scale of a group of one row by trying them all: 16 values, on either side of 0."""
    extreme = float(row[row.abs().argmax()])
    best, least = 1.0, float("inf")
    for full in (extreme / -8, extreme / 7):
        for step in range(21):
            scale = float(torch.tensor(full * (1 - step / 50)).bfloat16()) or 1.0
            error = row - (row / scale).round().clamp(-8, 7) * scale
            if float((error**2 * costs).sum()) < least * (1 - 1e-9):
                best, least = scale, float((error**2 * costs).sum())
    return best


def round_as_published(weight: Tensor, hessian: Tensor, kind: Kind, size: int) -> Tensor:
    """The paper's Algorithm 1 without its blocks, each row by itself, in float64."""
    new, factor = weight.double().clone(), inverse_factor(hessian)
    stays, result = weight != 0, torch.zeros_like(new)
    for row in range(len(new)):
        scale = float(weight[row].abs().max()) / 127 or 1.0
        for j in range(new.shape[1]):
            if kind == "int4" and j % size == 0:
                group = torch.where(stays[row, j : j + size], new[row, j : j + size], 0)
                scale = least_scale(group, factor.diagonal()[j : j + size] ** -2.0)
            low, high = (-8, 7) if kind == "int4" else (-127, 127)
            if stays[row, j]:
                result[row, j] = (new[row, j] / scale).round().clamp(low, high) * scale
            error = (new[row, j] - result[row, j]) / factor[j, j]
            new[row, j:] -= error * factor[j, j:]
    return result


@pytest.mark.parametrize(("kind", "size"), [("int8", 0), ("int4", 24), ("int4", 160)])
def test_weights_are_those_of_the_paper(kind: Kind, size: int) -> None:
    """Whatever the blocks; a pruned entry stays zero, and what comes into it is made up for."""
    weight, inputs = draw_correlated(800, 480)
    weight = weight[:6] * (torch.rand(6, 480, generator=torch.Generator().manual_seed(1)) > 0.3)
    hessian = inputs.T @ inputs
    stored = round_columns(weight, factorize_hessian(hessian.clone()), kind, size)
    result = dequantize_weight(*stored)
    expected = round_as_published(weight, hessian, kind, size)
    assert not bool(result[weight == 0].any())
    assert float((result - expected).abs().max()) < 1e-5

    def cost(rounded: Tensor) -> float:
        return float(((rounded - weight) @ inputs.T).square().sum())

    nearest = dequantize_weight(*quantize_weight(weight, kind, size))
    assert cost(result) < 0.5 * cost(nearest)


def test_it_is_near_the_best_of_all_roundings() -> None:
    """Groups of eight of which five are pruned leave 16³ ways to round a row, with its scale. The
    last entry is, given the others, the best of its 16.
    """
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(64, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    inputs += 0.2 * torch.randn(64, 8, generator=generator)
    weight = torch.randn(40, 8, generator=generator) * torch.tensor([1, 0, 0, 1, 0, 0, 0, 1])
    hessian = inputs.T @ inputs
    stored = round_columns(weight, factorize_hessian(hessian.clone()), "int4", 8)
    result, scales = dequantize_weight(*stored), stored[1].float()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(8)

    def cost(rounded: Tensor) -> Tensor:
        """Of ways to round each row, [rows, ways, 8]."""
        error = rounded - weight[:, None]
        return ((error @ hessian) * error).sum(2)

    every = torch.zeros(16**3, 8)
    every[:, [0, 3, 7]] = torch.tensor([*product(range(-8, 8), repeat=3)]).float()
    least = cost(every * scales[:, :, None]).amin(1)
    costs = cost(result[:, None])[:, 0]
    assert bool((costs >= least * (1 - 1e-4)).all())
    assert float(costs.sum()) < 1.3 * float(least.sum())
    last = result[:, None].repeat(1, 16, 1)
    last[:, :, 7] = torch.arange(-8, 8) * scales
    assert torch.allclose(costs, cost(last).amin(1), rtol=1e-4)
