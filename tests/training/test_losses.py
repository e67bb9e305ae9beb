"""The label loss is a sum over labels; tests.models.test_families holds it to every family's.

How a batch is cut: test_distillation.
"""

from __future__ import annotations

import math

import pytest
import torch

from compressor.training.losses import LabelLoss
from tests.training.test_distillation import batch, build_pico


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("t5", {}), ("t5", {"feed_forward_proj": "gated-gelu"}), ("mt5", {}), ("bart", {})],
)
def test_dropout_and_autocast_are_the_models_own(kind: str, changes: dict) -> None:
    """In training mode, from one generator state: nothing before the head was changed. Under
    bfloat16's autocast the cross-entropy is float32, within 3 digits of the float32 one.
    """
    model = build_pico(kind, 0, **changes).train()
    torch.manual_seed(3)
    theirs = model(**batch()).loss * 10
    torch.manual_seed(3)
    assert LabelLoss(model)(batch()).item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = LabelLoss(model.eval())(batch()).item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = LabelLoss(model)(batch())
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(expected, rel=2e-2)


def test_a_model_in_bfloat16_has_its_cross_entropy_in_float32() -> None:
    """Not only under autocast: of its own logits, the sum is right to float32's digits."""
    model = build_pico("bart", 0).bfloat16()
    given = batch() | {"labels": torch.arange(30, 45).view(3, 5)}
    with torch.no_grad():
        summed = LabelLoss(model)(given)
        logits = model(**given).logits.double()
    expected = -logits.log_softmax(-1).gather(2, given["labels"][..., None]).sum()
    assert summed.dtype == torch.float32
    assert float(summed) == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_knows_nothing_pays_log_of_the_vocabulary_for_each_token() -> None:
    """By hand: a head of zeros gives ln 50 a label token; padding does not count."""
    model = build_pico("t5", 0)
    torch.nn.init.zeros_(model.lm_head.weight)
    summed = LabelLoss(model)(batch())
    assert summed.item() == pytest.approx(10 * math.log(50))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "gpt2", "llama"])
def test_a_multi_label_loss_is_the_models_own(kind: str) -> None:
    """Summed over rows and labels, with its gradients; an empty share gives 0."""
    model, given = build_pico(kind, 0, "labels"), batch("labels")
    loss = LabelLoss(model)
    theirs = model(**given | {"labels": given["labels"].float()}).loss * 9
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = loss(given)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert loss(batch("labels", [])).item() == 0
    for name, gradient in expected.items():
        summed = model.get_parameter(name).grad
        torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-5, msg=name)
