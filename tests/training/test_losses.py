"""The label loss is a sum over labels; tests.models.test_families holds it to every family's.

How a batch is cut: test_distillation.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from compressor.data.batching import collate_rows
from compressor.training.losses import LabelLoss
from tests.harness.models import UNTIED, build_case
from tests.training import test_distillation

ROWS = [([5, 6, 7, 1], [8, 9, 1]), ([10, 1], [11, 1]), ([12, 13, 1], [14, 15, 16, 17, 1])]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5_tied": ("t5", {}),
    "t5_gated": ("t5", UNTIED | {"feed_forward_proj": "gated-gelu"}),
    "mt5": ("mt5", {}),
    "bart": ("bart", {}),
}


def build_pico(name: str) -> Any:
    kind, changes = MODELS[name]
    model: Any = build_case(kind, changes, "seq2seq_lm").model
    if kind == "bart":
        model.final_logits_bias.normal_()
    return model


@pytest.mark.parametrize("name", MODELS)
def test_dropout_draws_the_same_numbers_as_the_model(name: str) -> None:
    """In training mode, from one generator state: nothing before the head was changed."""
    model, batch = build_pico(name).train(), collate_rows(ROWS, pad_id=0)
    torch.manual_seed(3)
    theirs = model(**batch).loss * 10
    torch.manual_seed(3)
    assert LabelLoss(model)(batch).item() == pytest.approx(theirs.item(), rel=1e-5)
    assert LabelLoss(model).count_labels(batch["labels"]) == 10


@pytest.mark.parametrize("name", MODELS)
def test_under_bfloat16_autocast_the_cross_entropy_is_float32(name: str) -> None:
    """The value is float32 and within bfloat16's 3 digits of the float32 one."""
    model, batch = build_pico(name), collate_rows(ROWS, pad_id=0)
    expected = LabelLoss(model)(batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = LabelLoss(model)(batch)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(expected, rel=2e-2)


def test_a_model_in_bfloat16_has_its_cross_entropy_in_float32() -> None:
    """Not only under autocast: of its own logits, the sum is right to float32's digits."""
    model = build_pico("bart").bfloat16()
    batch = {
        "input_ids": torch.arange(4, 24).view(2, 10),
        "attention_mask": torch.ones(2, 10, dtype=torch.int64),
        "labels": torch.arange(30, 46).view(2, 8),
    }
    with torch.no_grad():
        summed = LabelLoss(model)(batch)
        logits = model(**batch).logits.double()
    expected = -logits.log_softmax(-1).gather(2, batch["labels"][..., None]).sum()
    assert summed.dtype == torch.float32
    assert float(summed) == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_knows_nothing_pays_log_of_the_vocabulary_for_each_token() -> None:
    """By hand: a head of zeros gives ln 50 a label token; padding does not count."""
    model = build_pico("t5_gated")
    torch.nn.init.zeros_(model.lm_head.weight)
    summed = LabelLoss(model)(collate_rows(ROWS, pad_id=0))
    assert summed.item() == pytest.approx(10 * math.log(50))


def test_a_further_input_takes_the_general_way_with_the_same_result() -> None:
    """A batch with a `decoder_attention_mask` is not silently read without it."""
    model, batch = build_pico("t5_tied"), collate_rows(ROWS, pad_id=0)
    without = LabelLoss(model)(batch).item()
    batch["decoder_attention_mask"] = (batch["labels"] != -100).long()
    batch["decoder_attention_mask"][0, 0] = 0
    summed = LabelLoss(model)(batch).item()
    assert summed == pytest.approx(model(**batch).loss.item() * 10, rel=1e-5)
    assert summed != pytest.approx(without, rel=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert", "gpt2", "llama"])
def test_a_multi_label_loss_is_the_models_own(kind: str) -> None:
    """Summed over rows and labels, with its gradients; an empty share gives 0."""
    model = test_distillation.build_pico(kind, 0, "labels")
    given, nothing = (test_distillation.batch("labels", rows) for rows in (range(3), []))
    loss = LabelLoss(model)
    theirs = model(**given | {"labels": given["labels"].float()}).loss * 9
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    ours = loss(given)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert loss.count_labels(given["labels"]) == 9
    assert loss(nothing).item() == 0
    for name, gradient in expected.items():
        summed = model.get_parameter(name).grad
        torch.testing.assert_close(summed, gradient, rtol=1e-3, atol=1e-5, msg=name)
