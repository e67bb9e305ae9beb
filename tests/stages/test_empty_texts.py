"""Rows without text, and tokenizers that end or pad nothing or have more tokens than the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.stages.load import Load
from tests.harness.stages import (
    measure,
    pico_classifier,
    pico_t5,
    preview,
    rows_of_labels,
    rows_of_text,
    tokenizer,
)

ROWS = {
    "empty": (["", "", "a b"], ["a b", "", ""]),
    "special tokens and white space": (["</s>", "<pad></s>", "\u00a0\n"], ["</s>", "<pad>", " "]),
}
STAGES: dict[str, dict[str, Any]] = {
    "finetune": {"epochs": 1, "batch_size": 1},
    "prune": {"amounts": {"lm_head": 0.5}, "importance": "taylor"},
    "sensitivity": {"amounts": [0.5], "only": ["lm_head"]},
    "smooth": {},
    "evaluate": {"max_length": [2, 6]},
    "pseudo_label": {"max_length": 6},
    "baseline": {},
    "trim_vocabulary": {},
}


def numbers(value: Any) -> list[float]:
    """All numbers of nested metrics."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [number for item in inside for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def with_endless_tokenizer(checkpoint: Checkpoint) -> Checkpoint:
    """Its tokenizer puts nothing around a text, as GPT-2's does."""
    checkpoint.tokenizer._tokenizer.post_processor = processors.Sequence([])
    return checkpoint


@pytest.mark.parametrize("kind", STAGES)
@pytest.mark.parametrize("name", ROWS)
def test_stages_read_rows_without_text(tmp_path: Path, name: str, kind: str) -> None:
    """Each stage ends, with numbers: an empty text is its end token, which is learned."""
    metrics = measure(
        kind, pico_t5(), rows_of_text(tmp_path, *ROWS[name]), tmp_path, **STAGES[kind]
    )
    assert all(map(math.isfinite, numbers(metrics)))


def test_without_a_token_to_learn_a_training_says_so(tmp_path: Path) -> None:
    """All targets are empty."""
    checkpoint = with_endless_tokenizer(pico_t5())
    data = rows_of_text(tmp_path, ["a b c", "d e"], ["", ""])
    for kind, settings in (("finetune", {"epochs": 1}), ("sensitivity", {"amounts": [0.5]})):
        with pytest.raises(StageError, match="has a token to predict: all targets are empty"):
            measure(kind, checkpoint, data, tmp_path / kind, **settings)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("ends", [True, False])
def test_classifiers_read_rows_without_text(tmp_path: Path, model_type: str, ends: bool) -> None:
    """Also where nothing is around the text, so that there is no token at all; one class or two."""
    checkpoint = pico_classifier(model_type)
    if not ends:
        with_endless_tokenizer(checkpoint)
    for truth, ranked in (([(0, 1), (1, 0)], 0.5), ([(1, 1), (1, 1)], None)):
        folder = tmp_path / str(ranked)
        data = rows_of_labels(folder, ["", ""], truth)
        assert math.isfinite(measure("finetune", checkpoint, data, folder, epochs=1)["train_loss"])
        metrics = measure("evaluate", checkpoint, data, folder)
        assert metrics["roc_auc"] == ranked  # constant scores, or nothing to rank
        assert all(map(math.isfinite, numbers(metrics)))


def test_words_are_wanted_by_tf_idf(tmp_path: Path) -> None:
    """Without any it has no floor to give, and says so."""
    data = rows_of_labels(tmp_path, ["", ""], [(0, 1), (1, 0)])
    with pytest.raises(StageError, match="TF-IDF found no words in the rows"):
        measure("baseline", pico_classifier(), data, tmp_path)


def test_a_tokenizer_that_fills_and_ends_nothing_is_refused(tmp_path: Path) -> None:
    """Neither pad nor eos: it used to be a TypeError of NumPy's. With one of them it trains."""
    data, losses = rows_of_text(tmp_path), set()
    for name, pad in {"usual": "<pad>", "none": None, "eos": "</s>"}.items():
        checkpoint = pico_t5()
        checkpoint.tokenizer.pad_token = pad
        metrics = measure("finetune", checkpoint, data, tmp_path / name, epochs=1)
        losses.add(metrics["train_loss"])
    assert len(losses) == 1  # what is masked may be anything
    checkpoint.tokenizer.pad_token = checkpoint.tokenizer.eos_token = None
    with pytest.raises(StageError, match="the tokenizer has no pad and no eos token"):
        measure("finetune", checkpoint, data, tmp_path, epochs=1)


def test_more_tokens_than_rows_are_refused_when_planned(tmp_path: Path) -> None:
    """Of a folder, of a tokenizer's own, of one to be trained; and by `load`."""
    pico_t5(vocab_size=200).save(tmp_path / "source")
    (tmp_path / "source" / "checkpoint.json").unlink()
    tokenizer().save_pretrained(tmp_path / "tokenizer")
    config, message = {"model_type": "t5", "vocab_size": 200}, "the model's embedding only 200 rows"
    for place, settings in {
        "source": {"source": str(tmp_path / "source")},
        "tokenizer": {"config": config, "tokenizer": str(tmp_path / "tokenizer")},
        "tokenizer.vocab_size": {"config": config, "tokenizer": {"vocab_size": 304}},
    }.items():
        ((path, problem),) = preview(Load.model_validate(settings), None)[1]
        assert path == place and problem.startswith("the tokenizer has 304 ") and message in problem
    with pytest.raises(StageError, match=message):
        measure("load", tmp_path, rows_of_text(tmp_path), tmp_path, source=str(tmp_path / "source"))
