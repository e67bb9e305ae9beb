"""What CTranslate2 decodes and classifies is what transformers does, for every family it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.backends.ctranslate2.export import write_model
from compressor.backends.ctranslate2.runtime import load_model
from compressor.backends.formats import FORMATS, explain_refusal
from compressor.backends.torch.model import TorchModel
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import derive_facts
from compressor.models.loading import untie_head
from tests.backends.models import EOS, assert_same_tokens, build_large, sources
from tests.harness.models import decode_sweep

FAMILIES = FORMATS["ctranslate2"].models


def exported(model: Checkpoint, folder: Path, weights: str = "float32") -> Any:
    folder.mkdir()
    write_model(model, folder, weights)
    model.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    return load_model(folder, model.head, threads=1)


@pytest.mark.parametrize("model_type", sorted(FAMILIES["seq2seq_lm"]))
def test_tokens_are_those_of_transformers_at_every_limit(model_type, tmp_path) -> None:
    model = build_large(model_type)
    assert_same_tokens(exported(model, tmp_path / "model"), model)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_log_probabilities_are_those_of_transformers(model_type, untied, scaled, tmp_path) -> None:
    """Greedy tokens do not tell: an mT5's were of another scale, since its config is read as T5's
    is, for which tied embeddings mean that outputs are scaled.
    """
    model = build_large(model_type)
    if untied:
        untie_head(model.model)
    if model_type == "t5":
        model.model.config.scale_decoder_outputs = scaled
    rows, targets = sources(4), [row[:5] for row in sources(4)]
    translator = exported(model, tmp_path / "model")
    scored = translator._model.score_batch(
        list(map(translator._spell, rows)), list(map(translator._spell, targets))
    )
    for row, target, result in zip(rows, targets, scored, strict=True):
        with torch.inference_mode():
            labels = torch.tensor([[*target, EOS]])
            logits = model.model(input_ids=torch.tensor([row]), labels=labels).logits
        expected = logits.log_softmax(-1).gather(-1, labels[..., None]).flatten()
        np.testing.assert_allclose(result.log_probs, expected, rtol=1e-3)


def test_a_marian_may_have_its_pad_anywhere_and_start_with_any_token(tmp_path) -> None:
    """Its own converter takes the last token for the pad, and leaves that out."""
    model = build_large("marian", pad_token_id=7)
    model.model.generation_config.update(pad_token_id=7, decoder_start_token_id=9)
    model.model.lm_head.weight.data[-1] *= 3  # the last token is written like any other
    expected = decode_sweep(model.model, sources(), max_lengths=[12])[12].tokens
    assert any(len(model.tokenizer) - 1 in row for row in expected)  # type: ignore[arg-type]
    swept = exported(model, tmp_path / "model").generate_each_limit(sources(), max_lengths=[12])
    assert swept[12].tokens == expected


@pytest.mark.parametrize("model_type", sorted(FAMILIES["sequence_classification"]))
def test_logits_are_those_of_transformers(model_type, tmp_path) -> None:
    model = build_large(model_type)
    expected = TorchModel(model).logits(sources())
    logits = exported(model, tmp_path / "model").logits(sources())
    assert np.ptp(expected, axis=0).min() > 0.1, "too alike to tell"
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


SCALED = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}


def decoder(model_type: str, **values: Any) -> Checkpoint:
    """A head of its own, so that tokens vary, and rows that end early."""
    model = build_large(model_type, **{"tie_word_embeddings": False} | values)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.model.lm_head.weight)
    model.model.lm_head.weight.data[EOS] *= 2
    return model


@pytest.mark.parametrize(
    ("model_type", "values"),
    [
        ("gpt2", {"tie_word_embeddings": True, "layer_norm_epsilon": 0.1}),
        ("gpt2", {}),
        ("llama", {"rope_parameters": SCALED, "num_key_value_heads": 4, "rms_norm_eps": 0.1}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
        ("qwen3", {"attention_bias": True}),
    ],
)
def test_decoders_write_and_score_as_transformers(model_type, values, tmp_path) -> None:
    """Tokens after prompts of any length at each limit, logits after them, and the losses of what
    goes on.
    """
    model = decoder(model_type, **values)
    loaded, torch_model = exported(model, tmp_path / "model"), TorchModel(model)
    expected, logits = (kind.logits(sources()) for kind in (torch_model, loaded))
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())
    losses = [kind.sum_losses(sources(), sources()[::-1]) for kind in (torch_model, loaded)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    if not values.get("tie_word_embeddings"):
        assert_same_tokens(loaded, model)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [7, 8]], "suppress_tokens": [9]},
        {"min_length": 30},
        {"min_new_tokens": 6},
        {"forced_eos_token_id": 3},
    ],
    ids="-".join,
)
def test_a_decoder_follows_its_generation_config(settings, tmp_path) -> None:
    """As `generate` of each prompt alone: a prompt's tokens count where they do there."""
    model = decoder("llama")
    model.model.generation_config.update(**settings)
    expected = TorchModel(model).generate_each_limit(sources(), max_lengths=[5, 12])
    swept = exported(model, tmp_path / "model").generate_each_limit(sources(), max_lengths=[5, 12])
    for limit, output in swept.items():
        assert output.tokens == expected[limit].tokens
    shortest = TorchModel(model).generate_each_limit(sources(), max_lengths=[12], min_length=7)
    again = exported(model, tmp_path / "2").generate_each_limit(
        sources(), max_lengths=[12], min_length=7
    )
    assert again[12].tokens == shortest[12].tokens


@pytest.mark.parametrize("model_type", ["t5", "bert", "roberta", "distilbert", "gpt2", "llama"])
def test_int8_is_near_and_the_checkpoint_stays_as_it_was(model_type, tmp_path) -> None:
    """Logits within a tenth of the largest, where a head in int8's own units is off by ten times
    that; and no tensor, nor the config, of what was written has changed.
    """
    model = build_large(model_type)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    config = model.model.config.to_dict()
    loaded = exported(model, tmp_path / "model", "int8")
    after = model.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert model.model.config.to_dict() == config
    if model.head != "seq2seq_lm":
        expected = TorchModel(model).logits(sources())
        near = 0.1 * np.abs(expected).max()
        np.testing.assert_allclose(loaded.logits(sources()), expected, atol=near)


@pytest.mark.parametrize(
    ("model_type", "values", "named"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rope_type 'llama3'",
        ),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("llama", {}, None),
    ],
)
def test_what_a_generator_does_not_follow_is_refused_by_name(model_type, values, named) -> None:
    """While planning: it would compute something else without a word."""
    config = {"model_type": model_type} | values
    if model_type != "gpt2":
        config["num_hidden_layers"] = 2
    facts = derive_facts(config, head="causal_lm")
    reason = explain_refusal("ctranslate2", facts)
    assert reason == (named and f"CTranslate2 does not follow this model's {named}")
