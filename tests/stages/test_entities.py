"""Words and their tags, from rows to scores: held to transformers' own loss and pipeline, and to
seqeval.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seqeval import scheme
from seqeval.metrics import accuracy_score, classification_report, f1_score
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

import compressor
from compressor.data.sources import Data
from compressor.evaluation import entities
from compressor.models.checkpoint import Checkpoint
from compressor.models.classifier_head import fit_head, start_at_labels
from compressor.models.loading import build_model, load_pretrained
from compressor.training.distillation import DistillationLoss
from compressor.training.losses import LabelLoss
from tests.harness.stages import data_of_rows, measure
from tests.support.families import BERT, DISTILBERT, TOKENIZERS, vary

TAGS = ("O", "B-PER", "I-PER", "B-LOC")
PEOPLE, PLACES = ["Ann", "Bob", "Carla", "Dev"], ["Paris", "Oslo", "Kyoto-Nord", "Lima"]
LIMIT = 24
"""Tokens, so that some words are cut off."""


def make_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences of people who fly to places, of 4 to 20 words."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        words, tags = list[str](), list[str]()
        for _ in range(chance.randrange(1, 4)):
            words += [chance.choice(PEOPLE), "Stone", "flew", "to", chance.choice(PLACES), "."]
            tags += ["B-PER", "I-PER", "O", "O", "B-LOC", "O"]
        rows.append({"words": words, "tags": tags})
    return rows


def tagged(folder: Path, rows: Sequence[dict[str, Any]], **settings: Any) -> Data:
    about = {"task": "token_classification", "labels": TAGS, "text": "words", "label": "tags"}
    return data_of_rows(folder, [*rows], about | {"max_source_length": LIMIT} | settings)


def tagger(model_type: str, folder: Path) -> Checkpoint:
    """A model whose weights give each tag to some words."""
    tokenizer = TOKENIZERS["roberta" if model_type == "roberta" else "wordpiece"](folder)
    sizes = DISTILBERT if model_type == "distilbert" else BERT
    names = {"id2label": dict(enumerate(TAGS)), "label2id": {n: i for i, n in enumerate(TAGS)}}
    config = AutoConfig.for_model(
        model_type, **sizes, **names, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
    )
    model = build_model(config, "token_classification").eval()
    vary(model, 0, 0.25)
    return Checkpoint(model, tokenizer, "token_classification")


KINDS = ("bert", "roberta", "electra", "distilbert")


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_transformers_own_on_words_first_tokens(kind: str, tmp_path: Path) -> None:
    """With the labels that `run_ner.py` gives: a word's at its first token, -100 elsewhere."""
    checkpoint, rows = tagger(kind, tmp_path), make_rows(6)
    data, pad = tagged(tmp_path, rows), checkpoint.pad_id
    examples = checkpoint.tokenize_rows(data.load("train"), data)
    batch = examples.batch(list(range(6)), pad)
    encoded = checkpoint.tokenizer(
        [" ".join(row["words"]) for row in rows],
        truncation=True, max_length=LIMIT, padding=True, return_tensors="pt",
    )  # fmt: skip
    labels = torch.full_like(encoded.input_ids, -100)
    for line, row in enumerate(rows):
        start = 0
        for word, tag in zip(row["words"], row["tags"], strict=True):
            token = encoded.char_to_token(line, start)
            if token is not None:
                labels[line, token] = TAGS.index(tag)
            start += len(word) + 1
    assert torch.equal(batch["input_ids"], encoded.input_ids)
    assert torch.equal(batch["labels"], labels)
    theirs = checkpoint.model(**encoded, labels=labels).loss
    count = sum(map(len, examples.targets))
    assert count == int((labels != -100).sum()) < sum(len(row["words"]) for row in rows)
    loss = LabelLoss(checkpoint.model)
    assert loss(batch).item() / count == pytest.approx(theirs.item(), rel=1e-5)
    assert loss(examples.batch([], pad)).item() == 0


def test_a_teachers_distributions_are_learned_at_words_first_tokens(tmp_path: Path) -> None:
    """By hand: T² · KL(teacher ‖ student), summed over the places that have a label."""
    checkpoint, data = tagger("distilbert", tmp_path), tagged(tmp_path, make_rows(5))
    student, batch = tagger("distilbert", tmp_path).model, make_batch(checkpoint, data)
    vary(student, 1, 0.25)
    loss = DistillationLoss(student, checkpoint.model, {"logits": 1.0}, temperature=2.0)
    with torch.no_grad():
        summed = loss(batch)
        labels = batch.pop("labels") != -100
        mine, theirs = (
            (model(**batch).logits[labels] / 2).log_softmax(-1)
            for model in (student, checkpoint.model)
        )
    expected = 4 * (theirs.exp() * (theirs - mine)).sum()
    assert summed.item() == pytest.approx(expected.item(), rel=1e-5)


def first_tokens_of_pipeline(folder: Path, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Tag words by transformers' pipeline: a word's is that of the token that begins it, or O."""
    tag = pipeline("token-classification", model=str(folder), ignore_labels=[])
    tag.tokenizer.model_max_length = LIMIT
    given = []
    for row in rows:
        tokens = {token["start"]: token["entity"] for token in tag(" ".join(row["words"]))}
        starts = np.cumsum([0, *(len(word) + 1 for word in row["words"])])[:-1]
        given.append([tokens.get(int(start), "O") for start in starts])
    return given


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_seqevals_on_the_pipelines_tags(kind: str, tmp_path: Path) -> None:
    """Of all entities and of each type; words that are cut off count as O. The file of rows gives
    the same again, and an export that is loaded the same tags.
    """
    checkpoint, rows, folder = tagger(kind, tmp_path), make_rows(12), tmp_path / "plain"
    checkpoint.model.save_pretrained(folder)
    checkpoint.tokenizer.save_pretrained(folder)
    given, chance = first_tokens_of_pipeline(folder, rows), random.Random(0)
    truth = [[chance.choice((tag, tag, *TAGS)) for tag in row] for row in given]
    rows = [row | {"tags": tags} for row, tags in zip(rows, truth, strict=True)]
    metrics = measure("evaluate", checkpoint, tagged(tmp_path, rows), tmp_path)
    report = classification_report(truth, given, output_dict=True, zero_division=0)
    total = report["micro avg"]
    assert metrics["entity_f1"] == pytest.approx(total["f1-score"]) != 0
    assert metrics["entity_precision"] == pytest.approx(total["precision"])
    assert metrics["entity_recall"] == pytest.approx(total["recall"])
    strict = f1_score(truth, given, mode="strict", scheme=scheme.IOB2)
    assert metrics["strict_f1"] == pytest.approx(strict)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, given))
    assert metrics["entities"].keys() == {"PER", "LOC"}
    for name, values in metrics["entities"].items():
        assert values["f1"] == pytest.approx(report[name]["f1-score"])
    assert metrics["cut_words"] > 0
    path = tmp_path / "evaluate" / "predictions.csv"
    assert entities.read_predictions(path).given == given
    for name, measured in entities.measure_rows(entities.read_predictions(path)).items():
        assert measured.value == pytest.approx(metrics[name])  # what a paired test resamples
    again = entities.score_predictions(path)
    assert again == {name: metrics[name] for name in again}
    measure("export", checkpoint, tagged(tmp_path, rows), tmp_path, parity=None)
    predictor = compressor.load(tmp_path / "export")
    assert predictor.tag([row["words"] for row in rows]) == given
    assert predictor.tag([" ".join(rows[0]["words"])]) == given[:1]


@pytest.mark.parametrize(
    ("stage", "settings"),
    [
        ("prune", {"amounts": {"encoder": {"feed_forward": 0.5}}, "importance": "sparsegpt"}),
        ("slice", {"feed_forward": 32, "importance": "taylor"}),
        ("trim_vocabulary", {}),
        ("finetune", {"epochs": 1, "lora": {"rank": 2}}),
        ("distill", {"teacher": "t", "epochs": 1, "losses": {"hidden": 1.0, "attention": 1.0}}),
    ],
)
def test_a_stages_model_has_the_loss_that_plain_transformers_computes(
    tmp_path: Path, stage: str, settings: dict[str, Any]
) -> None:
    """What each stage leaves, is evaluated and exported, on the same rows."""
    checkpoint, data = tagger("bert", tmp_path), tagged(tmp_path, make_rows(8))
    checkpoint.save(tmp_path / "teacher")
    artifacts = {"teacher": tmp_path / "teacher"} if stage == "distill" else {}
    measure(stage, checkpoint, data, tmp_path, artifacts, **settings)
    after = tmp_path / stage
    scores = measure("evaluate", after, data, tmp_path)
    measure("export", after, data, tmp_path, parity=None)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "export" / "model").eval()
    with torch.inference_mode():
        loss = model(**make_batch(Checkpoint.load(after), data)).loss
        unchanged = checkpoint.model.eval()(**make_batch(checkpoint, data)).loss
    assert scores["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert (loss.item() == pytest.approx(unchanged.item(), rel=1e-5)) == (stage[:4] == "trim")


def make_batch(checkpoint: Checkpoint, data: Data) -> dict[str, torch.Tensor]:
    examples = checkpoint.tokenize_rows(data.load("test"), data)
    return examples.batch(list(range(len(examples))), checkpoint.pad_id)


def test_an_interval_is_of_rows_drawn_again() -> None:
    """By a plain loop: entities are counted anew in each resample by seqeval."""
    truth = [["B-PER", "O"], ["B-LOC", "I-LOC"], ["O", "B-PER"], ["B-LOC", "O"]]
    given = [["B-PER", "O"], ["B-LOC", "O"], ["O", "B-PER"], ["O", "O"]]
    chance, scores = np.random.default_rng(0), []
    for drawn in chance.integers(4, size=(1000, 4)):
        rows = ([truth[i] for i in drawn], [given[i] for i in drawn])
        scores.append(f1_score(*rows, zero_division=0))
    expected = np.quantile(scores, [0.025, 0.975])
    interval = entities.summarize_scores(truth, given)["intervals"]["entity_f1"]
    assert interval == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    ("tags", "rules"),
    [
        (["B-A", "I-A", "O"], scheme.IOB2),
        (["B-A", "E-A", "S-B"], scheme.IOBES),
        (["B-A", "L-A", "U-B"], scheme.BILOU),
        (["NOUN", "VERB", "NOUN"], None),
    ],
)
def test_tags_are_scored_by_their_scheme(tags: list[str], rules: Any) -> None:
    """To the letter where they have one; parts of speech have none, and an accuracy."""
    other = [tags[0], tags[2], tags[1]]
    scores = entities.summarize_scores([tags, tags], [tags, other])
    strict = rules and f1_score([tags, tags], [tags, other], mode="strict", scheme=rules)
    assert scores["strict_f1"] == (strict if strict is None else pytest.approx(strict))
    assert scores["accuracy"] == pytest.approx(4 / 6)


def test_a_fresh_head_starts_at_how_often_words_have_each_tag(tmp_path: Path) -> None:
    """A half is added to each count; a trained head is left alone."""
    model = tagger("bert", tmp_path).model
    torch.nn.init.zeros_(model.classifier.bias)
    start_at_labels(model, [[0, 0, 1], [], [0]])
    assert model.classifier.bias.softmax(-1).tolist() == pytest.approx(
        [3.5 / 6, 1.5 / 6, 0.5 / 6, 0.5 / 6]
    )


def test_a_head_for_texts_does_not_become_one_for_tokens(tmp_path: Path) -> None:
    """BERT's has the same name and, with as many labels, the same shape."""
    config = tagger("bert", tmp_path).model.config
    source = AutoModelForSequenceClassification.from_config(config)
    source.save_pretrained(tmp_path / "source")
    names = {"id2label": config.id2label, "label2id": config.label2id, "num_labels": 4}
    model = load_pretrained(tmp_path / "source", "token_classification", config=names)
    about = json.loads((tmp_path / "source" / "config.json").read_text())
    assert fit_head(model, about, list(TAGS)) == "fresh"
    assert not torch.isclose(model.classifier.weight, source.classifier.weight).any()
    assert torch.equal(
        model.bert.encoder.layer[0].output.dense.weight,
        source.bert.encoder.layer[0].output.dense.weight,
    )


FEW = [
    "model=tiny_bert",
    *(f"model.config.{key}" for key in ("num_hidden_layers=2", "hidden_size=32", "vocab_size=400")),
    *("model.config.intermediate_size=48", "model.tokenizer.vocab_size=400"),
    *(f"training.{key}" for key in ("learning_rate=3e-3", "warmup_steps=2", "batch_size=4")),
    *("stages.shrink.encoder_layers=1", "stages.onnx.weights=float32"),
    *(f"stages.benchmark.{key}" for key in ("texts=1", "warm_up=0", "batch_sizes=[2]")),
    "stages.benchmark.models=[onnx]",
]


def test_the_recipe_runs_on_words_and_tags_in_files(tmp_path: Path, run: Any) -> None:
    """Trained, halved, distilled, pruned, int8, for ONNX Runtime, timed. The exported model has its
    source's tags, and is told of in the report, the card and the comparison; it tags a new text.
    """
    for name, count, seed in (("train", 60, 1), ("validation", 12, 2)):
        lines = [json.dumps(row) + "\n" for row in make_rows(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = [f"data.files.{name}={name}.jsonl" for name in ("train", "validation")]
    data = ["data=tagged_files", f"data.labels=[{','.join(TAGS)}]", *files]
    done = run("run", "bert/entities", *data, *FEW)
    assert done.code == 0 and "report.html was not written" not in done.err, done.err
    scores = {
        name: done.record(f"evaluate@{name}")["metrics"]
        for name in ("finetune", "distill", "recover", "quantize", "onnx")
    }
    assert scores["finetune"]["entity_f1"] > 0.9
    assert scores["onnx"]["entity_f1"] == scores["recover"]["entity_f1"]
    share = scores["quantize"]["entity_f1"] / scores["finetune"]["entity_f1"]
    assert scores["quantize"]["retention"] == pytest.approx(share)
    assert done.record("recover")["nonzero_ratio"] < done.record("distill")["nonzero_ratio"] < 1
    assert "recall" in done.out
    card = (done.run_folder / "README.md").read_text()
    assert "pipeline_tag: token-classification" in card and "name: entity_f1" in card
    page = (done.run_folder / "report.html").read_text()
    assert "F1 by label" in page and "Labels side by side" in page
    compared = run("compare", done.run_folder, done.run_folder, "--json")
    assert "entity_recall" in compared.out, compared.err
    rescored = run("score", done.run_folder / "stages" / "12-evaluate@onnx", "--json")
    assert json.loads(rescored.out)["entity_f1"] == scores["onnx"]["entity_f1"]
    model = compressor.load(done.run_folder)
    assert model.backend == "onnxruntime"
    assert len(model.tag(["Ann Stone flew to Oslo ."])[0]) == 6
    told = run("classify", done.run_folder, stdin="Ann Stone flew to Oslo .")
    assert told.out.split()[::2] == ["Ann", "Stone", "flew", "to", "Oslo", "."]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["data=messages"], "data.task: is multi_label, and the model has the head 'token_class"),
        (["model.head=sequence_classification"], "it takes data of the task multi_label or single"),
        (["stages.evaluate.max_length=20"], "max_length: means nothing for labels"),
        (["stages.evaluate.threshold=0.4"], "threshold: a word's one label is the likeliest"),
        (["stages.evaluate.metrics=[rouge]"], "metrics: labels are scored by entity_f1, entity_pr"),
        (["stages.onnx.format=ctranslate2"], "valid: huggingface, packed, onnx"),
        (["stages.onnx.format=gguf"], "valid: huggingface, packed, onnx"),
        (["stages.distill.cache_logits=true"], "cache_logits: keeps logits over a vocabulary"),
        (["+stages.base={stage: baseline}", "pipeline=[base]"], "has no baseline for tags"),
        (["+stages.labels={stage: pseudo_label}", "pipeline=[load,labels]"], "stages.labels"),
        (["model.config.model_type=gpt2"], "token_classification"),
        (["+stages.smooth={}", "pipeline=[load,smooth]"], "knows T5 and mT5, and this is a bert"),
        (["data.labels=[O]"], "token_classification wants `labels`, at least 2"),
    ],
)
def test_what_does_not_go_with_tags_is_refused_by_the_plan(
    tmp_path: Path, run: Any, changes: list[str], expected: str
) -> None:
    """By name, at its key."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(make_rows(1)[0]) + "\n")
    files = [f"data.files.{name}=rows.jsonl" for name in ("train", "validation")]
    data = ["data=tagged_files", f"data.labels=[{','.join(TAGS)}]", *files]
    data = changes if changes == ["data=messages"] else data + changes
    done = run("plan", "bert/entities", *FEW, *data)
    assert done.code != 0
    assert expected in " ".join(done.err.split())
