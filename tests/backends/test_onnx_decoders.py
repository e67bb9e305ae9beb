"""Decoders in ONNX graphs write and score as plain transformers, without torch."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from compressor.backends.base import Model
from compressor.backends.formats import explain_refusal
from compressor.backends.onnx import runtime
from compressor.backends.onnx.export import write_model
from compressor.backends.onnx.runtime import OnnxModel
from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import derive_facts
from tests.backends.test_decoders import EOS, SHAPES, VOCABULARY, generated, pico, prompts
from tests.faults import LONG, long_form
from tests.harness.models import WINDOW, build_case

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    (
        "gpt2",
        {"n_positions": 64, "tie_word_embeddings": True, "scale_attn_by_inverse_layer_idx": True},
    ),
    ("llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 6}),
    ("qwen2", {"rope_parameters": YARN, "max_position_embeddings": 64}),
    ("qwen3", WINDOW | {"tie_word_embeddings": True, "num_key_value_heads": 1}),
]


def write(model: PreTrainedModel, folder: Path, weights: Any = "float32") -> OnnxModel:
    folder.mkdir(exist_ok=True)
    write_model(Checkpoint(model, None, "causal_lm"), folder, weights=weights)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return OnnxModel(folder, threads=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> Any:
    """A model of a kind and the folder of its graph, written once: tracing takes seconds."""

    @cache
    def make(name: str) -> tuple[PreTrainedModel, Path]:
        folder = tmp_path_factory.mktemp(name)
        write(model := pico(name), folder)
        return model, folder

    return make


@torch.no_grad()
def plain_logits(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([row])).logits[0]
    return logits


def assert_scores_alike(
    model: PreTrainedModel, loaded: Model, rows: list[list[int]], limit: float = 1e-5
) -> None:
    """Logits after rows of any length, and the losses of what goes on, in the order of the rows."""
    expected = np.stack([plain_logits(model, row)[-1].numpy() for row in rows])
    assert np.abs(loaded.logits(rows) - expected).max() < limit * np.abs(expected).max()
    losses = []
    for source, target in zip(rows, rows[::-1], strict=True):
        told = plain_logits(model, source + target)[len(source) - 1 : -1].log_softmax(-1)
        losses.append(-float(told.gather(1, torch.tensor(target)[:, None]).sum()))
    done: list[int] = []
    np.testing.assert_allclose(
        loaded.sum_losses(rows, rows[::-1], progress=done.append), losses, rtol=limit
    )
    assert sum(done) == len(rows)


@pytest.mark.parametrize("name", SHAPES if LONG else ["gpt2"])
def test_tokens_and_losses_are_transformers(
    written: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After prompts of any length at each limit, greedily and with beams, whole and in pieces; all
    but GPT-2 have grouped heads, Qwen2 a sliding window. Rows end at different steps, or do not.
    """
    model, folder = written(name)
    loaded, rows = OnnxModel(folder, threads=1), prompts(9)
    assert_scores_alike(model, loaded, rows)
    swept = loaded.generate_each_limit(rows, max_lengths=[20, 1, 7])
    for limit, output in swept.items():
        assert output.tokens == [generated(model, row, limit, num_beams=1) for row in rows]
        assert output.lengths == [len(row) for row in output.tokens]
    assert len({len(row) for row in swept[20].tokens}) > 2
    monkeypatch.setattr(runtime, "_ENCODE_TOKENS", 40)
    monkeypatch.setattr(runtime, "_SCORED_TOKENS", 5)
    assert_scores_alike(model, loaded, rows)
    beams = loaded.generate_each_limit(rows, max_lengths=[9], num_beams=3)[9].tokens
    assert beams == [generated(model, row, 9, num_beams=3) for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7, "min_new_tokens": 6},
        {"no_repeat_ngram_size": 2, "length_penalty": 2.5},
        {"min_length": 12, "bad_words_ids": [[5], [7, 8]], "early_stopping": True},
        {"suppress_tokens": [4, 9, 75], "begin_suppress_tokens": [EOS]},
        {"forced_eos_token_id": 3, "early_stopping": "never", "length_penalty": 2.5},
        {"forced_bos_token_id": 7, "begin_suppress_tokens": list(range(20, 80))},
    ],
    ids="-".join,
)
def test_the_generation_config_is_followed(
    written: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """As `generate` does of each prompt alone, whose tokens count where they do there; greedily and
    with beams, and under a least length of the recipe's, which counts new tokens.
    """
    model, folder = written("gpt2")
    settings = {"bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 0} | settings
    kept, model.generation_config = model.generation_config, GenerationConfig(**settings)
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
    loaded, rows = OnnxModel(tmp_path / "model", threads=1), [[5], [6], *prompts(4)]
    try:
        for beams in (1, 3):
            given = loaded.generate_each_limit(rows, max_lengths=[12], num_beams=beams)[12].tokens
            assert given == [generated(model, row, 12, num_beams=beams) for row in rows]
        least = loaded.generate_each_limit(rows, max_lengths=[12], min_length=9)[12].tokens
        new = {"min_new_tokens": 9, "min_length": None, "num_beams": 1}
        assert least == [generated(model, row, 12, **new) for row in rows]
    finally:
        model.generation_config = kept


def test_a_prompt_beyond_the_last_position_is_told(written: Any) -> None:
    """And one that fills all of them is read."""
    _, folder = written("gpt2")
    loaded = OnnxModel(folder, threads=1)
    (row,) = loaded.generate_each_limit([[5] * 63], max_lengths=[2])[2].tokens
    assert len(row) == 2
    with pytest.raises(StageError, match="ONNX Runtime cannot read these tokens"):
        loaded.generate_each_limit([[5] * 63, [5] * 64], max_lengths=[3])


@long_form
@pytest.mark.parametrize(("model_type", "values"), VARIANTS)
def test_what_a_config_asks_for_is_in_the_graph(
    model_type: str, values: dict[str, Any], tmp_path: Path
) -> None:
    """Tied heads, heads of another size, biases, scaled rotations, windows."""
    values = {"vocab_size": VOCABULARY, "initializer_range": 0.3} | values
    model = build_case(model_type, values, "causal_lm").model
    assert_scores_alike(model, write(model, tmp_path), prompts(9))


@long_form
@pytest.mark.parametrize("name", SHAPES)
def test_int8_is_near(name: str, tmp_path: Path) -> None:
    """Logits within a tenth of the largest; no matrix is left in float, and tokens are written."""
    model, rows = pico(name), prompts(9)
    loaded = write(model, tmp_path, "int8")
    expected = np.stack([plain_logits(model, row)[-1].numpy() for row in rows])
    difference = np.abs(loaded.logits(rows) - expected).max()
    assert 0 < difference < 0.1 * np.abs(expected).max()
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert (tmp_path / "weights.bin").stat().st_size < 2 * matrices + 4096 * 24
    assert len(loaded.generate_each_limit(rows, max_lengths=[5])[5].tokens) == len(rows)


@pytest.mark.parametrize("rope", ["dynamic", "longrope", "llama3"])
def test_rotations_that_change_with_the_length_are_refused(rope: str) -> None:
    """While planning: a graph has those of one length."""
    config = {
        "model_type": "llama", "num_hidden_layers": 2,
        "rope_parameters": {"rope_type": rope, "factor": 8.0},
    }  # fmt: skip
    reason = explain_refusal("onnx", derive_facts(config, head="causal_lm"))
    expected = None if rope == "llama3" else f"a graph does not follow rope_type {rope!r}"
    assert (reason or "None").startswith(str(expected))
