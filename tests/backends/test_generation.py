"""Decoding equals `model.generate` token for token, at every limit. Speed is in `benchmarks`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedModel

from compressor.backends.beam_search import search_tokens
from compressor.backends.generation_settings import Settings
from compressor.backends.outputs import cut_row
from compressor.backends.torch import generation
from compressor.core.errors import StageError
from tests.harness.models import decode_sweep, generate_rows

# Limits below min_length are meant.
pytestmark = pytest.mark.filterwarnings("ignore:Unfeasible length constraints")

LIMITS = [30, 2, 3, 7, 12, 20]
PAD, EOS, VOCABULARY = 0, 1, 100
BART_LIKE: dict[str, Any] = {
    "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64, "init_std": 0.3, "forced_eos_token_id": EOS,
}  # fmt: skip
T5_LIKE: dict[str, Any] = {
    "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "initializer_factor": 2.0,
}  # fmt: skip
# The last two, a seed and a scale of the end token's logits, were looked for: with them some rows
# end at different steps and some do not end.
PICO: dict[str, tuple[dict[str, Any], int, float]] = {
    "t5": (T5_LIKE, 5, 2.5), "bart": (BART_LIKE, 4, 2.5), "pegasus": (BART_LIKE, 0, 2.5),
    "marian": (BART_LIKE, 12, 3.0),
}  # fmt: skip


def pico(kind: str, seed: int = 0, scale: float = 0.0, **changes: Any) -> PreTrainedModel:
    """Fresh weights, untied and large, so that tokens vary."""
    shape, *usual = PICO[kind]
    seed, scale = (seed, scale) if scale else usual
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind, d_model=32, vocab_size=VOCABULARY, pad_token_id=PAD, bos_token_id=2,
        eos_token_id=EOS, decoder_start_token_id=PAD, tie_word_embeddings=False, **shape | changes,
    )  # fmt: skip
    model: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(VOCABULARY, 32))
        model.lm_head.weight[EOS] *= scale
    return model


def texts(count: int = 12) -> list[list[int]]:
    """Rows of 3 to 20 tokens, in no order, each with its end token."""
    draw = random.Random(0)
    return [
        [draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(2, 20))] + [EOS]
        for _ in range(count)
    ]


def generated(
    model: PreTrainedModel, sources: list[list[int]], limit: int, **settings: Any
) -> list[list[int]]:
    """What transformers gives for the rows, in one batch; each up to its end token."""
    width = max(map(len, sources))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sources])
    output = model.generate(
        ids, attention_mask=mask, do_sample=False, max_length=limit, **({"num_beams": 1} | settings)
    )
    rows = output[:, 1:].tolist()
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]


@pytest.fixture(params=PICO)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return pico(request.param)


def test_a_sweep_is_separate_decodes(model: PreTrainedModel) -> None:
    """At each limit a sweep gives what `generate` gives with it, in the sources' order, forced end
    tokens included; some rows end early, at different steps, and some do not.
    """
    swept = decode_sweep(model, texts(), max_lengths=LIMITS)
    for limit in LIMITS:
        assert generated(model, texts(), limit) == swept[limit].tokens
    lengths = {len(row) for row in swept[30].tokens}
    assert len(lengths - {29}) >= 3
    assert 29 in lengths
    # With beams each limit is decoded on its own, since no prefix of a longer one is it.
    for limit, ours in decode_sweep(model, texts(), max_lengths=[7, 20], num_beams=2).items():
        assert generated(model, texts(), limit, num_beams=2) == ours.tokens


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize(
    "settings",
    [
        {"min_length": 9},
        {"min_length": 25},
        {"min_new_tokens": 5},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [7, 8]]},
        {"suppress_tokens": [4, 9, 75], "begin_suppress_tokens": [EOS]},
        {"forced_bos_token_id": 6},
        {"exponential_decay_length_penalty": (4, 1.3)},
        {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
        {"eos_token_id": [EOS, 42]},
        {"num_beams": 3, "use_cache": False, "output_scores": True, "num_beam_groups": 3},
        {"eos_token_id": [EOS, 42], "forced_eos_token_id": EOS},
    ],
    ids="-".join,
)
def test_generation_config(kind: str, settings: dict[str, Any]) -> None:
    """What the generation config sets is honoured at each limit as `generate` does of each row
    alone, save its own beams and cache; min_length above a limit too.
    """
    model, asked = pico(kind), pico(kind)
    model.generation_config.update(**settings)
    asked.generation_config.update(**settings)
    if "num_beams" in settings:
        asked.generation_config.update(num_beams=1, num_beam_groups=1)
    for limit, ours in decode_sweep(model, texts(8), max_lengths=[20, 7]).items():
        expected = [generated(asked, [row], limit)[0] for row in texts(8)]
        if "eos_token_id" in settings:
            ends = [next((i for i, t in enumerate(r, 1) if t in {EOS, 42}), None) for r in expected]
            expected = [row[:end] for row, end in zip(expected, ends, strict=True)]
        assert expected == ours.tokens


def test_padding_is_no_part_of_a_source() -> None:
    """What looks at the source sees a row's own tokens alone, however long its neighbours are."""
    differing = 0
    for beams, settings in (
        (4, {"encoder_no_repeat_ngram_size": 2}),
        (1, {"encoder_repetition_penalty": 1.5}),
    ):
        model = pico("t5")
        model.lm_head.weight.data *= 20
        model.generation_config.update(**settings)
        ours = generate_rows(model, texts(), max_length=9, num_beams=beams).tokens
        assert [generated(model, [row], 9, num_beams=beams)[0] for row in texts()] == ours
        differing += generated(model, texts(), 9, num_beams=beams) != ours
    assert differing  # where `generate` takes pads for tokens of the source


def test_lengths_are_those_of_the_usual_script() -> None:
    """run_summarization.py: `np.count_nonzero(pred != tokenizer.pad_token_id)` of each prediction,
    its decoder start token included, which is a pad in T5 and an end token in BART.
    """
    for kind, start in (("t5", PAD), ("bart", EOS)):
        model = pico(kind)
        model.generation_config.decoder_start_token_id = start
        ids = [row for row in texts() if len(row) == len(texts()[0])]
        predictions = model.generate(torch.tensor(ids), max_length=12, do_sample=False)
        script = [int(np.count_nonzero(row != PAD)) for row in predictions.numpy()]
        decoded = generate_rows(model, ids, max_length=12)
        assert script == decoded.lengths
        rows = zip(script, decoded.tokens, strict=True)
        assert {length - len(row) + row.count(PAD) for length, row in rows} == {int(start != PAD)}


def test_min_length(model: PreTrainedModel) -> None:
    """`min_length` counts the start token: no row ends before it, and the config's is replaced."""
    model.generation_config.min_new_tokens = 2
    ours = generate_rows(model, texts(), max_length=20, min_length=10)
    assert generated(model, texts(), 20, min_length=10, min_new_tokens=None) == ours.tokens
    assert min(map(len, ours.tokens)) >= 10


@pytest.mark.parametrize("batch_tokens", [1, 100, 300])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_batches_do_not_show(batch_tokens: int, num_beams: int, monkeypatch) -> None:
    """However few rows fit in a batch, results come in the sources' order; progress adds up."""
    done, model = list[int](), pico("t5")
    monkeypatch.setattr(generation, "BATCH_TOKENS", batch_tokens)
    ours = generate_rows(model, texts(), max_length=20, num_beams=num_beams, progress=done.append)
    assert generated(model, texts(), 20, num_beams=num_beams) == ours.tokens
    assert sum(done) == 12
    assert len(done) > 1


def test_ended_rows_are_not_computed() -> None:
    """The decoder is run on fewer and fewer rows, and not after the last one has ended; where a
    processor knows rows by place (encoder_repetition_penalty), all stay.
    """
    model = pico("t5")
    seen: list[int] = []
    model.decoder.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    ours = generate_rows(model, texts(), max_length=30)
    assert len(seen) == 29
    assert seen == sorted(seen, reverse=True)
    assert sum(ours.cut_off) == seen[-1] < seen[0] == 12
    ending = [row for row, cut in zip(texts(), ours.cut_off, strict=True) if not cut]
    seen.clear()
    longest = max(map(len, generate_rows(model, ending, max_length=30).tokens))
    assert longest == len(seen) < 29
    seen.clear()
    model.generation_config.encoder_repetition_penalty = 1.1
    generate_rows(model, texts(), max_length=30)
    assert {12} == set(seen)


def test_beams_count_as_rows_of_a_batch(monkeypatch) -> None:
    """A batch has no more positions than allowed, with three beams for each of its rows."""
    model, seen = pico("t5"), list[int]()
    model.decoder.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(len(inputs["input_ids"])), with_kwargs=True
    )
    monkeypatch.setattr(generation, "BATCH_TOKENS", 200)
    generate_rows(model, texts(40), max_length=10, num_beams=3)
    assert 3 < max(seen) <= 200 // 10


@pytest.mark.parametrize("num_beams", [1, 2])
def test_logits_that_are_infinite_are_refused(num_beams: int) -> None:
    """Of all tokens that one would be chosen, always."""
    model = pico("bart")
    model.final_logits_bias[0, 5] = torch.inf
    with pytest.raises(StageError, match="NaN or infinite"):
        generate_rows(model, texts(), max_length=10, num_beams=num_beams)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_logits_of_an_export_that_are_nan_are_refused(num_beams: int) -> None:
    """They go through a decoder of ours, in numpy: `argmax` takes NaN for the best."""

    class Decoder:
        def step(self, tokens: Any) -> Any:
            return np.full((len(tokens), 7), np.nan, dtype=np.float32)

        def keep(self, rows: Any) -> None: ...
        def reorder(self, rows: Any) -> None: ...

    settings = Settings(eos=(1,), max_length=5)
    with pytest.raises(StageError, match="the model's logits are NaN"):
        search_tokens(Decoder(), np.zeros((2, 1), dtype=np.int64), num_beams, settings)


def test_shortest_limits(model: PreTrainedModel) -> None:
    """Limit 1 has room for the start token alone, 0 is refused; no sources give no rows."""
    for beams in (1, 2):
        shortest = generate_rows(model, texts(), max_length=1, num_beams=beams)
        assert (shortest.tokens, shortest.cut_off) == ([[]] * 12, [True] * 12)
    with pytest.raises(ValueError, match="0 is below 1"):
        decode_sweep(model, texts(), max_lengths=[20, 0])
    decoded = generate_rows(model, [], max_length=20)
    assert (decoded.tokens, decoded.cut_off, decoded.generated) == ([], [], 0)


def test_cut_off() -> None:
    """A row is cut off if it lacks an end token within the limit, or fills it by a forced end."""
    assert cut_row([5, 6, EOS], 3, [EOS]) == ([5, 6], True)
    assert cut_row([5, 6, EOS], 4, [EOS]) == ([5, 6, EOS], False)
    assert cut_row([5, 6, EOS], 9, {EOS}) == ([5, 6, EOS], False)
    assert cut_row([5, 6, EOS], 1, [EOS]) == ([], True)
    for num_beams in (1, 2):
        free = generate_rows(pico("t5"), texts(), max_length=12, num_beams=num_beams)
        assert [EOS not in row for row in free.tokens] == free.cut_off
    forced = generate_rows(pico("bart"), texts(), max_length=12, num_beams=2)
    assert [len(row) == 11 for row in forced.tokens] == forced.cut_off
    assert any(forced.cut_off)
    plain = pico("bart", forced_eos_token_id=None)
    free = generate_rows(plain, texts(), max_length=12)
    assert any(free.cut_off)
    assert generate_rows(pico("bart"), texts(), max_length=12).cut_off == free.cut_off


def test_the_model_is_left_as_it_was() -> None:
    """Dropout is off while decoding only; the generation config is not written to."""
    model = pico("bart")
    config = model.generation_config.to_dict()
    expected = generate_rows(model, texts(), max_length=20).tokens
    model.train()
    decoded = decode_sweep(model, texts(), max_lengths=[20, 7], min_length=5)[20]
    assert model.training
    assert config == model.generation_config.to_dict()
    assert generate_rows(model, texts(), max_length=20).tokens == expected
    assert sum(map(len, decoded.tokens)) == decoded.generated


def test_a_decoder_deeper_than_its_encoder_is_decoded() -> None:
    """Transformers makes its cache with as many layers as the encoder has."""
    model = pico("t5", num_layers=1, num_decoder_layers=3)
    expected: list[int] = [PAD]
    with torch.no_grad():
        while len(expected) < 8 and expected[-1] != EOS:
            ids = torch.tensor([[5, 6, 7, EOS]])
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([expected])).logits
            expected.append(int(logits[0, -1].argmax()))
    assert generate_rows(model, [[5, 6, 7, EOS]], max_length=8).tokens == [expected[1:]]
