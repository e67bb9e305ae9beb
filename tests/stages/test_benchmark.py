"""`benchmark` by length of the input: what it measures, and what it refuses before it runs."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from compressor.errors import RecipeError
from compressor.memory import Peak
from compressor.plan import plan
from compressor.recipe import compose
from compressor.store import Store
from compressor.timing import of_length


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
    records = json.loads((path.parent / done.run_folder / "metrics.json").read_text())
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
    shown = run("show", path.parent / done.run_folder).out
    for text in (done.out, shown):
        table = text[text.index("input") :]
        cells = [[c.strip() for c in line.split("│")[1:3]] for line in table.splitlines()]
        wanted = [[name, tokens] for name in ("load", "quantize") for tokens in ("64", "700")]
        assert [row for row in cells if row in wanted] == wanted


def problems(recipe, benchmark: str, *overrides: str) -> list[str]:
    path = recipe(
        ("[load, finetune, prune, recover, evaluate]", "[load, benchmark]"),
        ("  evaluate: {max_length: [8, 16]}", f"  benchmark: {benchmark}"),
    )
    with pytest.raises(RecipeError) as caught:
        plan(compose(str(path), overrides), Store(path.parent))
    return [str(problem) for problem in caught.value.problems]


def test_lengths_over_a_models_positions_are_refused_when_planned(recipe) -> None:
    """BART of 48 positions: 48 is read, 49 is not; the key is named."""
    bart = ("model.config.model_type=bart", "+model.config.max_position_embeddings=48")
    bart += ("data.max_source_length=48",)
    found = problems(recipe, "{input_lengths: [48, 49]}", *bart)
    assert sum("positions" in problem for problem in found) == 1
    assert any(
        "stages.benchmark.input_lengths.1: the model has 48 positions, and 49 is more" in problem
        for problem in found
    )


@pytest.mark.parametrize(
    ("benchmark", "expected"),
    [
        ("{input_lengths: [1, 64]}", "at least 2 tokens"),
        ("{training_step: true}", "training_step needs input_lengths"),
    ],
)
def test_settings_that_measure_nothing_are_refused(recipe, benchmark, expected) -> None:
    """A text of an end token alone, and a training step without a length."""
    (found,) = problems(recipe, benchmark)
    assert expected in found


def test_what_is_not_measured_is_no_part_of_a_key() -> None:
    """Nor is what must run a model, which the model says already."""
    from compressor.stages.benchmark import Benchmark

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
