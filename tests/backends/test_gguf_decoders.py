"""What llama.cpp writes and scores after prompts is what plain transformers does."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from compressor.backends.gguf import runtime
from compressor.backends.gguf.export import write_model
from compressor.backends.gguf.runtime import LlamaCppModel
from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from tests.backends.test_decoders import EOS, SHAPES, generated, pico, prompts
from tests.backends.test_onnx_decoders import assert_scores_alike

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One of few tokens, as a pico model has rows."""
    pieces = ["<pad>", "</s>", "<unk>", "▁a", "b"]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: Any) -> Any:
    """A model of a kind without a sliding window, and the folder of its file, written once."""

    @cache
    def make(name: str) -> tuple[PreTrainedModel, Path]:
        folder = tmp_path_factory.mktemp(name)
        model = pico(name)
        write_model(Checkpoint(model, build_tokenizer(), "causal_lm"), folder, "float32")
        return model, folder

    return make


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "qwen2"])
def test_tokens_and_losses_are_transformers(
    written: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After prompts of any length at each limit, greedily and with beams, whole and in pieces;
    rows end at different steps, or do not. GELU is looked up in a table of float16.
    """
    model, folder = written(name)
    loaded, rows = LlamaCppModel(folder, threads=1), prompts(9)
    limit = 1e-3 if name == "gpt2" else 1e-5
    assert_scores_alike(model, loaded, rows, limit)
    swept = loaded.generate_each_limit(rows, max_lengths=[20, 1, 7])
    for most, output in swept.items():
        assert output.tokens == [generated(model, row, most, num_beams=1) for row in rows]
        assert output.lengths == [len(row) for row in output.tokens]
    assert len({len(row) for row in swept[20].tokens}) > 2
    monkeypatch.setattr(runtime, "_READ_TOKENS", 5)
    monkeypatch.setattr(runtime, "_BATCH_TOKENS", 100)
    assert_scores_alike(model, loaded, rows, limit)
    beams = loaded.generate_each_limit(rows, max_lengths=[9], num_beams=3)[9].tokens
    assert beams == [generated(model, row, 9, num_beams=3) for row in rows]


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.7, "min_new_tokens": 6},
        {"min_length": 12, "bad_words_ids": [[5], [7, 8]], "early_stopping": True},
        {"forced_eos_token_id": 3, "suppress_tokens": [4, 9, 75], "length_penalty": 2.5},
    ],
    ids="-".join,
)
def test_the_generation_config_is_followed(
    written: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """As `generate` does of each prompt alone, whose tokens count where they do there."""
    model, folder = written("llama")
    settings = {"bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": 0} | settings
    kept, model.generation_config = model.generation_config, GenerationConfig(**settings)
    (tmp_path / "model.gguf").symlink_to(folder / "model.gguf")
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    loaded, rows = LlamaCppModel(tmp_path, threads=1), [[5], [6], *prompts(4)]
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
    """Where there is a table of positions: llama.cpp would end the process."""
    model, folder = written("gpt2")
    loaded = LlamaCppModel(folder, threads=1)
    (row,) = loaded.generate_each_limit([[5] * 50], max_lengths=[14])[14].tokens
    assert row == generated(model, [5] * 50, 14)
    message = "65 tokens of a prompt and after it are more than the 64 positions"
    with pytest.raises(StageError, match=message):
        loaded.generate_each_limit([[5] * 50, [5] * 51], max_lengths=[14])
    with pytest.raises(StageError, match="70 tokens of a prompt"):
        loaded.sum_losses([[5] * 40], [[5] * 30])


def test_a_prompt_without_tokens_and_a_file_without_settings_are_told(
    written: Any, tmp_path: Path
) -> None:
    """An earlier release wrote decoders without a generation config: it is not guessed."""
    _, folder = written("llama")
    loaded = LlamaCppModel(folder, threads=1)
    with pytest.raises(StageError, match=r"llama\.cpp cannot read 0 tokens"):
        loaded.generate_each_limit([[5], []], max_lengths=[3])
    (tmp_path / "model.gguf").symlink_to(folder / "model.gguf")
    with pytest.raises(StageError, match=r"no generation_config\.json is beside model\.gguf"):
        LlamaCppModel(tmp_path, threads=1).generate_each_limit([[5]], max_lengths=[3])


def test_many_rows_share_batches_that_llama_cpp_has_sequences_for(written: Any) -> None:
    """In the order of the prompts; as each of them by itself."""
    loaded = LlamaCppModel(written("qwen3")[1], threads=1)
    rows = prompts(150)
    whole = loaded.generate_each_limit(rows, max_lengths=[3])[3].tokens
    alone = [loaded.generate_each_limit([row], max_lengths=[3])[3].tokens[0] for row in rows[::10]]
    assert whole[::10] == alone
