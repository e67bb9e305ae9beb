"""`evaluate`: what it records of a model, and of one held to another."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
from pydantic import ValidationError

from compressor.data.truncation import split_sentences
from compressor.evaluation.rouge import METRIC_KEYS
from compressor.stages.base import Planning, stage_class
from tests.harness.stages import SUMMARIES, TEXTS, measure, pico_t5, rows_of_text

TEXT = "The [Secretary] shall give grants to libraries. Be it enacted."


def test_models_are_compared_by_every_score_and_by_a_demo_text(recipe, run) -> None:
    """Precision, recall and F1, their retention and closeness; the text's summary of each model;
    all of it shown again by `show`. The original is not trained: 0 epochs read no rows.
    """
    path = recipe(
        ("[load, finetune, prune, recover, evaluate]", "[load, original, finetune, evaluate]"),
        ("  finetune: {epochs: 1}", "  original: {stage: finetune, epochs: 0}\n  finetune: {}"),
        (
            "{max_length: [8, 16]}",
            "{models: [original, finetune], against: original, max_length: [8, 16], "
            f'demo_text: "{TEXT}"}}',
        ),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    assert done.record("original")["metrics"] == {}
    names = "evaluate@original", "evaluate@finetune"
    first, second = (done.record(name)["metrics"] for name in names)
    assert "retention" not in first
    for key in METRIC_KEYS:
        assert 0 <= second[key] <= 1
        share = second[key] / first[key] if first[key] else None
        assert second["retentions"][key] == (share if share is None else pytest.approx(share))
        assert second["closenesses"][key] == pytest.approx(1 - abs(second[key] - first[key]))
    assert second["closeness"] == second["closenesses"]["rougeLsum"]
    assert first["demo"].keys() == second["demo"].keys() == {"text", "summary", "cut_off"}
    again = run("show", done.run_folder, "--scores")
    assert f"demo text: {TEXT}" in done.out and f"demo text: {TEXT}" in again.out
    assert "rougeL precision" in again.out and "rougeL precision" not in done.out
    table = done.out[done.out.index("┏") : done.out.index("run: ")]
    assert table in again.out


def test_a_demo_text_is_summarized_as_a_row_would_be(tmp_path) -> None:
    """A test row's own text as demo text gives that row's prediction at the longest limit."""
    data = rows_of_text(tmp_path, TEXTS[:3], SUMMARIES[:3])
    settings = {"max_length": [8, 16], "demo_text": TEXTS[0]}
    demo = measure("evaluate", pico_t5(), data, tmp_path, **settings)["demo"]
    with (tmp_path / "evaluate" / "predictions.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["max_length"] == "16"]
    assert demo["summary"] == rows[0]["prediction"] != ""


def test_hindi_is_scored_by_its_own_words(recipe, run, tmp_path) -> None:
    """A text's first sentence is its summary: lead-1 scores 1."""
    path = recipe(
        ("/data: bills", "/data: files"),
        ("[load, finetune, prune, recover, evaluate]", "[baseline, load, evaluate]"),
        ("data: {rows: {train: 64, validation: 16, test: 8}", "data: {files: {train: rows.jsonl}"),
        ("  load: {}", "  baseline: {sentences: 1}\n  load: {}"),
    )
    summaries = [f"सरकार ने {'बार ' * number}नई योजना की घोषणा की।" for number in range(16)]
    texts = [f"{summary} भारत में मानसून आया।" for summary in summaries]
    rows_of_text(tmp_path, texts, summaries)
    done = run("run", path, "data.files.validation=rows.jsonl")
    assert done.code == 0, done.err
    lead, scored = (done.record(name)["metrics"] for name in ("baseline", "evaluate"))
    assert (lead["rougeLsum"], lead["rouge_tokenizer"]) == (1.0, "unicode")
    assert scored["rouge_tokenizer"] == scored["lengths"]["8"]["rouge_tokenizer"] == "unicode"
    assert "ROUGE's tokenizer: unicode" in (done.run_folder / "README.md").read_text()
    assert "  ROUGE's tokenizer: unicode" in done.err + done.out


@pytest.mark.parametrize("planned", [True, False])
def test_several_references_are_scored_the_same_everywhere(recipe, run, planned: bool) -> None:
    """By the run, by `score` and by hand; empty rows are left out and told once."""
    path = recipe(
        ("/data: bills", "/data: files"),
        ("[load, finetune, prune, recover, evaluate]", "[load, evaluate]"),
        (
            "data: {rows: {train: 64, validation: 16, test: 8}",
            "data: {files: {train: rows.jsonl, validation: rows.jsonl}, empty: drop, prefix: ''",
        ),
    )
    rows = [
        {"text": ["An act", "to fund parks."], "summary": ["Parks.", "", f"funds park {row}"]}
        for row in range(12 if planned else 10_012)
    ]
    rows[-3]["summary"] = []
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (path.parent / "rows.jsonl").write_text(lines)
    limits = ("data.rows.train=16", "data.rows.validation=4", "data.rows.test=20")
    done = run("run", path, *limits)
    assert done.code == 0, done.err
    told = f"1 row has no text or no summary (row {len(rows) - 3}, column 'summary'), left out"
    assert (done.out + done.err).count(told) == 1
    with (done.run_folder / "predictions.csv").open() as stream:
        written = list(csv.DictReader(stream))
    count = min(len(rows) - 1, 20)
    assert len(written) == 2 * count
    assert {row["source"] for row in written} == {"An act to fund parks."}
    assert {row["reference"] for row in written} == {"Parks."}
    assert [row["reference_2"] for row in written[:5]] == [f"funds park {n}" for n in range(5)]
    scores = json.loads(run("score", done.run_folder, "--json").out)
    assert scores == done.record("evaluate")["metrics"]["lengths"]


OVERLAP = '''
import datasets
import evaluate


class Overlap(evaluate.Metric):
    """The share of the reference's letters that a text has."""

    def _info(self):
        text = datasets.Value("string")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        pairs = zip(predictions, references)
        shares = [len({*text} & {*reference}) / len({*reference}) for text, reference in pairs]
        return {"overlap": sum(shares) / len(shares)}
'''
TRANSLATED = (
    ("[load, finetune, prune, recover, evaluate]", "[load, original, finetune, evaluate]"),
    ("  finetune: {epochs: 1}", "  original: {stage: finetune, epochs: 0}\n  finetune: {}"),
    (
        "{max_length: [8, 16]}",
        "{models: [original, finetune], against: original, max_length: [8, 16], "
        "metrics: [ter, chrf, sacrebleu, ./overlap.py], trust_remote_code: true}",
    ),
)


def test_chosen_metrics_go_wherever_rouge_does(recipe, run, tmp_path: Path) -> None:
    """Scores at each limit are sacrebleu's; retention of TER is the original's over this one's;
    `score` gives them again; `compare` pairs rows of each; pages, card and sweep have them.
    """
    path = recipe(*TRANSLATED)
    (tmp_path / "overlap.py").write_text(OVERLAP)
    goal = "objective.maximize=evaluate.chrf"
    done = run("run", path, goal)
    assert done.code == 0, done.err
    first, second = (done.record(f"evaluate@{n}")["metrics"] for n in ("original", "finetune"))
    with (done.run_folder / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for limit, scores in second["lengths"].items():
        some = [row for row in rows if row["max_length"] == limit]
        texts = [row["prediction"] for row in some], [[row["reference"] for row in some]]
        assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(*texts).score)
        assert scores["ter"] == pytest.approx(sacrebleu.corpus_ter(*texts).score)
        assert scores["sacrebleu"] == pytest.approx(sacrebleu.corpus_bleu(*texts).score)
    assert list(second["intervals"]) == ["ter", "chrf", "sacrebleu", "overlap"]
    assert 0 < second["overlap"] < 1 and "rouge1" not in second
    assert second["retention"] == second["retentions"]["ter"] == first["ter"] / second["ter"]
    assert second["retentions"]["chrf"] == pytest.approx(second["chrf"] / first["chrf"])
    assert second["closenesses"].keys() == {"ter", "chrf", "sacrebleu"}
    again = json.loads(run("score", done.run_folder, "--json").out)
    ours = ("chrf", "ter", "sacrebleu_signature")
    assert [again["16"][name] for name in ours] == [second[name] for name in ours]
    page, card = ((done.run_folder / n).read_text() for n in ("report.html", "README.md"))
    assert "Scores by limit" in page and "overlap" in page
    assert "type: chrf" in card and "overlap" in card
    assert "overlap" in run("show", done.run_folder).out

    other = run("run", path, goal, "stages.finetune.epochs=2")
    compared = json.loads(run("compare", done.run_folder, other.run_folder, "--json").out)
    (pair,) = (pair for pair in compared["models"] if pair["headline"])
    paired = {score["metric"]: score["p"] for score in pair["scores"]}
    assert list(paired)[:4] == ["ter", "chrf", "sacrebleu", "overlap"]
    assert all(0 < paired[name] <= 1 for name in list(paired)[:4])


def test_a_floor_is_scored_by_the_tasks_own_metrics(tmp_path: Path) -> None:
    """The first sentences by sacrebleu's own functions, and by code at a path."""
    (tmp_path / "overlap.py").write_text(OVERLAP)
    data = rows_of_text(tmp_path, TEXTS[:6], SUMMARIES[:6])
    chosen = {"metrics": ["chrf", "ter", str(tmp_path / "overlap.py")], "trust_remote_code": True}
    scores = measure("baseline", pico_t5(), data, tmp_path, sentences=1, **chosen)
    leads = [" ".join(split_sentences(text)[:1]) for text in TEXTS[:6]]
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(leads, [SUMMARIES[:6]]).score)
    assert scores["ter"] == pytest.approx(sacrebleu.corpus_ter(leads, [SUMMARIES[:6]]).score)
    assert list(scores["intervals"]) == ["chrf", "ter", "overlap"] and 0 < scores["overlap"] < 1
    plain = stage_class("baseline").model_validate({"metrics": ["rouge"]})
    assert not {"metrics", "trust_remote_code"} & plain.parameters().keys()


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({}, {"retention", "closeness"}),
        ({"against": "load"}, set()),
        ({"against": "load", "metrics": ["ter"]}, set()),
        ({"against": "load", "metrics": ["perplexity", "rouge"]}, {"closeness"}),
        ({"against": "load", "metrics": ["meteor"]}, {"closeness"}),
    ],
)
def test_an_objective_is_a_number_that_there_will_be(settings: Any, absent: set[str]) -> None:
    """No share of another model's score without that; no 1 - |difference| without a scale."""
    measures = stage_class("evaluate").model_validate(settings).list_measures()
    assert {"retention", "closeness"} - {*measures} == absent
    assert len({*measures}) == len(measures)


def test_code_of_a_metric_is_part_of_the_key_and_fails_before_the_decode(
    recipe, run, tmp_path: Path
) -> None:
    """Other bytes are another stage; what it raises is one sentence, and nothing was decoded."""
    path = recipe(*TRANSLATED)
    (tmp_path / "overlap.py").write_text(OVERLAP)
    keys = [line for line in run("plan", path, "--json").out.splitlines() if '"key"' in line]
    (tmp_path / "overlap.py").write_text(OVERLAP.replace("sum(shares)", "1 / 0"))
    others = [line for line in run("plan", path, "--json").out.splitlines() if '"key"' in line]
    assert [a == b for a, b in zip(keys, others, strict=True)].count(False) == 2
    failed = run("run", path)
    assert failed.code == 1
    assert "the metric './overlap.py' failed: ZeroDivisionError" in failed.err
    assert failed.err.count("error: ") == 1 and "decode" not in failed.err


def test_a_name_in_metrics_is_as_today_where_it_is_rouge(tmp_path: Path) -> None:
    """No key has changed by the new setting."""
    stage, data = stage_class("evaluate"), rows_of_text(tmp_path)
    planning = Planning(None, data, print, print)
    plain, named = (stage.model_validate(s) for s in ({}, {"metrics": ["rouge"]}))
    assert plain.parameters() == named.parameters()
    assert not {"metrics", "trust_remote_code"} & plain.parameters().keys()
    assert plain.identity(planning).keys() == {"rouge_score", "nltk"}
    chosen = stage.model_validate({"metrics": ["chrf"]})
    assert chosen.identity(planning).keys() == {"sacrebleu"}
    for metrics in (["chrf", "./chrf.py"], ["./rouge1.py"], []):
        with pytest.raises(ValidationError):
            stage.model_validate({"metrics": metrics})
