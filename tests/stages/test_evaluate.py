"""`evaluate`: what it records of a model, and of one held to another."""

from __future__ import annotations

import csv
import json

import pytest

from compressor.evaluation.rouge import METRIC_KEYS
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
