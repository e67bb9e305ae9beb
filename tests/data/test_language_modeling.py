"""Rows of text for a decoder: what is learned of them, against transformers' own loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerFast

from compressor.data.bills import make_bills
from compressor.data.examples import tokenize_rows, tokenize_texts
from compressor.data.sources import Data
from compressor.data.tokenizers import train_tokenizer
from compressor.training.losses import LabelLoss, mean_loss
from tests.harness.models import build_case

TEXTS = [row["text"] for row in make_bills(3, seed=0, split="train")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=400)


def read_data(folder: Path, rows: list[dict[str, str]], **settings: object) -> Data:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {"source": "files", "files": {"train": str(path)}, "task": "language_modeling"}
    return TypeAdapter(Data).validate_python(values | settings)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_the_loss_of_long_texts_is_that_of_windows_that_overlap_by_a_token(
    tmp_path, tokenizer, model_type
) -> None:
    """Every token but a text's first is predicted once, also in pieces of at most 16 tokens."""
    data = read_data(tmp_path, [{"text": text} for text in TEXTS], max_source_length=16)
    examples = tokenize_texts(data.load("train"), tokenizer, data)
    model = build_case(model_type, {"vocab_size": 400}, "causal_lm").model
    total, tokens = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text).input_ids  # ends with eos
        for start in range(0, len(ids) - 1, 15):
            window = torch.tensor([ids[start : start + 16]])
            with torch.inference_mode():
                total += model(input_ids=window, labels=window).loss.item() * (window.numel() - 1)
            tokens += window.numel() - 1
    assert tokens == sum(map(len, examples.targets)) > 3 * 100
    assert max(examples.lengths()) == 16
    ours = mean_loss(LabelLoss(model), examples, 0, torch.device("cpu"))
    assert ours == pytest.approx(total / tokens, abs=1e-5)


def test_of_prompt_and_completion_the_completion_alone_is_learned(tmp_path, tokenizer) -> None:
    """It follows the prompt at once, and ends with the one eos; text2text has one between the two.
    And it has another key than all of the text.
    """
    rows = [{"text": "An act.", "answer": "Funds parks."}]
    data = read_data(tmp_path, rows, completion="answer")
    pairs = read_data(tmp_path, rows, task="text2text", summary="answer")
    made = [
        tokenize_rows(kind.load("train"), tokenizer, kind, joined=True) for kind in (data, pairs)
    ]
    assert [made[0].sources[0] + [tokenizer.eos_token_id]] == made[1].sources
    assert made[0].targets == made[1].targets
    batch = made[0].batch([0], 0)
    assert tokenizer.decode(batch["input_ids"][0]) == "An act.Funds parks.</s>"
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels >= 0], skip_special_tokens=True) == "Funds parks."
    whole = read_data(tmp_path, rows)
    assert whole.key("train", "pairs") != data.key("train", "pairs") != pairs.key("train", "pairs")


def test_summarization_is_another_name_of_text2text(tmp_path) -> None:
    """The same rows under the same key, so that what is stored is found."""
    rows = [{"text": "An act.", "summary": "Funds parks."}]
    first, second = (read_data(tmp_path, rows, task=t) for t in ("text2text", "summarization"))
    assert first.load("train") == second.load("train")
    assert first.key("train", "pairs") == second.key("train", "pairs")
    with pytest.raises(ValidationError, match="`completion` is for the task language_modeling"):
        read_data(tmp_path, rows, task="text2text", completion="summary")


def test_an_empty_completion_is_told_while_planning(tmp_path) -> None:
    rows = [{"text": "An act.", "answer": "Funds parks."}, {"text": "An act.", "answer": " "}]
    reported: list[str] = []
    read_data(tmp_path, rows, completion="answer").check(
        "train", lambda path, message: reported.append(f"{path}: {message}")
    )
    (told,) = reported
    assert told.startswith("empty: ")
    assert "1 row has no text or no completion (row 1, column 'answer')" in told
