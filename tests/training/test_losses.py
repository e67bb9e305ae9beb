"""The label loss is the model's own, summed, for every kind of model, with its gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from compressor.data.batching import collate_rows
from compressor.training.losses import LabelLoss

ROWS = [([5, 6, 7, 1], [8, 9, 1]), ([10, 1], [11, 1]), ([12, 13, 1], [14, 15, 16, 17, 1])]


SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
T5_SIZES = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def t5(**changes: Any) -> PreTrainedModel:
    config = T5Config(vocab_size=100, **T5_SIZES, **SPECIAL, **changes)
    return T5ForConditionalGeneration(config)


def mt5() -> PreTrainedModel:
    return MT5ForConditionalGeneration(MT5Config(vocab_size=100, **T5_SIZES, **SPECIAL))


def bart() -> PreTrainedModel:
    sizes = {"encoder_layers": 2, "encoder_ffn_dim": 64, "encoder_attention_heads": 4}
    sizes |= {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 4}
    config = BartConfig(vocab_size=100, d_model=32, **sizes, **SPECIAL, forced_eos_token_id=None)
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    return model


def gpt2() -> PreTrainedModel:
    special = {"bos_token_id": 1, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, **special))


MODELS = {
    "t5_tied": t5,
    "t5_untied": lambda: t5(tie_word_embeddings=False),
    "t5_gated": lambda: t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
    "mt5": mt5,
    "bart": bart,
}


def build_pico(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name]().eval()


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model: Any, batch: dict[str, torch.Tensor], tokens: int) -> None:
    theirs = model(**batch).loss * tokens
    ours = LabelLoss(model)(batch)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert LabelLoss(model).count_labels(batch["labels"]) == tokens
    expected, found = gradients(model, theirs), gradients(model, ours)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_the_models_mean_times_its_label_tokens(name: str) -> None:
    """Value and every gradient, to 1e-5, with padding in source and target."""
    assert_same(build_pico(name), collate_rows(ROWS, pad_id=0), tokens=10)


@pytest.mark.parametrize("name", MODELS)
def test_dropout_draws_the_same_numbers_as_the_model(name: str) -> None:
    """In training mode too, from one generator state: nothing before the head was changed."""
    model, batch = build_pico(name).train(), collate_rows(ROWS, pad_id=0)
    torch.manual_seed(3)
    theirs = model(**batch).loss * 10
    torch.manual_seed(3)
    assert LabelLoss(model)(batch).item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_sum_does_not_depend_on_how_the_batch_was_cut(name: str) -> None:
    """The parts of a batch add up to the whole, whatever their padding."""
    loss = LabelLoss(build_pico(name))
    parts = sum(loss(collate_rows([row], pad_id=0)).item() for row in ROWS)
    assert loss(collate_rows(ROWS, pad_id=0)).item() == pytest.approx(parts, rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_no_rows_give_a_zero_loss_and_zero_gradients(name: str) -> None:
    """A rank without rows takes part in the step: every parameter gets a gradient, and it is 0."""
    model = build_pico(name).train()
    loss = LabelLoss(model)(collate_rows([], pad_id=0))
    assert loss.item() == 0
    found = gradients(model, loss)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(found)
    assert all(torch.count_nonzero(gradient) == 0 for gradient in found.values())


@pytest.mark.parametrize("name", MODELS)
def test_under_bfloat16_autocast_the_cross_entropy_is_float32(name: str) -> None:
    """The value is float32 and within bfloat16's 3 digits of the float32 one."""
    model, batch = build_pico(name), collate_rows(ROWS, pad_id=0)
    expected = LabelLoss(model)(batch).item()
    with torch.autocast("cpu", torch.bfloat16):
        found = LabelLoss(model)(batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=2e-2)


def test_a_model_in_bfloat16_has_its_cross_entropy_in_float32() -> None:
    """Not only under autocast: of its own logits, the sum is right to float32's digits."""
    model = bart().bfloat16().eval()
    batch = {
        "input_ids": torch.arange(4, 24).view(2, 10),
        "attention_mask": torch.ones(2, 10, dtype=torch.int64),
        "labels": torch.arange(30, 46).view(2, 8),
    }
    with torch.no_grad():
        found = LabelLoss(model)(batch)
        logits = model(**batch).logits.double()
    expected = -logits.log_softmax(-1).gather(2, batch["labels"][..., None]).sum()
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_a_model_that_knows_nothing_pays_log_of_the_vocabulary_for_each_token() -> None:
    """By hand: a head of zeros gives ln 100 a label token; padding does not count."""
    model = build_pico("t5_untied")
    torch.nn.init.zeros_(model.lm_head.weight)
    assert LabelLoss(model)(collate_rows(ROWS, pad_id=0)).item() == pytest.approx(
        10 * math.log(100)
    )


def test_a_further_input_takes_the_general_way_with_the_same_result() -> None:
    """A batch with a `decoder_attention_mask` is not silently read without it."""
    model, batch = build_pico("t5_tied"), collate_rows(ROWS, pad_id=0)
    batch["decoder_attention_mask"] = (batch["labels"] != -100).long()
    batch["decoder_attention_mask"][0, 0] = 0
    assert_same(model, batch, tokens=10)


def test_causal_models_predict_the_next_label() -> None:
    """GPT-2 shifts its labels itself: 9 labels of 2 rows, of which the first ones predict none."""
    torch.manual_seed(0)
    batch = collate_rows(
        [([5, 6, 7, 8, 1], [5, 6, 7, 8, 1]), ([9, 5, 2, 1], [9, 5, 2, 1])], pad_id=0
    )
    assert_same(gpt2().eval(), batch, tokens=7)


def test_classification_counts_rows() -> None:
    """One label a row, for anything that gives logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=100, intermediate_size=64, num_labels=3, **sizes)
    batch = collate_rows(ROWS, pad_id=0) | {"labels": torch.tensor([0, 2, 1])}
    assert_same(BertForSequenceClassification(config).eval(), batch, tokens=3)
