"""Decoders in recipes: what they write, and their perplexity, beside plain transformers."""

from __future__ import annotations

import csv
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import compressor
from compressor.core.errors import RecipeError
from compressor.data.bills import make_bills
from compressor.data.examples import PSEUDO_LABELS, read_pseudo_labels
from compressor.models.facts import derive_facts
from compressor.reports.compare.significance import compare_scores, score_rows
from tests.engine.test_plan import plan_recipe
from tests.evaluation.test_perplexity import strided_loss
from tests.harness.command import Command
from tests.harness.command import compressor as run_command
from tests.harness.once import run_once
from tests.harness.runs import find_stage

HEAD = """
defaults: [/base, /data: bills, _self_]
model:
  head: causal_lm
  config: {model_type: MODEL, vocab_size: 400, hidden_size: 32, num_hidden_layers: 2,
           num_attention_heads: 4, intermediate_size: 64, max_position_embeddings: 128}
  tokenizer: {vocab_size: 400}
data: {task: language_modeling, rows: {train: 16, validation: 8, test: 6}, max_source_length: 96,
       max_target_length: 16, seed: 1, prefix: ""}
training: {batch_size: 8, learning_rate: 0.01, warmup_steps: 2, checkpoint_seconds: 0}
"""
ALONE = (
    HEAD.replace("MODEL", "llama")
    + """
pipeline: [load, finetune, curves, prune, half, thin, distill, quantize, evaluate]
stages:
  load: {}
  finetune: {max_steps: 4}
  curves: {stage: sensitivity, rows: 4, amounts: [0.5]}
  prune: {target: {nonzero_ratio: 0.8}, sensitivity: curves}
  half: {stage: shrink, model: finetune, decoder_layers: 1}
  thin: {stage: slice, feed_forward: 0.5}
  distill: {teacher: finetune, max_steps: 4}
  quantize: {}
  evaluate: {models: [finetune, prune, distill, quantize], against: finetune, window: 40}
"""
)
CHANGES = (
    ("language_modeling,", "language_modeling, completion: summary,"),
    ("vocab_size: 400, hidden_size: 32, num_hidden_layers: 2,", "vocab_size: 400, n_embd: 32,"),
    ("num_attention_heads: 4, intermediate_size: 64, max_position_embeddings: 128",
     "n_layer: 2, n_head: 4, n_positions: 128"),
)  # fmt: skip
PAIRS = (
    HEAD.replace("MODEL", "gpt2")
    + """
pipeline: [load, finetune, curves, teach, half, learn, evaluate]
stages:
  load: {}
  finetune: {max_steps: 6}
  curves: {stage: sensitivity, rows: 4, amounts: [0.5], rouge: true, max_length: 6, only: [lm_head]}
  teach: {stage: pseudo_label, max_length: 8}
  half: {stage: shrink, decoder_layers: 1}
  learn: {stage: finetune, targets: teach, max_steps: 2}
  evaluate: {models: [finetune, learn], against: finetune, max_length: [4, 9], demo_text: An act.,
             metrics: [rouge, perplexity]}
"""
)
POSITIONS = ALONE
for change in CHANGES:
    PAIRS = PAIRS.replace(*change)
for change in CHANGES[1:]:
    POSITIONS = POSITIONS.replace("llama", "gpt2").replace(*change)
RECIPES = {"alone": ALONE, "pairs": PAIRS, "positions": POSITIONS}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return run_once(tmp_path_factory, "alone", ALONE)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return run_once(tmp_path_factory, "pairs", PAIRS)


def read_texts(split: str, count: int) -> list[str]:
    return [row["text"] for row in make_bills(count, seed=1, split=split)]


def load_plainly(done: Command, name: str) -> tuple[Any, Any]:
    folder = find_stage(done.run_folder, name)
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def write_plainly(done: Command, name: str, texts: list[str], limit: int) -> list[str]:
    """What `generate` writes after each prompt by itself."""
    model, tokenizer = load_plainly(done, name)
    written = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=96).input_ids[:-1]  # without its eos
        given = torch.tensor([ids])
        mask = torch.ones_like(given)
        output = model.generate(given, attention_mask=mask, do_sample=False, max_new_tokens=limit)
        written.append(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))
    return written


def test_a_runs_perplexity_is_that_of_a_plain_loop(alone: Command) -> None:
    """Of the model in the stage's folder, over the whole of each text; less of it is more left."""
    model, tokenizer = load_plainly(alone, "distill")
    texts = read_texts("test", 6)
    sums = [strided_loss(model, tokenizer(text).input_ids, 40, 20) for text in texts]
    loss, tokens = (sum(column) for column in zip(*sums, strict=True))
    metrics = alone.record("evaluate@distill")["metrics"]
    assert metrics["tokens"] == tokens > 6 * 100
    assert metrics["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-5)
    words = sum(len(text.split()) for text in texts)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(loss / words), rel=1e-5)
    low, high = metrics["intervals"]["perplexity"]
    assert low < metrics["perplexity"] < high
    base = alone.record("evaluate@finetune")["metrics"]["perplexity"]
    assert metrics["retention"] == pytest.approx(base / metrics["perplexity"])
    quantized = alone.record("evaluate@quantize")["metrics"]["perplexity"]
    assert quantized == pytest.approx(metrics["perplexity"], rel=0.01)
    assert quantized != metrics["perplexity"]


def test_perplexities_are_compared_row_by_row(alone: Command) -> None:
    """The difference that a paired test is made of is that of the two scores."""
    folders = (find_stage(alone.run_folder, f"evaluate@{name}") for name in ("finetune", "prune"))
    paired = compare_scores(*(score_rows(folder / "perplexity.csv") for folder in folders))
    scores = [
        alone.record(f"evaluate@{name}")["metrics"]["perplexity"] for name in ("finetune", "prune")
    ]
    assert paired["perplexity"].difference == pytest.approx(scores[1] - scores[0])
    assert paired["perplexity"].rows == 6
    assert (alone.run_folder / "perplexity.csv").is_file()


def test_a_decoder_writes_what_generate_does(pairs: Command) -> None:
    """After each prompt by itself, at each limit; the same from Python and as pseudo-labels."""
    texts = read_texts("test", 6)
    with (find_stage(pairs.run_folder, "evaluate@learn") / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for limit in (4, 9):
        predictions = [row["prediction"] for row in rows if row["max_length"] == str(limit)]
        assert predictions == write_plainly(pairs, "learn", texts, limit)
    assert {row["tokens"] for row in rows} <= {str(count) for count in range(1, 10)}
    predictor = compressor.load(find_stage(pairs.run_folder, "learn"))
    assert (
        predictor.write(texts, max_length=9)
        == predictions
        == predictor.summarize(texts, max_length=9)
    )
    labels = read_pseudo_labels(find_stage(pairs.run_folder, "teach") / PSEUDO_LABELS)
    assert [label.summary for label in labels] == write_plainly(
        pairs, "finetune", read_texts("train", 16), 8
    )
    assert pairs.record("evaluate@learn")["metrics"]["retention"] is not None


def test_completions_have_the_perplexity_of_transformers_own_loss(pairs: Command) -> None:
    """After each prompt, end token included; words and bytes are those within the limit. Tables
    show it beside ROUGE, and `compare` pairs its rows.
    """
    model, tokenizer = load_plainly(pairs, "learn")
    losses, tokens, size = 0.0, 0, 0
    for row in make_bills(6, seed=1, split="test"):
        prompt = tokenizer(row["text"], truncation=True, max_length=96).input_ids[:-1]
        answer = tokenizer(row["summary"], add_special_tokens=False).input_ids[:15]
        size += len(tokenizer.decode(answer).encode())
        answer = [*answer, tokenizer.eos_token_id]
        labels = torch.tensor([[*[-100] * len(prompt), *answer]])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([[*prompt, *answer]]), labels=labels).loss
        losses, tokens = losses + float(mean) * len(answer), tokens + len(answer)
    metrics = pairs.record("evaluate@learn")["metrics"]
    assert metrics["tokens"] == tokens
    assert metrics["loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    assert metrics["byte_perplexity"] == pytest.approx(math.exp(losses / size), rel=1e-5)
    other = pairs.record("evaluate@finetune")["metrics"]
    assert metrics["retentions"]["perplexity"] == other["perplexity"] / metrics["perplexity"]
    assert {"rougeLsum", "perplexity"} <= metrics["intervals"].keys()
    assert "perplexity" in pairs.out
    files = [find_stage(pairs.run_folder, f"evaluate@{n}") for n in ("finetune", "learn")]
    names = ("rougeLsum", "perplexity")
    sides = [score_rows(file / "predictions.csv", "english", names) for file in files]
    paired = compare_scores(*sides)["perplexity"]
    assert paired.difference == pytest.approx(metrics["perplexity"] - other["perplexity"])


TINY = (
    *("model=tiny_llama", "data=bill_texts", "training=quick", "training.max_steps=2"),
    *("model.config.hidden_size=32", "model.config.intermediate_size=64"),
    *("model.config.vocab_size=400", "model.tokenizer.vocab_size=400", "stages.original.epochs=2"),
    *("data.rows.train=16", "data.rows.validation=4", "data.rows.test=4", "training.batch_size=4"),
)


def test_the_checked_in_recipe_plans_without_a_hub_and_runs_tiny(tmp_path: Path) -> None:
    """SmolLM2-135M has 134.5 M parameters, as published; half its layers, half as wide, 61.5 M."""
    published = plan_recipe("decoder/smollm_half").nodes
    sizes = {node.name: node.facts.parameters for node in published if node.facts}
    assert (sizes["load"], sizes["slice"]) == (134_515_008, 61_507_008)
    done = run_command("run", "decoder/smollm_half", *TINY, cwd=tmp_path)
    assert done.code == 0, done.err
    assert 0 < done.record("evaluate@quantize")["metrics"]["retention"] < 2
    assert done.record("quantize")["parameters"] < 0.7 * done.record("load")["parameters"]


@pytest.mark.parametrize(
    ("recipe", "override", "expected"),
    [
        ("positions", "stages.evaluate.window=129", "window: the model has 128 positions"),
        ("alone", "stages.evaluate.window=129", "window: the model has 128 positions, too few"),
        ("alone", "data.max_source_length=129", "data.max_source_length: the model has 128"),
        ("alone", "stages.evaluate.stride=40", "evaluate.stride: 40 leaves a window of 40 tokens"),
        ("alone", "stages.evaluate.max_length=9", "max_length: means nothing where the perplex"),
        ("alone", "stages.curves.rouge=true", "rouge: nothing is written for texts alone"),
        ("pairs", "stages.evaluate.window=9", "evaluate.window: means nothing where texts"),
        ("pairs", "stages.evaluate.metrics=[perplexity]", "demo_text: means nothing where nothing"),
        ("pairs", "data.completion=null", "teach: nothing is written for texts alone"),
        ("pairs", "stages.evaluate.max_length=40", "too few for 136 tokens; lower it or data.max"),
        ("pairs", "stages.teach.max_length=33", "teach.max_length: the model has 128 positions"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, recipe: str, override: str, expected: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPES[recipe])
    with pytest.raises(RecipeError) as error:
        plan_recipe(path, override)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, 64),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 128),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 1.5}}, 96),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0,
                              "original_max_position_embeddings": 32}}, 128),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0,
                              "original_max_position_embeddings": 8}}, 64),
    ],
)  # fmt: skip
def test_rotary_positions_end_where_they_were_trained_to(rope: Any, expected: int) -> None:
    """Stretched angles have as many more; nothing in the model fails beyond, so the plan does."""
    config = {"model_type": "qwen2", "max_position_embeddings": 64, **(rope or {})}
    assert derive_facts(config, head="causal_lm").positions == expected
    assert derive_facts({"model_type": "llama"}, head="causal_lm").positions == 2048


EXPORTED = (
    HEAD.replace("MODEL", "llama").replace("num_hidden_layers: 2", "num_hidden_layers: 1")
    + """
pipeline: [load, WRITTEN, evaluate, benchmark]
stages:
  load: {}
  ct2: {stage: export, format: ctranslate2, weights: float32}
  onnx: {stage: export, model: load, format: onnx, weights: float32}
  gguf: {stage: export, model: load, format: gguf, weights: float32}
  evaluate: {models: [load, WRITTEN], window: 40}
  benchmark: {models: [load, WRITTEN], batch_sizes: [1, 3], input_lengths: [20],
              output_lengths: [2, 7],
              texts: 3, warm_up: 1}
"""
)
WRITTEN = ("ct2", "onnx", *(("gguf",) if find_spec("llama_cpp") else ()))
EXPORTED = EXPORTED.replace("WRITTEN", ", ".join(WRITTEN))


def test_an_exported_decoder_is_scored_and_timed_beside_its_source(tmp_path_factory) -> None:
    """Of the same perplexity; each of them reads and writes exactly the tokens that were asked for,
    prefill and decode apart.
    """
    done = run_once(tmp_path_factory, "exported", EXPORTED)
    assert done.code == 0, done.err
    metrics = {record["name"]: record["metrics"] for record in done.records()}
    for name in WRITTEN:
        perplexities = [metrics[f"evaluate@{model}"]["perplexity"] for model in ("load", name)]
        assert perplexities[1] == pytest.approx(perplexities[0], rel=1e-5)
        assert metrics[name]["parity"]["equal_tokens"] >= 0.98
    for name in ("load", *WRITTEN):
        timed = metrics[f"benchmark@{name}"]
        shape = [(case["output_tokens"], case["batch_size"]) for case in timed["cases"]]
        assert shape == [(2, 1), (2, 3), (7, 1), (7, 3)]
        for case in timed["cases"]:
            new, size = case["output_tokens"], case["batch_size"]
            assert case["tokens_per_second"] == pytest.approx(new * case["texts_per_second"])
            read = case["prefill_tokens_per_second"] * case["first_token_ms"] / 1000
            assert read == pytest.approx(20 * size)
        assert timed["first_token_ms"] == timed["cases"][0]["first_token_ms"]
    page = (done.run_folder / "report.html").read_text(encoding="utf-8")
    assert "prefill" in done.out and "decode" in done.out
    assert "prefill tokens/s" in page
    assert "decode tokens/s" in (done.run_folder / "README.md").read_text(encoding="utf-8")


def test_a_timed_decoder_has_room_for_what_it_writes(tmp_path) -> None:
    """Of all positions: the longest prompt and the tokens after it."""
    text = EXPORTED.replace("llama", "gpt2").replace("num_hidden_layers: 1", "num_hidden_layers: 2")
    for old, new in CHANGES[1:]:
        text = text.replace(old, new)
    text = text.replace("input_lengths: [20]", "input_lengths: [20, 122]")
    path = tmp_path / "timed.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"too few for 129 tokens; .*input_lengths\.1"):
        plan_recipe(path)
