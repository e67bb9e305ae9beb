"""Each importance against a case computed by hand."""

from __future__ import annotations

import torch
from torch import nn

from compressor.compression.importance import random_scores, taylor_scores, wanda_scores
from compressor.compression.layer_inputs import add_products, add_squares, sum_inputs
from compressor.compression.sparsegpt import block_counts


def layer(weight: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), bias=False)
    made.weight.data = torch.tensor(weight)
    return made


def test_taylor_is_weight_times_gradient() -> None:
    """Loss = Σ (Wx)²: dL/dW = 2 (Wx) xᵀ, summed over two batches."""
    linear = layer([[1.0, 2.0], [0.0, -1.0]])
    batches = [{"x": torch.tensor([[1.0, 1.0]])}, {"x": torch.tensor([[2.0, 0.0]])}]
    scores = taylor_scores({"w": linear.weight}, lambda b: linear(b["x"]).square().sum(), batches)
    # Wx = [3, -1] and [2, 0]; gradients 2·[3,3;-1,-1] + 2·[4,0;0,0] = [14, 6; -2, -2].
    assert scores["w"].tolist() == [[14.0, 12.0], [0.0, 2.0]]
    assert linear.weight.grad is None


def test_wanda_is_weight_times_input_norm() -> None:
    """‖x₁‖ = ‖(3, 4)‖ = 5 and ‖x₂‖ = 1 over the tokens of all batches."""
    linear = layer([[1.0, -4.0], [-2.0, 0.5]])
    batches = [{"x": torch.tensor([[[3.0, 1.0]]])}, {"x": torch.tensor([[[4.0, 0.0]]])}]
    with sum_inputs({"w": linear}, add_squares) as squares:
        for batch in batches:
            linear(batch["x"])
    norms = squares["w"].sqrt()
    assert norms.tolist() == [5.0, 1.0]
    assert wanda_scores(linear.weight, norms).tolist() == [[5.0, 4.0], [10.0, 0.5]]


def test_hessian_is_the_sum_of_outer_products() -> None:
    """Over tokens and batches alike."""
    linear = layer([[1.0, 1.0]])
    batches = [{"x": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}, {"x": torch.tensor([[3.0, 0.0]])}]
    with sum_inputs({"w": linear}, add_products) as hessians:
        for batch in batches:
            linear(batch["x"])
    assert hessians["w"].tolist() == [[10.0, 2.0], [2.0, 5.0]]


def test_random_scores_repeat_with_their_seed_and_are_never_zero() -> None:
    """A zero would stand for a masked entry."""
    weights = {"a": torch.ones(50, 50)}
    first, second, other = (random_scores(weights, seed)["a"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert first.min() > 0


def test_blocks_lose_in_proportion_to_what_is_left_in_them() -> None:
    """Of 4 rows of 300 columns, the first 128 columns gone before: 172 columns lose all."""
    mask = torch.ones(4, 300, dtype=torch.bool)
    mask[:, :128] = False
    assert block_counts([mask, mask[:, :130]], 4 * 87) == [[0, 256, 88], [0, 4]]
