"""SparseGPT against Algorithm 1 of arXiv 2301.00774, written from the paper in plain torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compressor.compression.importance import wanda_scores
from compressor.compression.sparsegpt import (
    block_counts,
    factorize_hessian,
    prune_with_sparsegpt,
)
from compressor.compression.thresholds import prune_rows, row_counts


def prune_as_published(
    weight: Tensor, hessian: Tensor, sparsity: float = 0.5, n_m: tuple[int, int] | None = None
) -> Tensor:
    """Algorithm 1 in float64; its B is 128, its Bs is 128 or M, its λ is 1 % of the mean."""
    new, hessian = weight.double().clone(), hessian.double()
    rows, columns = new.shape
    dampening = 0.01 * hessian.diagonal().mean()
    identity = torch.eye(columns, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian + dampening * identity)
    inverse = torch.linalg.cholesky(inverse).T
    keep = torch.ones(rows, columns, dtype=torch.bool)
    mask_columns = 128 if n_m is None else n_m[1]
    for i in range(0, columns, 128):
        errors = torch.zeros(rows, 128, dtype=torch.float64)
        for j in range(i, min(i + 128, columns)):
            if j % mask_columns == 0:
                end = min(j + mask_columns, columns)
                cost = (new[:, j:end] / inverse.diagonal()[j:end]) ** 2
                if n_m is None:
                    goes = round(sparsity * cost.numel())
                    order = cost.flatten().argsort()[:goes]
                    keep[:, j:end].view(rows, -1)[order // (end - j), order % (end - j)] = False
                else:
                    order = cost.argsort(dim=1)[:, : n_m[1] - n_m[0]]
                    keep[:, j:end].scatter_(1, order, value=False)
            errors[:, j - i] = new[:, j] / inverse[j, j] * ~keep[:, j]
            end = min(i + 128, columns)
            new[:, j:end] -= torch.outer(errors[:, j - i], inverse[j, j:end])
        new[:, end:] -= errors[:, : end - i] @ inverse[i:end, end:]
    return new * keep


def draw_correlated(tokens: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights, and inputs of which few directions and scales carry most."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    inputs = torch.randn(tokens, columns // 4, generator=generator) @ mixing
    inputs += 0.3 * torch.randn(inputs.shape, generator=generator)
    inputs *= torch.rand(columns, generator=generator) * 2
    return torch.randn(24, columns, generator=generator), inputs


@pytest.mark.parametrize("n_m", [(2, 4), (4, 8), (1, 4), (8, 32), None])
@pytest.mark.parametrize(("tokens", "columns"), [(288, 96), (960, 320), (40, 64)])
def test_masks_and_weights_are_those_of_the_paper(
    n_m: tuple[int, int] | None, tokens: int, columns: int
) -> None:
    """N:M masks group by group from updated weights, others per 128 columns; with damping, without
    which the Hessian of fewer tokens than inputs has no inverse.
    """
    weight, inputs = draw_correlated(tokens, columns)
    hessian = inputs.T @ inputs
    ones = torch.ones_like(weight, dtype=torch.bool)
    (counts,) = block_counts([ones], ones.numel() // 2)
    new, mask = prune_with_sparsegpt(
        weight, factorize_hessian(hessian.clone()), ones, None if n_m else counts, n_m
    )
    expected = prune_as_published(weight, hessian, n_m=n_m)
    assert torch.equal(mask, expected != 0)
    assert torch.allclose(new.double(), expected, atol=2e-4 if tokens > columns else 1e-3)


@pytest.mark.parametrize("n_m", [(2, 4), None])
@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e15])
def test_the_scale_of_the_activations_changes_nothing(
    n_m: tuple[int, int] | None, scale: float
) -> None:
    """Weights of inputs that are never active go first, and no other makes up for them."""
    weight, inputs = draw_correlated(480, 160)
    dead = [1, 7, 50, 51, 159]
    inputs[:, dead] = 0
    scaled = inputs * scale
    ones = torch.ones_like(weight, dtype=torch.bool)
    (counts,) = block_counts([ones], ones.numel() // 2)
    curvature = factorize_hessian(scaled.T @ scaled)
    new, mask = prune_with_sparsegpt(weight, curvature, ones, None if n_m else counts, n_m)
    assert not bool(mask[:, dead].any())
    hessian = inputs.T @ inputs
    hessian[dead, dead] = hessian.diagonal().sum() / (160 - len(dead))  # no part of the mean
    weight[:, dead] = 0
    expected = prune_as_published(weight, hessian, n_m=n_m)
    assert torch.equal(mask, expected != 0)
    assert torch.allclose(new.double(), expected, atol=2e-4)


def test_weights_of_inputs_that_are_never_active_go_first_with_wanda() -> None:
    """However large they are, and however small what comes into the others."""
    weight = torch.tensor([[50.0, 0.1, 0.2, 60.0], [50.0, 0.2, 0.1, 60.0]])
    norms = torch.tensor([0.0, 1e-20, 1e-20, 0.0])
    ones = torch.ones_like(weight, dtype=torch.bool)
    mask = prune_rows(wanda_scores(weight, norms), ones, *row_counts([ones], 6))
    assert mask.tolist() == [[False, False, True, False], [False, True, False, False]]


def test_what_is_masked_counts_among_what_an_n_m_group_loses() -> None:
    """One entry of each group is gone before: one more goes; where three are, none."""
    weight, inputs = draw_correlated(200, 32)
    old = torch.ones_like(weight, dtype=torch.bool)
    old[:12, 2::4] = False
    old[12:, 1:] = torch.arange(1, 32) % 4 == 0
    new, mask = prune_with_sparsegpt(
        weight * old, factorize_hessian(inputs.T @ inputs), old, n_m=(2, 4)
    )
    assert not bool((mask & ~old).any()) and not bool(new[~mask].any())
    assert mask.view(24, 8, 4).sum(2).tolist() == [[2] * 8] * 12 + [[1] * 8] * 12
