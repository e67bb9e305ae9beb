"""A translator, from the checked-in recipe: what its user runs, reads and is shown."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import sacrebleu

import compressor as package
from tests.harness.command import compressor
from tests.harness.runs import find_stage
from tests.support.families import FAMILIES, TEXTS, write

RECIPE = """
defaults: [/translate/marian_half, _self_, {override /data: files}, {override /training: quick}]
model: {source: model, config: null}
data:
  files: {train: rows.jsonl, validation: rows.jsonl}
  task: text2text
  text: translation.en
  summary: translation.de
  prefix: ""
  max_source_length: 40
  max_target_length: 40
stages: {translations: {max_length: 12}, distill: {max_steps: 2}, evaluate: {max_length: 12}}
"""
PUBLISHED = {"forced_eos_token_id": 0, "renormalize_logits": True, "num_beams": 4}


def test_the_recipe_of_a_translator_distils_scores_and_exports_it(tmp_path: Path) -> None:
    """With OPUS-MT's generation config; the scores are sacrebleu's own of the file of texts, and
    no page, line or table takes a translation for a summary.
    """
    folder = write(FAMILIES["Marian"], tmp_path / "model")
    config = folder / "generation_config.json"
    values = json.loads(config.read_text())
    values |= PUBLISHED | {"bad_words_ids": [[values["pad_token_id"]]]}
    config.write_text(json.dumps(values))
    pairs = [{"translation": {"en": TEXTS[i], "de": TEXTS[i + 1]}} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "mine.yaml").write_text(RECIPE)

    done = compressor("run", "mine.yaml", "skip=[benchmark]", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "sacremoses" not in done.err

    learned = find_stage(done.run_folder, "translations") / "targets.jsonl"
    assert len(learned.read_text().splitlines()) == len(pairs)
    assert done.record("distill")["parameters"] < done.record("original")["parameters"]
    for name in ("original", "distill", "quantize", "ct2"):
        stage = find_stage(done.run_folder, f"evaluate@{name}")
        with (stage / "predictions.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        scores = done.record(f"evaluate@{name}")["metrics"]
        texts, references = ([row[key] for row in rows] for key in ("prediction", "reference"))
        assert references == [pair["translation"]["de"] for pair in pairs]
        for metric in ("bleu", "chrf", "ter"):
            expected = getattr(sacrebleu, f"corpus_{metric}")(texts, [references]).score
            assert scores["sacrebleu" if metric == "bleu" else metric] == expected

    card = (done.run_folder / "README.md").read_text()
    page = (done.run_folder / "report.html").read_text().replace("<summary", "")
    assert "model.write(" in card
    assert not [text for text in (done.out, card) if "summar" in text.lower()]
    assert "Texts side by side" in page and "Summaries" not in page

    again = package.load(find_stage(done.run_folder, "ct2"))
    assert again.write([row["source"] for row in rows], max_length=12, num_beams=4) == texts


def test_the_recipe_plans_without_a_hub(tmp_path: Path) -> None:
    """With exact sizes: OPUS-MT's 74.41 M parameters, of which half a decoder is 12.61 M."""
    done = compressor("plan", "translate/marian_half", cwd=tmp_path)
    assert done.code == 0
    assert "74.41 M" in done.out and "61.80 M" in done.out
