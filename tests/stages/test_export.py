"""`export` as a user runs it: what is planned, kept, refused and left behind."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import compressor
from compressor.backends.formats import explain_refusal
from compressor.core.errors import RecipeError, StageError
from compressor.engine.plan import Plan
from compressor.evaluation.resources import measure_sizes
from compressor.models.facts import derive_facts
from tests.engine.test_plan import plan_recipe
from tests.harness.models import PICO
from tests.harness.runs import find_stage

CHAIN = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, finetune, slice, prune, recover, quantize, plain, packed, ct2, onnx, evaluate,
           benchmark]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 64, validation: 16, test: 12}, max_source_length: 96, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2}
stages:
  load: {}
  finetune: {epochs: 30, learning_rate: 0.01}
  slice: {heads: 3, feed_forward: 0.75}
  prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}
  recover: {stage: finetune, epochs: 8}
  quantize: {activations: float}
  plain: {stage: export}
  packed: {stage: export, format: packed}
  ct2: {stage: export, format: ctranslate2, parity: {rouge: 0.2}}    # of 12 rows, of a weak model
  onnx: {stage: export, format: onnx, parity: {rouge: 0.2}}
  evaluate: {models: [recover, ct2, onnx], against: recover, max_length: [8, 32]}
  benchmark: {models: [recover, ct2, onnx], batch_sizes: [2], output_lengths: [6], texts: 2}
"""


def test_a_sliced_pruned_quantized_model_goes_to_every_format(run, tmp_path) -> None:
    """Each passes its gate, is scored and timed as what it is, and takes texts afterwards."""
    (tmp_path / "chain.yaml").write_text(CHAIN)
    done = run("run", "chain.yaml")
    assert done.code == 0, done.err
    records = {record["name"]: record for record in done.records()}
    for name in ("plain", "packed", "ct2", "onnx"):
        metrics = records[name]["metrics"]
        assert metrics["parity"]["rows"] == 12
        exact = name in ("plain", "packed")  # these two have the model's own values
        assert metrics["parity"]["equal_tokens"] >= (0.98 if exact else 0.8)
        assert metrics["bytes"] <= metrics["disk_bytes"]
        assert metrics["resident_bytes"] > 1e6
        assert records[name]["bytes"] == metrics["bytes"]
    # int8 takes a quarter; heads and neurons of the source are gone, zeros are not stored.
    dense = records["plain"]["bytes"]
    assert records["ct2"]["bytes"] < 0.45 * dense
    assert records["onnx"]["bytes"] < dense  # its graphs are half of so small a model
    assert records["packed"]["bytes"] < 0.45 * dense
    scored = {r["model"]: r["metrics"] for r in records.values() if r["stage"] == "evaluate"}
    timed = {r["model"]: r["metrics"] for r in records.values() if r["stage"] == "benchmark"}
    assert list(scored) == list(timed) == ["recover", "ct2", "onnx"]
    assert [timed[name]["backend"] for name in timed] == ["torch", "ctranslate2", "onnxruntime"]
    assert timed["recover"]["speedup"] == 1.0
    for name, metrics in timed.items():
        (case,) = metrics["cases"]
        written = case["tokens_per_second"] * 2 / case["texts_per_second"]
        assert written == pytest.approx(12), name  # 2 texts of 6 tokens, whatever runs it
    for name in ("ct2", "onnx"):
        assert scored[name]["retention"] == pytest.approx(1, abs=0.4)
    assert "faster" in done.out and "equal to its source" in done.out

    # What is written is what was scored: by a run's last export, by a stage's own model.
    folder = done.run_folder
    for model, stage, backend in (("onnx", "", "onnxruntime"), ("recover", "recover", "torch")):
        rows = read_predictions(folder, model)
        place = find_stage(folder, stage) if stage else folder
        predictor = compressor.load(place)
        assert predictor.backend == backend
        texts = predictor.summarize([row["source"] for row in rows["32"]])
        assert texts == [row["prediction"] for row in rows["32"]]
    short = read_predictions(folder, "onnx")["8"][0]
    summarized = run("summarize", folder, "--max-length", 8, stdin=short["source"])
    assert summarized.code == 0, summarized.err
    assert summarized.out.strip() == " ".join(short["prediction"].split("\n")).strip()
    with pytest.raises(StageError, match="expected a classifier"):
        compressor.load(folder).classify(["a"])


def read_predictions(folder: Path, model: str) -> dict[str, list[dict[str, str]]]:
    """Rows of an evaluation by `max_length`."""
    with (find_stage(folder, f"evaluate@{model}") / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {limit: [r for r in rows if r["max_length"] == limit] for limit in ("8", "32")}


CLASSIFIER = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, finetune, ct2, onnx, evaluate]
data: {rows: {train: 64, validation: 16, test: 12}}
model:
  config: {vocab_size: 400, hidden_size: 32, num_hidden_layers: 2, intermediate_size: 48}
  tokenizer: {vocab_size: 400}
training: {batch_size: 16, learning_rate: 0.003, warmup_steps: 2}
stages:
  load: {}
  finetune: {epochs: 2}
  ct2: {stage: export, format: ctranslate2, weights: float32}
  onnx: {stage: export, format: onnx, weights: float32, model: finetune}
  evaluate: {models: [finetune, ct2, onnx]}
"""


def test_a_classifier_gives_its_probabilities_everywhere(run, tmp_path) -> None:
    """What `evaluate` says of torch's is what both backends give, within float32's rounding."""
    (tmp_path / "labels.yaml").write_text(CLASSIFIER)
    done = run("run", "labels.yaml")
    assert done.code == 0, done.err
    losses = [r["metrics"]["loss"] for r in done.records() if r["stage"] == "evaluate"]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)
    models = [compressor.load(find_stage(done.run_folder, name)) for name in ("ct2", "onnx")]
    text = "Where is my parcel? It is late."
    first, second = (model.classify([text])[0] for model in models)
    assert first == pytest.approx(second, abs=1e-4)
    assert len(first) == 6 and all(0 < value < 1 for value in first.values())
    answer = run("classify", done.run_folder, "--lines", stdin=f"{text}\n{text}\n")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    likeliest = max(second, key=lambda name: second[name])
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith(f"{likeliest} {second[likeliest]:.4f}")


def test_what_fails_its_gate_is_not_kept_and_leaves_its_rows(run, tmp_path) -> None:
    """Limits that int8 cannot meet: exit code 1, no artifact, and the rows of both models."""
    text = CLASSIFIER.replace("weights: float32}", "parity: {logits: 1.0e-9, rows: 5}}", 1)
    (tmp_path / "labels.yaml").write_text(text)
    done = run("run", "labels.yaml")
    assert done.code == 1
    assert "stage 'ct2': the exported model is not its source: a logit differs by" in done.err
    (rows,) = tmp_path.glob("outputs/runs/labels/*/parity/ct2/rows.csv")
    table = list(csv.reader(rows.open(newline="")))
    assert len(table) == 6 and len(json.loads(table[1][2])) == 6  # five rows of six labels
    assert f"the rows are in {rows.parent.relative_to(tmp_path)}" in done.err
    limits = json.loads(rows.with_name("parity.json").read_text())["limits"]
    assert limits["logits"] == 1e-9
    manifests = map(Path.read_text, tmp_path.glob("outputs/store/*/manifest.json"))
    assert sorted(json.loads(text)["stage"] for text in manifests) == ["finetune", "load"]


@pytest.fixture
def plan_chain(tmp_path: Path) -> Callable[..., Plan]:
    """Plan the chain with overrides."""
    (tmp_path / "chain.yaml").write_text(CHAIN)
    return partial(plan_recipe, tmp_path / "chain.yaml")


def test_another_backend_than_the_models_is_found_while_planning(plan_chain) -> None:
    """Planning says which export it would take."""
    message = "stages.evaluate.backend: 'ctranslate2' runs what `export` wrote for it, and this"
    with pytest.raises(RecipeError, match=f"{message} model is for 'torch'"):
        plan_chain("+stages.evaluate.backend=ctranslate2")


def test_a_skipped_export_is_not_another_model(plan_chain) -> None:
    """It leaves the reports, and nothing is held to it."""
    plan = plan_chain("skip=[ct2]")
    names = [node.name for node in plan.nodes]
    assert "evaluate@ct2" not in names and "evaluate@onnx" in names
    assert list(plan.node("benchmark").artifacts) == ["recover", "onnx"]
    assert any("'ct2' is skipped" in str(warning) for warning in plan.warnings)
    with pytest.raises(RecipeError, match="'ct2' is skipped"):
        plan_chain("stages.evaluate.against=ct2", "skip=[ct2]")


def test_what_runs_an_export_is_part_of_keys(plan_chain) -> None:
    """Of the export's and of those that look at it; the order of models is the benchmark's."""
    plan = plan_chain()
    for name in ("onnx", "evaluate@onnx", "benchmark"):
        assert "onnxruntime" in plan.node(name).key_parts["frameworks"], name
    for name in ("plain", "evaluate@recover"):
        assert set(plan.node(name).key_parts["frameworks"]) == {"torch", "transformers"}, name
    other = plan_chain("stages.benchmark.models=[ct2,recover,onnx]")
    assert other.node("benchmark").key != plan.node("benchmark").key


def test_a_bert_that_reads_one_way_alone_is_no_ctranslate2_encoder() -> None:
    """Refused while planning: CTranslate2's encoders read both ways."""
    for decoder in (False, True):
        config = PICO["bert"] | {"model_type": "bert", "is_decoder": decoder}
        facts = derive_facts(config, head="sequence_classification")
        assert ("is_decoder is true" in str(explain_refusal("ctranslate2", facts))) == decoder


def test_the_matrix_is_printed(run) -> None:
    """Each kind of model that can be loaded, and what takes it."""
    shown = run("stages", "export").out
    rows = {
        tuple(cell.strip() for cell in line.split("│")[1:3]): line.count("yes")
        for line in shown.splitlines()
        if "│" in line
    }
    assert rows["seq2seq_lm", "t5"] == 5
    assert rows["seq2seq_lm", "longt5"] == 2
    assert rows["sequence_classification", "electra"] == 3
    assert rows["causal_lm", "gpt2"] >= 2


def test_sizes_are_those_that_other_tools_tell(tmp_path) -> None:
    """Weights and all files by their lengths; gzip by Python's own."""
    data = bytes(range(256)) * 4000
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_bytes(b"{}")
    sizes = measure_sizes(tmp_path)
    assert sizes["bytes"] == len(data) and sizes["disk_bytes"] == len(data) + 2
    assert sizes["gzip_bytes"] == pytest.approx(len(gzip.compress(data, 1)), rel=0.02)


def test_a_place_without_a_model_is_told(tmp_path, run) -> None:
    with pytest.raises(StageError, match="has no model: expected a run's folder"):
        compressor.load(tmp_path)
    nothing = run("summarize", tmp_path)
    assert nothing.code == 2 and "no text on the standard input" in nothing.err
