"""Perplexity of long texts equals a plain strided loop of transformers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from compressor.backends.outputs import ignore
from compressor.backends.torch.model import TorchModel
from compressor.core.errors import StageError
from compressor.data.bills import make_bills
from compressor.data.tokenizers import train_tokenizer
from compressor.evaluation import perplexity
from tests.harness.models import build_case

TEXTS = [row["text"] for row in make_bills(4, seed=0, split="test")] + ["A"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300)


def strided_loss(
    model: PreTrainedModel, ids: list[int], size: int, stride: int
) -> tuple[float, int]:
    """The loop of transformers' guide, which counts each window's new tokens: their sum."""
    total, count, before = 0.0, 0, 0
    for start in range(0, len(ids), stride):
        end = min(start + size, len(ids))
        window = torch.tensor([ids[start:end]])
        labels = window.clone()
        labels[:, : window.shape[1] - (end - before)] = -100
        counted = int((labels[:, 1:] != -100).sum())  # the first label predicts nothing
        if counted:
            with torch.inference_mode():
                total += model(input_ids=window, labels=labels).loss.item() * counted
        count, before = count + counted, end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize(("size", "stride"), [(20, 7), (16, 15), (500, 250)])
def test_perplexity_is_that_of_a_strided_loop(
    tokenizer: PreTrainedTokenizerFast, model_type: str, size: int, stride: int
) -> None:
    """To 1e-5, of every token but a text's first; also where a text is shorter than a window."""
    changes = {"vocab_size": 300} | ({"n_positions": 500} if model_type == "gpt2" else {})
    checkpoint = build_case(model_type, changes, "causal_lm")
    ids = perplexity.read_texts(TEXTS, tokenizer)
    sums = [strided_loss(checkpoint.model, row, size, stride) for row in ids]
    loss, tokens, words, size_in_bytes = (
        sum(loss for loss, _ in sums),
        sum(count for _, count in sums),
        sum(len(text.split()) for text in TEXTS),
        sum(len(text.encode()) for text in TEXTS),
    )
    assert tokens == sum(len(row) - 1 for row in ids) > 400
    windows = perplexity.list_windows(ids, size=size, stride=stride)
    table = perplexity.measure_texts(TorchModel(checkpoint), TEXTS, windows, ignore)
    measured = perplexity.summarize_rows(table)
    expected = {
        "loss": loss / tokens,
        "perplexity": math.exp(loss / tokens),
        "word_perplexity": math.exp(loss / words),
        "byte_perplexity": math.exp(loss / size_in_bytes),
        "bits_per_byte": loss / size_in_bytes / math.log(2),
    }
    assert {name: measured[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert (measured["count"], measured["tokens"]) == (len(TEXTS), tokens)


def test_an_interval_resamples_rows_and_divides_their_sums(tmp_path: Path) -> None:
    """A row of ten times the tokens counts ten times; rows come back from the file as they were."""
    table = np.array([[10.0, 10, 8, 40], [300.0, 100, 90, 400], [24.0, 12, 0, 50]])
    texts = ["=one", "two, and more", "three"]
    perplexity.write_rows(tmp_path / "rows.csv", texts, table)
    rows, counts = perplexity.read_rows(tmp_path / "rows.csv")
    assert rows == [("0", "=one"), ("1", "two, and more"), ("2", "three")]
    assert counts.tolist() == table.tolist()
    summary = perplexity.summarize_rows(table)
    assert summary["loss"] == pytest.approx(334 / 122)
    draws = np.random.default_rng(0).integers(3, size=(1000, 3))
    losses = [table[draw, 0].sum() / table[draw, 1].sum() for draw in draws]
    expected = np.quantile(losses, [0.025, 0.975])
    assert summary["intervals"]["loss"] == pytest.approx(expected)
    assert summary["intervals"]["perplexity"] == pytest.approx(np.exp(expected))
    (tmp_path / "rows.csv").write_text("row,source,loss,tokens,words,bytes\n0,a,much,1,1,1\n")
    with pytest.raises(ValueError, match="line 2: expected numbers as loss, tokens"):
        perplexity.read_rows(tmp_path / "rows.csv")


def test_texts_without_a_second_token_have_none() -> None:
    model = TorchModel(build_case("gpt2", {}, "causal_lm"))
    windows = perplexity.list_windows([[5], []], size=4, stride=2)
    with pytest.raises(StageError, match="no text of the test split has a second token"):
        perplexity.measure_texts(model, ["a", ""], windows, ignore)
