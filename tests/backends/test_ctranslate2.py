"""What CTranslate2 decodes and classifies is what transformers does, for every family it takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from compressor.backends import ctranslate2
from compressor.backends.formats import FORMATS
from compressor.backends.torch.classification import compute_logits
from compressor.backends.torch.generation import decode_sweep
from compressor.data.tokenizers import train_tokenizer
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model, untie_head

LIMITS = [3, 9, 24]
EOS, PAD = 1, 0
BART_LIKE: dict[str, Any] = {
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "init_std": 0.3,
    "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
}  # fmt: skip
T5_LIKE: dict[str, Any] = {
    "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 2, "num_decoder_layers": 3,
    "initializer_factor": 2.0,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 66, "initializer_range": 0.3, "num_labels": 3,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "t5": T5_LIKE,
    "mt5": T5_LIKE,
    "bart": BART_LIKE | {"tie_word_embeddings": False},
    "mbart": BART_LIKE,
    "pegasus": BART_LIKE,
    "marian": BART_LIKE | {"tie_word_embeddings": False, "init_std": 1.0},
    "bert": ENCODER,
    "roberta": ENCODER | {"pad_token_id": PAD},
    "distilbert": {
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 66,
        "initializer_range": 0.3, "num_labels": 3,
    },
}  # fmt: skip


def checkpoint(model_type: str, seed: int = 0, **values: Any) -> Checkpoint:
    """A model with large fresh weights, so that outputs depend on all of them; 300 tokens."""
    head = (
        "seq2seq_lm"
        if model_type in FORMATS["ctranslate2"].models["seq2seq_lm"]
        else ("sequence_classification")
    )
    tokenizer = train_tokenizer(["some bills and the words of bills"] * 3, vocab_size=280)
    size = len(tokenizer)
    start = PAD
    if model_type == "marian":  # its pad is the last token, and starts a decode
        text = tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<first>"')
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>", eos_token="</s>",
            unk_token="<unk>",
        )  # fmt: skip
        size, start = len(tokenizer), len(tokenizer) - 1
        assert tokenizer.pad_token_id == start
    shape = SHAPES[model_type]
    width = {} if head != "seq2seq_lm" else {"d_model": 32, "decoder_start_token_id": start}
    config = AutoConfig.for_model(
        model_type, vocab_size=size + (0 if model_type == "marian" else 7), **width,
        **{"pad_token_id": start if model_type == "marian" else PAD, "eos_token_id": EOS}
        | shape | values,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = build_model(config, head).eval()
    if head == "seq2seq_lm":
        if not config.tie_word_embeddings:
            with torch.no_grad():
                model.lm_head.weight.normal_()
        if model_type == "marian":
            with torch.no_grad():  # a pad's row is zero until it is trained
                model.model.decoder.embed_tokens.weight[start].normal_(std=2)
        model.generation_config.forced_eos_token_id = None
        model.generation_config.update(
            eos_token_id=EOS, pad_token_id=config.pad_token_id, decoder_start_token_id=start
        )
    return Checkpoint(model, tokenizer, head)


def sources(count: int = 10) -> list[list[int]]:
    draw = random.Random(0)
    return [
        [draw.randrange(3, 270) for _ in range(draw.randrange(2, 40))] + [EOS] for _ in range(count)
    ]


def exported(model: Checkpoint, folder: Path, weights: str = "float32") -> Any:
    folder.mkdir()
    ctranslate2.write_model(model, folder, weights)
    model.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    return ctranslate2.load_model(folder, model.head, threads=1)


@pytest.mark.parametrize("model_type", sorted(FORMATS["ctranslate2"].models["seq2seq_lm"]))
def test_tokens_are_those_of_transformers_at_every_limit(model_type, tmp_path) -> None:
    """Random weights, different tokens in each row, sources of 3 to 40 tokens."""
    model = checkpoint(model_type)
    expected = decode_sweep(model.model, sources(), max_lengths=LIMITS)
    got = exported(model, tmp_path / "model").sweep(sources(), max_lengths=LIMITS)
    rows = {tuple(row) for row in expected[24].tokens}
    assert len(rows) > 3 and len({token for row in rows for token in row}) > 4, "too alike to tell"
    for limit in LIMITS:
        assert got[limit].tokens == expected[limit].tokens
        assert got[limit].cut_off == expected[limit].cut_off


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("model_type", ["t5", "mt5"])
def test_log_probabilities_are_those_of_transformers(model_type, untied, scaled, tmp_path) -> None:
    """Greedy tokens do not tell: an mT5's were of another scale, since its config is read as T5's
    is, for which tied embeddings mean that outputs are scaled.
    """
    model = checkpoint(model_type)
    if untied:
        untie_head(model.model)
    if model_type == "t5":
        model.model.config.scale_decoder_outputs = scaled
    rows, targets = sources(4), [row[:5] for row in sources(4)]
    translator = exported(model, tmp_path / "model")
    texts = [[translator._tokens[i] for i in row] for row in rows]
    got = translator._model.score_batch(
        texts, [[translator._tokens[i] for i in t] for t in targets]
    )
    for row, target, result in zip(rows, targets, got, strict=True):
        with torch.inference_mode():
            labels = torch.tensor([[*target, EOS]])
            logits = model.model(input_ids=torch.tensor([row]), labels=labels).logits
        expected = logits.log_softmax(-1).gather(-1, labels[..., None]).flatten()
        np.testing.assert_allclose(result.log_probs, expected, rtol=1e-3)


def test_a_marian_may_have_its_pad_anywhere_and_start_with_any_token(tmp_path) -> None:
    """Its own converter takes the last token for the pad, and leaves that out."""
    model = checkpoint("marian", pad_token_id=7)
    model.model.generation_config.update(pad_token_id=7, decoder_start_token_id=9)
    model.model.lm_head.weight.data[-1] *= 3  # the last token is written like any other
    expected = decode_sweep(model.model, sources(), max_lengths=[12])[12].tokens
    assert any(len(model.tokenizer) - 1 in row for row in expected)  # type: ignore[arg-type]
    got = exported(model, tmp_path / "model").sweep(sources(), max_lengths=[12])
    assert got[12].tokens == expected


@pytest.mark.parametrize(
    "model_type", sorted(FORMATS["ctranslate2"].models["sequence_classification"])
)
def test_logits_are_those_of_transformers(model_type, tmp_path) -> None:
    model = checkpoint(model_type)
    expected = compute_logits(model, sources())
    got = exported(model, tmp_path / "model").logits(sources())
    assert np.ptp(expected, axis=0).min() > 0.1, "too alike to tell"
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("model_type", ["t5", "bert", "roberta", "distilbert"])
def test_int8_is_near_and_the_checkpoint_stays_as_it_was(model_type, tmp_path) -> None:
    """Logits within a tenth of the largest, where a head in int8's own units is off by ten times
    that; and no tensor, nor the config, of what was written has changed.
    """
    model = checkpoint(model_type)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    config = model.model.config.to_dict()
    loaded = exported(model, tmp_path / "model", "int8")
    after = model.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert model.model.config.to_dict() == config
    if model.head == "sequence_classification":
        expected = compute_logits(model, sources())
        np.testing.assert_allclose(
            loaded.logits(sources()), expected, atol=0.1 * np.abs(expected).max()
        )
