"""Classifiers, from labels to scores: their heads, and the whole chain as a user runs it."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from compressor.backends.torch.model import TorchModel
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.models.checkpoint import Checkpoint
from compressor.models.classifier_head import fit_head, start_at_labels
from compressor.models.loading import load_pretrained
from compressor.recipe.compose import compose
from tests.conftest import SHARED
from tests.harness.models import PICO
from tests.training.test_distillation import PROBLEM, TARGETS, batch, build_pico


def test_bert_tiny_has_its_published_size() -> None:
    """4.4 M: 4,385,920 of its body with pooler, 774 of the head for six labels."""
    nodes = plan(compose("bert/tiny_toxic", []), Store(Path("/nonexistent"))).nodes
    assert nodes[0].facts is not None
    assert nodes[0].facts.parameters == 4_385_920 + 774


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("layout", PROBLEM)
def test_a_fresh_head_starts_at_how_often_each_label_is_given(kind: str, layout: str) -> None:
    """Zero features give the shares of the labels; a trained head is left alone."""
    config = AutoConfig.for_model(
        kind, **PICO[kind], num_labels=3, problem_type=PROBLEM[layout], pad_token_id=0
    )
    model, labels = AutoModelForSequenceClassification.from_config(config), TARGETS[layout]
    start_at_labels(model, labels)
    last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
    if layout == "labels":
        assert torch.sigmoid(last.bias).tolist() == pytest.approx([1.5 / 4, 1.5 / 4, 2.5 / 4])
    else:
        assert last.bias.softmax(-1).tolist() == pytest.approx([1 / 3] * 3)
    before = last.bias.clone()
    start_at_labels(model, [labels[0]])
    assert torch.equal(last.bias, before)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "b", "c"], "the source's"),
        (["c", "a", "b"], "the source's, in the order of data.labels"),
        (["a", "b", "d"], "fresh: the source's is for other labels, such as 'c'"),
        (["a", "b"], "fresh: the source's is for 3 labels, not 2"),
    ],
)
@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2"])
def test_a_pretrained_head_keeps_its_meaning_or_goes(tmp_path, kind, labels, said) -> None:
    """Each label's logit is the source's for that name; a head for other labels is not kept."""
    source = build_pico(kind, 0, "labels")
    source.config.id2label = {0: "a", 1: "b", 2: "c"}
    source.config.label2id = {"a": 0, "b": 1, "c": 2}
    source.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = dict(enumerate(labels))
    task = {"id2label": names, "label2id": {n: i for i, n in names.items()}}
    task |= {"num_labels": len(labels), "problem_type": PROBLEM["labels"]}
    model = load_pretrained(tmp_path, "sequence_classification", config=task)
    assert fit_head(model, config, labels) == said
    inputs = {name: tensor for name, tensor in batch("labels").items() if name != "labels"}
    with torch.no_grad():
        logits, expected = model(**inputs).logits, source(**inputs).logits
    same = ["abc".index(name) for name in labels if name in "abc"]
    if said.startswith("the source"):
        assert torch.equal(logits, expected[:, same])
    else:
        assert logits.shape == (3, len(labels))
        assert not torch.isclose(logits[:, : len(same)], expected[:, same]).any()


def test_a_decoders_pad_is_its_tokenizers(tmp_path, run) -> None:
    """Or a row's last token would be taken for padding, or padding for it: logits would depend on
    what stands beside a row.
    """
    (tmp_path / "decoder.yaml").write_text("""
defaults: [/base, /data: messages, _self_]
pipeline: [load, evaluate]
model:
  head: sequence_classification
  config: {model_type: gpt2, vocab_size: 400, n_embd: 16, n_layer: 1, n_head: 2, pad_token_id: 7}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 40, validation: 8, test: 8}}
stages: {load: {}, evaluate: {}}
""")
    done = run("run", "decoder.yaml")
    assert done.code == 0, done.err
    checkpoint = Checkpoint.load(done.run_folder / "stages" / "00-load")
    sources = [[50, 60, 70, 7], [80, 90], [7, 100, 110]]
    together = TorchModel(checkpoint).logits(sources)
    alone = [TorchModel(checkpoint).logits([source])[0] for source in sources]
    assert together == pytest.approx(np.array(alone), abs=1e-6)


RECIPE = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [baseline, load, finetune, prune, recover, shrink, distill, quantize, evaluate, benchmark,
           export]
model:
  config: {vocab_size: 400, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
           intermediate_size: 48}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 96, validation: 24, test: 20}, max_source_length: 96}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  baseline: {label: TF-IDF}
  load: {}
  finetune: {}
  prune: {amounts: {encoder: {feed_forward: 0.5}}, importance: wanda, calibration_rows: 8}
  recover: {stage: finetune}
  shrink: {encoder_layers: 1}
  distill: {teacher: finetune, losses: {labels: 1, logits: 1, hidden: 1, attention: 1}}
  quantize: {model: recover}
  evaluate: {models: [finetune, recover, distill, quantize], against: finetune, threshold: tuned}
  benchmark: {texts: 3, warm_up: 1, batch_sizes: [1, 4]}
  export: {model: distill}
"""
MULTI = "data: {rows"
FILES = ("/data: messages", "/data: go_emotions_files")
PATHS = "files: {train: x.csv, validation: y.csv"


@pytest.mark.parametrize("task", ["multi_label", "single_label"])
def test_the_whole_chain_runs_and_its_export_gives_what_was_scored(recipe, run, task):
    """Trained, pruned, shrunk, distilled, quantized; plain transformers reads names and numbers."""
    changes = [] if task == "multi_label" else [(", threshold: tuned", "")]
    done = run("run", recipe((MULTI, f"data: {{task: {task}, rows"), *changes, text=RECIPE))
    assert done.code == 0, done.err
    assert all(word in done.out for word in ("TF-IDF", "macro", "ROC-AUC"))
    counts = done.record("recover")["nonzero"], done.record("prune")["nonzero"]
    assert abs(counts[0] - counts[1]) < 100  # biases that were zero begin to move
    assert done.record("benchmark")["metrics"]["latency_p50_ms"] > 0
    assert done.record("shrink")["parameters"] < done.record("finetune")["parameters"]
    for name in ("evaluate@recover", "evaluate@distill", "baseline"):
        metrics = done.record(name)["metrics"]
        assert 0 < metrics["loss"] < 3
        assert 0 <= metrics["macro_f1"] <= metrics["accuracy"] + 1
        assert len(metrics["labels"]) == 6
    assert done.record("evaluate@recover")["metrics"]["retention"] is not None

    (predictions,) = done.run_folder.glob("stages/*-evaluate@distill/predictions.csv")
    scored = run("score", predictions, "--json")
    again = json.loads(scored.out)
    metrics = done.record("evaluate@distill")["metrics"]
    assert {name: metrics[name] for name in again} == again
    with predictions.open() as stream:
        row = next(csv.DictReader(stream))
    exported = done.run_folder / "model"
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    text = AutoTokenizer.from_pretrained(exported)(
        row["source"].removeprefix("'"), return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(**text).logits[0]
    given = torch.sigmoid(logits) if task == "multi_label" else logits.softmax(-1)
    for name, value in zip(model.config.id2label.values(), given.tolist(), strict=True):
        assert float(row[f"p:{name}"]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([("/data: messages", "/data: bills")],
         "the head 'sequence_classification'; it takes data of the task multi_label or sing"),
        ([("tiny_bert", "tiny"), ("hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,\n"
           "           intermediate_size: 48", "d_model: 32")],
         "data.task: is multi_label, and the model has the head 'seq2seq_lm'"),
        ([("threshold: tuned", "max_length: 20")], "max_length: means nothing for labels"),
        ([("threshold: tuned", "threshold: 1")], "threshold"),
        ([("threshold: tuned", "threshold: 0.4"), (MULTI, "data: {task: single_label, rows")],
         "threshold: a row's one label is the likeliest"),
        ([("max_source_length: 96", "max_source_length: 300")],
         "has 256 positions, too few for 300 tokens; lower data.max_source_length"),
        ([("baseline: {label: TF-IDF}", "baseline: {sentences: 2}")], "sentences: means nothing"),
        ([("teacher: finetune,", "teacher: finetun,")], "no stage 'finetun'; did you mean 'finet"),
        ([("attention: 1}", "attention: 1}, layers: {encoder: {1: 0}}")],
         "layers.encoder.1: 1 is outside 0 … 0, the student's layers"),
        ([("attention: 1}", "attention: 1}, layers: {encoder: {0: 2}}")],
         "layers.encoder.0: 2 is outside 0 … 1, the teacher's layers"),
        ([(MULTI, "data: {labels: [refund, urgnt], rows")], "no column 'urgnt'"),
        ([FILES, (MULTI, f"data: {{labels: [[a]], {PATHS}}}, rows")],
         "data.labels.0: "),
        ([FILES, (MULTI, f"data: {{{PATHS}, trai: x}}, rows")],
         "data.files.trai: "),
    ],
)  # fmt: skip
def test_what_cannot_work_is_found_while_planning(plan_errors, changes, expected) -> None:
    """Each message names the key, and what would work."""
    assert expected in plan_errors(*changes, text=RECIPE)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a,1,0\nb,2,1", "row 1, column 'toxic': '2', not 0 or 1"),
        ("a,1,0\nb,,1", "row 1, column 'toxic': nothing, not 0 or 1"),
        ("a,yes,0\nb,0,1", "row 0, column 'toxic': 'yes', not 0 or 1"),
        ("a,1,0\nb,1,0", "rows.csv that is trained on has the label 'rude'; leave"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused_by_the_plan(
    tmp_path, plan_errors, rows, expected
) -> None:
    """With row and column, before anything is made."""
    (tmp_path / "rows.csv").write_text(f"text,toxic,rude\n{rows}\n")
    files = f"train: {tmp_path}/rows.csv, validation: {tmp_path}/rows.csv"
    told = plan_errors(
        ("/data: messages", "/data: files"),
        ("data: {rows: {train: 96, validation: 24, test: 20}, max_source_length: 96}",
         f"data: {{task: multi_label, labels: [toxic, rude], files: {{{files}}}, "
         "max_source_length: 96}"),
        ("pipeline: [baseline, load,", "pipeline: [load,"), (", threshold: tuned", ""),
        ("  tokenizer: {vocab_size: 400}", "  tokenizer: {vocab_size: 400, data: {source: bills}}"),
        text=RECIPE,
    )  # fmt: skip
    assert expected in told


@pytest.mark.skipif(not (SHARED / "data/goemotions").is_dir(), reason="GoEmotions is not here")
def test_goemotions_is_read_as_it_is_published() -> None:
    """28 labels, a column each; counts of the paper's simplified training split."""
    values = compose(
        "bert/emotions",
        ["data=go_emotions_files", *(f"data.files.{split}={SHARED}/data/goemotions/{split}.csv"
         for split in ("train", "validation"))],
    ).recipe.data  # fmt: skip
    rows = values.load("train")
    assert len(rows) == 43_410
    totals = dict(zip(values.labels, map(sum, zip(*rows.labels, strict=True)), strict=True))
    assert (totals["neutral"], totals["admiration"], totals["grief"]) == (14_219, 4_130, 77)


def test_tf_idf_knows_the_words_of_texts_without_spaces(tmp_path: Path, run) -> None:
    """Regression: a Chinese sentence was one word, which no other row has."""
    draw = random.Random(0)
    characters = [chr(0x4E00 + 7 * i) for i in range(40)]

    def rows(count: int) -> str:
        lines = []
        for row in range(count):
            name, sign = (("water", "水"), ("fire", "火"))[row % 2]
            text = draw.sample(characters, 12)
            text.insert(draw.randrange(13), sign)
            lines.append(json.dumps({"text": "".join(text), "label": name}) + "\n")
        return "".join(lines)

    for name, count in (("train", 80), ("validation", 20)):
        (tmp_path / f"{name}.jsonl").write_text(rows(count))
    (tmp_path / "mine.yaml").write_text("""
defaults: [/base, /data: files, _self_]
pipeline: [baseline]
data: {task: single_label, label: label, labels: [water, fire], max_source_length: 32,
       files: {train: train.jsonl, validation: validation.jsonl}}
stages: {baseline: {words: 1, inverse_regularization: [30]}}
""")
    done = run("run", "mine.yaml")
    assert done.code == 0, done.err
    assert done.record("baseline")["metrics"]["accuracy"] == 1
