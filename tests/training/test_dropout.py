"""The faster dropout: the right share, the right scale, the generator that checkpoints keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig

from compressor.training.dropout import (
    FasterDropout,
    disable_dropout,
    disable_layer_drop,
    drop_entries,
)
from compressor.training.losses import LabelLoss
from tests.harness.models import CASES, build_case, examples


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_share_and_the_scale_are_dropouts(p: float) -> None:
    """Of a million ones a share p goes (5 standard deviations), the rest is 1 / (1 - p)."""
    torch.manual_seed(0)
    out = drop_entries(torch.ones(1000, 1000), p)
    gone = float((out == 0).double().mean())
    assert gone == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 1e-5)
    assert float(out.max()) == pytest.approx(1 / (1 - p), rel=1e-3)


def test_neighbours_are_independent() -> None:
    """Four entries share one draw; each pair of lanes drops together no more often than p²."""
    torch.manual_seed(0)
    gone = (drop_entries(torch.ones(250_000, 4), 0.5) == 0).double()
    together = gone.T @ gone / len(gone)
    expected = torch.full((4, 4), 0.25, dtype=torch.float64).fill_diagonal_(0.5)
    assert (together - expected).abs().max() < 0.005


def test_the_gradient_passes_where_the_entry_stayed() -> None:
    """And is scaled as the entry was."""
    x = torch.ones(101, requires_grad=True)
    out = drop_entries(x, 0.25)
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())


def test_it_repeats_from_a_saved_generator_and_leaves_evaluation_alone() -> None:
    """What resuming needs; and in evaluation mode, or outside the context, nothing changes."""
    layer, x = nn.Dropout(0.3), torch.ones(64)
    with FasterDropout():
        state = torch.get_rng_state()
        first = layer(x)
        torch.set_rng_state(state)
        assert torch.equal(layer(x), first)
        assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(3)
    expected = nn.functional.dropout(x, 0.3)
    torch.manual_seed(3)
    assert torch.equal(layer.train()(x), expected)


@pytest.mark.parametrize(
    ("kind", "changes", "head"), [case for case in CASES if case[2] != "none"], ids=str
)
def test_without_dropout_the_loss_in_training_is_that_of_evaluation(kind, changes, head) -> None:
    """In every family, with each rate of its config at a half; the config keeps them."""
    values = AutoConfig.for_model(kind).to_dict().items()
    rates = {key: 0.5 for key, rate in values if "drop" in key and isinstance(rate, int | float)}
    rates = {key: rate for key, rate in rates.items() if "layer" not in key}
    model = build_case(kind, changes | rates, head).model
    loss, batch = LabelLoss(model), examples(head, 3).batch([0, 1, 2], 0)
    expected = loss.eval()(batch)
    assert loss.train()(batch) != expected
    disable_dropout(model)
    disable_layer_drop(model)  # which `finetune` always does
    torch.testing.assert_close(loss.train()(batch), expected, rtol=1e-5, atol=1e-5)
    assert all(getattr(model.config, key) == 0.5 for key in rates)
