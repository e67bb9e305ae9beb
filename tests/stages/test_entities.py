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
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

import compressor
from compressor.data.sources import Data
from compressor.evaluation import entities
from compressor.models.checkpoint import Checkpoint
from compressor.models.classifier_head import fit_head, start_at_labels
from compressor.models.loading import build_model, load_pretrained
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
    the same again, and an export that is loaded (ONNX Runtime's past its gate) the same tags.
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
    again = entities.score_predictions(path)
    assert again == {name: metrics[name] for name in again}
    written = {"format": "onnx"} if kind == "bert" else {"parity": None}  # a gate takes seconds
    about = {"weights": "float32"} | written
    measure("export", checkpoint, tagged(tmp_path, rows), tmp_path, **about)
    predictor = compressor.load(tmp_path / "export")
    assert predictor.tag([row["words"] for row in rows]) == given
    assert predictor.tag([" ".join(rows[0]["words"])]) == given[:1]


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
