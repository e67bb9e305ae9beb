"""What llama.cpp computes from a GGUF file is what transformers does, for every family it takes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig

from compressor.backends import gguf
from compressor.backends.pytorch import TorchModel
from compressor.checkpoint import Checkpoint, build
from compressor.data.tokenizer import train_tokenizer
from compressor.formats import FORMATS
from compressor.generation import sweep

LIMITS = [3, 9, 24]
EOS, PAD = 1, 0
T5_LIKE: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2,
    "initializer_factor": 2.0, "decoder_start_token_id": PAD,
}  # fmt: skip
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "t5": T5_LIKE,
    "mt5": T5_LIKE,
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "n_inner": 48,
        "initializer_range": 0.3,
    },
    "llama": LLAMA_LIKE | {"head_dim": 12},
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | {"head_dim": 12},
}  # fmt: skip
DECODERS = sorted(FORMATS["gguf"].models["causal_lm"])


def checkpoint(model_type: str, seed: int = 0, **values: Any) -> Checkpoint:
    """A model with large fresh weights, so that outputs depend on all of them; 300 tokens."""
    tokenizer = train_tokenizer(["some bills and the words of bills"] * 3, vocab_size=280)
    config = AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer) + 7, pad_token_id=PAD, eos_token_id=EOS,
        bos_token_id=EOS, **SHAPES[model_type] | values,
    )  # fmt: skip
    head = "causal_lm" if model_type in DECODERS else "seq2seq_lm"
    torch.manual_seed(seed)
    model = build(config, head).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:  # norms and biases, all alike in a fresh model
                tensor += 0.3 * torch.randn_like(tensor)
            if name == "lm_head.weight" and head == "seq2seq_lm":
                tensor.normal_()
    if head == "seq2seq_lm":
        model.generation_config.update(
            eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=PAD
        )
    return Checkpoint(model, tokenizer, head)


def sources(count: int = 8) -> list[list[int]]:
    draw = random.Random(0)
    return [
        [draw.randrange(3, 270) for _ in range(draw.randrange(2, 40))] + [EOS] for _ in range(count)
    ]


def exported(model: Checkpoint, folder: Path, weights: str = "float32") -> Any:
    llamacpp = pytest.importorskip("llama_cpp") and __import__(
        "compressor.backends.llamacpp", fromlist=["LlamaCppModel"]
    )
    gguf.write(model, folder, weights)
    return llamacpp.LlamaCppModel(folder, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "t5"},
        {"model_type": "t5", "tie_word_embeddings": False},
        {"model_type": "t5", "num_layers": 2, "num_decoder_layers": 2},
        {"model_type": "t5", "feed_forward_proj": "gated-gelu"},
        {"model_type": "mt5"},
    ],
    ids=str,
)
def test_tokens_are_those_of_transformers_at_every_limit(values, tmp_path) -> None:
    """Random weights, different tokens in each row, sources of 3 to 40 tokens."""
    model = checkpoint(**values)
    expected = sweep(model.model, sources(), max_lengths=LIMITS)
    got = exported(model, tmp_path / "model").sweep(sources(), max_lengths=LIMITS)
    rows = {tuple(row) for row in expected[24].tokens}
    assert len(rows) > 3 and len({token for row in rows for token in row}) > 4, "too alike to tell"
    for limit in LIMITS:
        assert got[limit].tokens == expected[limit].tokens
        assert got[limit].cut_off == expected[limit].cut_off


def test_beams_are_those_of_transformers(tmp_path) -> None:
    model = checkpoint("t5")
    expected = sweep(model.model, sources(), max_lengths=[12], num_beams=3)
    got = exported(model, tmp_path / "model").sweep(sources(), max_lengths=[12], num_beams=3)
    assert got[12].tokens == expected[12].tokens


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", DECODERS)
def test_logits_are_those_of_transformers(model_type, tied, tmp_path) -> None:
    model = checkpoint(model_type, tie_word_embeddings=tied)
    expected = TorchModel(model).logits(sources())
    got = exported(model, tmp_path / "model").logits(sources())
    assert np.median(np.ptp(expected, axis=0)) > 0.5, "too alike to tell"
    # GELU is looked up in a table of float16; all else is computed in float32.
    limit = 1e-3 if model_type == "gpt2" else 1e-5
    np.testing.assert_allclose(got, expected, atol=limit * np.abs(expected).max())
