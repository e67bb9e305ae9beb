"""What decoders write equals `model.generate` of each prompt alone, token for token."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from compressor.backends.torch import generation
from compressor.backends.torch.model import TorchModel
from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from tests.harness.models import WINDOW, build_case

EOS, VOCABULARY = 1, 100
# Beside changes of the config: a seed and a scale of the end token's logits that were looked for,
# with which some rows end at different steps and some do not end.
SHAPES: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "gpt2": ("gpt2", {"n_positions": 64}, 9, 2.0),
    "llama": ("llama", {}, 0, 2.0),
    "qwen2": ("qwen2", WINDOW, 0, 2.0),
    "qwen3": ("qwen3", {}, 0, 2.0),
}  # fmt: skip


def pico(name: str) -> PreTrainedModel:
    """Fresh weights, the head's its own and large, so that tokens vary."""
    model_type, changes, seed, scale = SHAPES[name]
    values = {"vocab_size": VOCABULARY, "tie_word_embeddings": False, "initializer_range": 0.3}
    model = build_case(model_type, values | changes, "causal_lm").model
    torch.manual_seed(seed)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))
        model.lm_head.weight[EOS] *= scale
    return model


def prompts(count: int = 8) -> list[list[int]]:
    """Rows of 1 to 18 tokens, in no order."""
    draw = random.Random(0)
    return [
        [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 19))] for _ in range(count)
    ]


def generated(model: PreTrainedModel, prompt: list[int], limit: int, **settings: Any) -> list[int]:
    """What transformers gives after one prompt, up to its end token."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, **settings
    )
    row: list[int] = output[0, len(prompt) :].tolist()
    return row[: row.index(EOS) + 1] if EOS in row else row


def decode(
    model: PreTrainedModel, *limits: int, rows: list[list[int]], **options: Any
) -> dict[int, list[list[int]]]:
    swept = TorchModel(Checkpoint(model, None, "causal_lm")).generate_each_limit(
        rows, max_lengths=limits, **options
    )
    assert all(output.lengths == [len(row) for row in output.tokens] for output in swept.values())
    return {limit: output.tokens for limit, output in swept.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_new_tokens_are_those_of_generate(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each limit, which counts new tokens alone, in the prompts' order, from one greedy decode;
    some rows end early, at different steps, and some do not. With beams each limit is decoded.
    """
    model, steps = pico(name), []
    counted = generation._search_greedily
    monkeypatch.setattr(
        generation, "_search_greedily", lambda *a, **k: steps.append(1) or counted(*a, **k)
    )
    swept = decode(model, 20, 7, rows=prompts())
    assert len(steps) == 1
    for limit, rows in swept.items():
        assert [generated(model, row, limit, num_beams=1) for row in prompts()] == rows
    lengths = {len(row) for row in swept[20]}
    assert len(lengths - {20}) >= 2
    assert 20 in lengths
    for limit, rows in decode(model, 9, 4, rows=prompts(4), num_beams=3).items():
        assert [generated(model, row, limit, num_beams=3) for row in prompts(4)] == rows


@pytest.mark.parametrize(
    ("settings", "beams"),
    [
        ({"repetition_penalty": 1.7}, 1),
        ({"no_repeat_ngram_size": 2}, 3),
        ({"min_length": 12, "bad_words_ids": [[5], [7, 8]]}, 1),
        ({"suppress_tokens": [4, 9, 75], "begin_suppress_tokens": [EOS]}, 1),
        ({"encoder_repetition_penalty": 1.5}, 1),
        ({"exponential_decay_length_penalty": (4, 1.3)}, 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_generation_config(settings: dict[str, Any], beams: int) -> None:
    """What it sets is honoured as `generate` does of each prompt alone: no pad is a token of it."""
    model = pico("llama")
    model.generation_config.update(**settings)
    (ours,) = decode(model, 12, rows=prompts(), num_beams=beams).values()
    assert ours == [generated(model, row, 12, num_beams=beams) for row in prompts()]


def test_a_least_length_counts_new_tokens() -> None:
    """The recipe's own, whatever the prompt's length."""
    model = pico("gpt2")
    (ours,) = decode(model, 12, rows=prompts(), min_length=6).values()
    assert ours == [generated(model, row, 12, min_new_tokens=6) for row in prompts()]
    assert min(map(len, ours)) == 7


def test_a_prompt_that_leaves_no_room_is_told() -> None:
    """Before the first step, where there is a table of positions; not of the last that fits."""
    model = pico("gpt2")
    (rows,) = decode(model, 14, rows=[[5] * 50]).values()
    assert rows == [generated(model, [5] * 50, 14)]
    with pytest.raises(
        StageError, match="50 tokens and 15 new ones are more than the 64 positions"
    ):
        decode(model, 15, rows=[[5], [5] * 50])
