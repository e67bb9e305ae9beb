"""`benchmark` by length of the input: what it measures, and what it refuses before it runs."""

from __future__ import annotations

import sys

import pytest
import torch

from compressor.evaluation.resources import Peak
from compressor.evaluation.timing import of_length
from compressor.stages.benchmark import Benchmark, Case, Times, _decoder_figures, _figures


def test_each_length_has_its_latency_its_peak_and_that_of_a_training_step(recipe, run) -> None:
    """The shortest first, whatever order the recipe has; an int8 model is not trained."""
    path = recipe(
        ("[load, finetune, prune, recover, evaluate]", "[load, quantize, benchmark]"),
        (
            "  evaluate: {max_length: [8, 16]}",
            "  quantize: {}\n  benchmark: {models: [load, quantize], max_length: 4, texts: 2, "
            "batch_sizes: [1], input_lengths: [700, 64], training_step: true}",
        ),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    records = done.records()
    assert [record["name"] for record in records[-2:]] == ["benchmark@load", "benchmark@quantize"]
    floating, int8 = (record["metrics"]["cases"] for record in records[-2:])
    for lengths in (floating, int8):
        assert [length["input_tokens"] for length in lengths] == [64, 700]
        for length in lengths:
            assert 0 < length["p50_ms"] <= length["p95_ms"] <= length["p99_ms"]
            assert length["batches"] == 3
            assert 50e6 < length["peak_bytes"] < 8e9  # bytes of a process that has torch loaded
    for length in floating:
        assert length["training_step"]["seconds"] > 0
        assert length["training_step"]["peak_bytes"] > 50e6
    assert not any("training_step" in length for length in int8)
    shown = run("show", done.run_folder).out
    for text in (done.out, shown):
        table = text[text.index("input") :]
        cells = [[c.strip() for c in line.split("│")[1:3]] for line in table.splitlines()]
        wanted = [[name, tokens] for name in ("load", "quantize") for tokens in ("64", "700")]
        assert [row for row in cells if row in wanted] == wanted


def test_what_is_not_measured_is_no_part_of_a_key() -> None:
    """Nor is what must run a model, which the model says already."""
    reading = Benchmark(input_lengths=(64,), backend="torch").parameters()
    assert {"training_step", "gradient_checkpointing", "backend"}.isdisjoint(reading)
    training = Benchmark(input_lengths=(64,), training_step=True).parameters()
    assert training == reading | {"training_step": True, "gradient_checkpointing": False}


def test_texts_of_a_length_are_those_of_the_rows_put_together() -> None:
    """Exactly so many tokens, one end token, around again after the last row."""
    sources = [[5, 6, 7, 1], [8, 9, 1]]
    assert of_length(sources, 4) == [5, 6, 7, 1]
    assert of_length(sources, 9) == [5, 6, 7, 8, 9, 5, 6, 7, 1]
    assert of_length(sources, 5, start=1) == [8, 9, 5, 6, 1]
    assert of_length(sources, 2, start=3) == [8, 1]


def test_figures_by_hand() -> None:
    """Batches of 4 in 0.1, 0.1 and 0.4 s, 6 tokens in each; the first model takes 0.2 s."""
    case = Case(batch_size=4, input_tokens=None, output_tokens=None, threads=1)
    figures = _figures(case, [0.1, 0.1, 0.4], [0.2, 0.2, 0.2], 18)
    assert figures == {
        "p50_ms": pytest.approx(100), "p95_ms": pytest.approx(370), "p99_ms": pytest.approx(394),
        "batches": 3, "texts_per_second": pytest.approx(40),
        "tokens_per_second": pytest.approx(60), "speedup": pytest.approx(2),
    }  # fmt: skip


def test_prefill_and_decode_by_hand() -> None:
    """3 batches of 4 prompts, 30 tokens in each batch, 6 new ones after each prompt: the first
    four in 0.1 s, the other twenty in 0.2, 0.3 and 0.5 s more.
    """
    case = Case(batch_size=4, input_tokens=None, output_tokens=6, threads=1)
    times = Times(seconds=[0.3, 0.4, 0.6], first=[0.1, 0.1, 0.1], read=90, written=72)
    assert _decoder_figures(case, times) == {
        "first_token_ms": pytest.approx(100), "prefill_tokens_per_second": pytest.approx(300),
        "decode_tokens_per_second": pytest.approx(20 / 0.3),
    }  # fmt: skip
    times.written = 12  # one a prompt
    assert _decoder_figures(case, times)["decode_tokens_per_second"] is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset a process's peak")
def test_a_peak_is_of_the_time_since_it_was_begun() -> None:
    """200 MB that were there and went do not count; 100 MB that came and went do."""
    large = torch.ones(50_000_000)
    before = Peak().bytes()
    del large
    peak = Peak()
    low = peak.bytes()
    torch.ones(25_000_000)
    high = peak.bytes()
    assert before is not None and low is not None and high is not None
    assert 190e6 < before - low < 250e6
    assert 95e6 < high - low < 150e6
