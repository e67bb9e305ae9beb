"""Heads and neurons that others can stand in for go first: against least squares of each choice."""

from __future__ import annotations

import pytest
import torch

from compressor.compression.calibration import Calibration
from compressor.compression.reconstruction import damp_products
from compressor.compression.structured import _State, select_units, sum_output_gradients
from compressor.stages.slice import Slice
from tests.harness.models import build_case, examples, outputs
from tests.harness.stages import rows_of_text, run_stage, tokenizer


def remaining_error(weight, hessian, gone: list[int], size: int) -> float:
    """The least error of a layer that has lost these units, whatever the others' weights."""
    inputs = [unit * size + place for unit in gone for place in range(size)]
    rest = [place for place in range(len(hessian)) if place not in inputs]
    root = torch.linalg.cholesky(hessian).T
    best = torch.linalg.lstsq(root[:, rest], root @ weight.T).solution
    return (root[:, rest] @ best - root @ weight.T).square().sum().item()


def make_layers(count: int, size: int, layers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights, and Hessians of inputs that depend on each other; a bias's 1 is the last input."""
    generator = torch.Generator().manual_seed(count)
    made = []
    for _ in range(layers):
        inputs = count * size
        tokens = torch.randn(50, inputs // 2, generator=generator, dtype=torch.float64)
        mixed = tokens @ torch.randn(inputs // 2, inputs, generator=generator, dtype=torch.float64)
        affine = torch.cat([mixed, torch.ones(50, 1)], 1)
        weight = torch.randn(5, inputs + 1, generator=generator, dtype=torch.float64)
        made.append((weight, damp_products(affine.T @ affine)))
    return made


@pytest.mark.parametrize(("count", "size", "layers"), [(12, 1, 1), (6, 3, 1), (5, 2, 3)])
def test_those_units_go_without_which_the_rest_does_best(count, size, layers) -> None:
    """One by one, in all layers that choose together, with the other weights solved anew."""
    made = make_layers(count, size, layers)
    gone: list[int] = []
    while len(gone) < count // 2:
        errors = {
            unit: sum(remaining_error(w, h, [*gone, unit], size) for w, h in made)
            for unit in range(count)
            if unit not in gone
        }
        gone.append(min(errors, key=lambda unit: errors[unit]))
    states = [_State(weight.clone(), torch.linalg.inv(hessian)) for weight, hessian in made]
    kept = select_units(states, count, count - count // 2)
    assert kept == sorted(set(range(count)) - set(gone))


def test_many_neurons_go_a_few_at_a_time_and_cost_little_more() -> None:
    """Of 150 neurons 100 go, looked at 64 at a time: within 5 % of the error of one by one."""
    weight, hessian = make_layers(150, 1, 1)[0]
    whole, left, inverse = weight.clone(), list(range(150)), torch.linalg.inv(hessian)
    while len(left) > 50:
        costs = whole.square().sum(0)[left] / inverse.diagonal()[left]
        gone = left.pop(int(costs.argmin()))
        whole -= whole[:, gone, None] * inverse[gone] / inverse[gone, gone]
        inverse = inverse - torch.outer(inverse[:, gone], inverse[gone]) / inverse[gone, gone]
    state = _State(weight.clone(), torch.linalg.inv(hessian))
    kept = select_units([state], 150, 50)
    errors = [
        remaining_error(weight, hessian, sorted(set(range(150)) - set(stays)), 1)
        for stays in (kept, left)
    ]
    assert errors[0] < 1.05 * errors[1]


def test_outputs_weigh_as_the_loss_needs_them() -> None:
    """Squared gradients of the loss, from plain autograd, summed over tokens and rows."""
    checkpoint = build_case("t5", {"vocab_size": 304}, "seq2seq_lm")
    checkpoint.tokenizer = tokenizer()
    rows, path = examples("seq2seq_lm", 3), "decoder.block.1.layer.2.DenseReluDense.wo"
    module, expected, given = checkpoint.model.get_submodule(path), 0, []
    hook = module.register_forward_hook(lambda *values: given.append(values[-1]))
    for row in range(3):
        batch = rows.batch([row], checkpoint.pad_id)
        loss = checkpoint.model(**batch).loss * len(rows.targets[row])
        (gradient,) = torch.autograd.grad(loss, given.pop())
        expected = expected + gradient.flatten(0, -2).square().sum(0)
    hook.remove()
    sums = sum_output_gradients(Calibration(checkpoint, rows), {"wo": module})
    torch.testing.assert_close(sums["wo"], expected, rtol=1e-4, atol=1e-9)
    assert module.weight.grad is None


@pytest.mark.parametrize(
    ("model_type", "head", "kind"),
    [
        ("t5", "seq2seq_lm", "heads"),
        ("bart", "seq2seq_lm", "feed_forward"),
        ("longt5", "seq2seq_lm", "heads"),
        ("gpt2", "causal_lm", "feed_forward"),
        ("llama", "causal_lm", "heads"),
    ],
)
def test_units_that_are_there_twice_go_and_change_next_to_nothing(
    tmp_path, model_type, head, kind
) -> None:
    """Each unit stands beside a copy that has the larger output weights: what stays does the work
    of both. By magnitude the copies stay, which are half of each pair, too, and nothing makes up
    for the others.
    """
    sizes = {
        "t5": {"num_heads": 4},
        "longt5": {"num_heads": 4},
        "llama": {"num_key_value_heads": 2},
    }.get(model_type, {})
    longer = {"max_position_embeddings": 64} if model_type == "bart" else {"n_positions": 64}
    checkpoint = build_case(model_type, {"vocab_size": 304, **sizes, **longer}, head)
    checkpoint.tokenizer = tokenizer()
    state = checkpoint.model.state_dict()
    for units in checkpoint.derive_facts().list_units(kind):
        for name, axis in units.tensors.items():
            if name not in state:  # a bias that this config has none of
                continue
            blocks = state[name].movedim(axis, 0)
            half = len(blocks) // 2
            blocks[half:] = blocks[:half] * (1.5 if name == units.output else 1)
    about = {"task": "language_modeling"} if head == "causal_lm" else {}
    data, expected = rows_of_text(tmp_path, **about), outputs(checkpoint.model)
    differences = {}
    for importance in ("obs", "magnitude"):
        stage = Slice(**{kind: 0.5}, importance=importance, calibration_rows=8)
        smaller, _ = run_stage(stage, checkpoint, tmp_path / importance, data)
        differences[importance] = (outputs(smaller.model) - expected).abs().max().item()
    assert differences["obs"] < 0.3 * differences["magnitude"]
