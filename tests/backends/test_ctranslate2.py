"""What CTranslate2 decodes and classifies is what transformers does, for every family it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.backends import ctranslate2
from compressor.backends.formats import FORMATS
from compressor.backends.torch.model import TorchModel
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import untie_head
from tests.backends.models import EOS, assert_same_tokens, build_large, sources
from tests.harness.models import decode_sweep

FAMILIES = FORMATS["ctranslate2"].models


def exported(model: Checkpoint, folder: Path, weights: str = "float32") -> Any:
    folder.mkdir()
    ctranslate2.write_model(model, folder, weights)
    model.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    return ctranslate2.load_model(folder, model.head, threads=1)


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


@pytest.mark.parametrize("model_type", ["t5", "bert", "roberta", "distilbert"])
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
    if model.head == "sequence_classification":
        expected = TorchModel(model).logits(sources())
        near = 0.1 * np.abs(expected).max()
        np.testing.assert_allclose(loaded.logits(sources()), expected, atol=near)
