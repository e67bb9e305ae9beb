"""Amounts of layers by the predicted loss, against a plain loop and the loss itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from compressor.compression.calibration import Calibration
from compressor.compression.layer_amounts import (
    MOST_APART,
    SMOOTHING,
    bound_counts,
    choose_layer_amounts,
)
from compressor.compression.sparsegpt import DAMPING, factorize_hessian, prune_with_sparsegpt
from compressor.models.checkpoint import Checkpoint
from compressor.stages.prune import Prune
from tests.engine.test_plan import plan_recipe
from tests.harness.stages import measure, pico_t5, rows_of_text, stage_context

TARGET = {"nonzero_ratio": 0.5}


def test_no_other_counts_within_the_bounds_cost_less() -> None:
    """Against all splits of the total over three layers, each of which loses its smallest."""
    generator = torch.Generator().manual_seed(3)
    scales = {"a": 1.0, "b": 1.3, "c": 5.0}
    scores = {n: torch.rand(5, 8, generator=generator) * scale for n, scale in scales.items()}
    masks = {name: torch.ones(5, 8, dtype=torch.bool) for name in scores}
    masks["b"][:2] = False
    scores["b"][:2] = 0
    left, total = {"a": 40, "b": 24, "c": 40}, 52
    counts = bound_counts(scores, masks, total)
    near = {n: [k for k in range(s + 1) if abs(k / s - 0.5) < MOST_APART + 1 / s] for n, s in
            left.items()}  # fmt: skip
    sums = {n: scores[n][masks[n]].square().sort().values.cumsum(0).tolist() for n in scores}
    costs = {
        split: sum(sums[name][k - 1] for name, k in zip(scores, split, strict=True))
        for split in itertools.product(*near.values())
        if sum(split) == total
    }
    assert sum(counts.values()) == total
    assert costs[tuple(counts.values())] == pytest.approx(min(costs.values()))
    assert counts["c"] / 40 == pytest.approx(0.5 - MOST_APART, abs=1 / 40) != counts["a"] / 40


def test_scores_are_the_obs_errors_weighted_by_squared_gradients(tmp_path) -> None:
    """Of the head: counted by block from the inputs, gradients and inverse computed here."""
    data, checkpoint = rows_of_text(tmp_path), pico_t5()
    rows = stage_context(tmp_path / "c", data).rows("train").first(4)
    calibration = Calibration(checkpoint, checkpoint.tokenize_rows(rows, data))
    weight = checkpoint.get_parameter("shared.weight")
    hessian, squares = torch.zeros(weight.shape[1], weight.shape[1]), torch.zeros(len(weight))
    for batch in calibration.list_batches():
        output = checkpoint.model(**batch, output_hidden_states=True)
        (gradients,) = torch.autograd.grad(output.loss * batch["labels"].numel(), output.logits)
        squares += gradients[0].square().sum(0)
        states = output.decoder_hidden_states[-1][0].detach() * checkpoint.model.model_dim**-0.5
        hessian += states.T @ states
    amounts = choose_layer_amounts(calibration, ["shared.weight"], 500)
    squares += SMOOTHING * squares.mean()
    torch.testing.assert_close(amounts["shared.weight"].gradients, squares, rtol=1e-3, atol=1e-9)
    assert amounts["shared.weight"].count == 500
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    cost = (weight.detach() / factor.diagonal()).square() * squares[:, None]
    goes = cost.flatten().argsort()[:500] % weight.shape[1]
    assert amounts["shared.weight"].blocks == [int((goes // 128 == 0).sum())]


def test_outputs_that_matter_more_lose_less_and_are_updated_as_before() -> None:
    """Pruned with gradients is a pruning of the weight whose rows are as large as they matter."""
    generator = torch.Generator().manual_seed(1)
    weight, inputs = (torch.randn(n, 12, generator=generator) for n in (6, 40))
    curvature = factorize_hessian(inputs.T @ inputs)
    gradients = torch.tensor([9.0, 1, 1, 1, 1, 0.01])
    whole = torch.ones(6, 12, dtype=torch.bool)
    new, mask = prune_with_sparsegpt(weight, curvature, whole, [36], None, gradients)
    scale = gradients.sqrt()[:, None]
    scaled, same = prune_with_sparsegpt(weight * scale, curvature, whole, [36])
    assert torch.equal(mask, same) and int(mask.sum()) == 36
    torch.testing.assert_close(new, scaled / scale)
    assert mask[0].sum() > mask[1:5].sum(1).max() and mask[5].sum() == 0


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "wanda", "sparsegpt"])
def test_a_target_alone_is_reached_exactly(tmp_path, importance) -> None:
    """By each importance, and from a model that has lost some already."""
    data, stage = rows_of_text(tmp_path), {"allocation": "loss", "importance": importance}
    measure("prune", pico_t5(), data, tmp_path / "a", amounts={"lm_head": 0.2})
    first = Checkpoint.load(tmp_path / "a" / "prune")
    metrics = measure("prune", first, data, tmp_path, target=TARGET, calibration_rows=4, **stage)
    pruned = Checkpoint.load(tmp_path / "prune")
    sizes = pruned.measure_sizes(tmp_path / "prune")
    assert sizes["nonzero"] == round(0.5 * sizes["parameters"])
    shares = metrics["layer_amounts"].values()
    assert max(shares) - min(shares) <= 2 * MOST_APART + 0.01


@pytest.mark.parametrize("importance", ["wanda", "sparsegpt"])
def test_curves_are_those_of_the_prunings_that_a_target_makes(tmp_path, importance) -> None:
    """Each point, though inputs are summed up once, is the loss of a model pruned by itself."""
    data = rows_of_text(tmp_path)
    settings = {"importance": importance, "calibration_rows": 4}
    curves = measure(
        "sensitivity", pico_t5(), data, tmp_path, rows=4, amounts=[0.3, 0.6], **settings
    )
    for point in curves["groups"]["lm_head"]["points"]:
        folder, amounts = tmp_path / str(point["amount"]), {"lm_head": point["amount"]}
        measure("prune", pico_t5(), data, folder, amounts=amounts, **settings)
        alone = measure("sensitivity", folder / "prune", data, folder, rows=4, only=["lm_head"],
                        amounts=[0.5], importance="magnitude")  # fmt: skip
        assert alone["loss"] == pytest.approx(point["loss"], rel=1e-6) != curves["loss"]


def test_what_is_there_chooses_importance_and_amounts(recipe) -> None:
    """A plan, and so a key, names the choice; curves of an earlier stage are taken; a model
    without a training is pruned by magnitude, all groups alike.
    """
    amounts = "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}"
    target = (amounts, "target: {nonzero_ratio: 0.5}")
    curves = (
        ("prune, recover", "sensitivity, prune, recover"),
        ("  load: {}", "  load: {}\n  sensitivity: {}"),
    )
    untrained = ("finetune, prune", "prune")
    for changes, expected in (
        ((), ("sparsegpt", None)),
        ((target,), ("sparsegpt", "loss")),
        ((target, *curves), ("sparsegpt", "curves")),
        ((target, untrained), ("magnitude", "uniform")),
    ):
        stage = plan_recipe(recipe(*changes)).node("prune").stage
        assert isinstance(stage, Prune)
        parameters = stage.parameters()
        assert (parameters["importance"], parameters.get("allocation")) == expected
        assert "(chosen: " in stage.choice
