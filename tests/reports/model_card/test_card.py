"""The model card: the hub reads it, and no number in it comes from anywhere but the records."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from compressor.reports.model_card.card import render_card
from compressor.reports.run_page.page import render_page
from compressor.reports.run_page.results import Results
from tests.harness.models import PICO
from tests.harness.once import run_once
from tests.harness.pages import EVIL
from tests.harness.recipes import RECIPE
from tests.reports.handmade import evaluation, full_run, labelled_run, make_run, read_json, record

SCALES = (1.0, 1e-3, 1e-6, 1e-9, 100.0)
"""A number may be shown as it is, in thousands, millions or billions, or as a percentage."""
NUMBER = re.compile(r"(?<![\w.])[−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def _numbers(value: Any) -> Iterator[float]:
    """Every number of a nested value."""
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


def strange_numbers(body: str, folder: Path) -> list[str]:
    """The numbers of a card's text that no number of the run's records gives when it is written."""
    text = re.sub(r"(?ms)^(`{3,}).*?^\1$", " ", body)
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", " ", text)
    text = re.sub(r"(?m)^>.*$", " ", text)
    known = [*_numbers(read_json(folder / "metrics.json"))]
    known += [*_numbers(read_json(folder / "environment.json"))]

    def is_measured(shown: str) -> bool:
        plain = shown.replace(",", "").replace("−", "-")
        if "e" in plain:
            return any(f"{value:.1e}" == plain for value in known)
        digits = len(plain.partition(".")[2])
        return any(f"{value * scale:.{digits}f}" == plain for value in known for scale in SCALES)

    return [shown for shown in NUMBER.findall(text) if not is_measured(shown)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run: train, prune, repair; scores, times, an export."""
    text = RECIPE.replace("recover, evaluate]", "recover, evaluate, benchmark, export]").replace(
        "evaluate: {max_length: [8, 16]}",
        "evaluate: {models: [finetune, recover], against: finetune, max_length: [8, 16]}\n"
        "  benchmark: {models: [recover], max_length: 8, texts: 2, batch_sizes: [1, 2]}\n"
        "  export: {}",
    )
    return run_once(tmp_path_factory, "card", text, "seed=3").run_folder


def test_the_hub_reads_the_card_of_a_real_run(ran: Path) -> None:
    """Front matter by the hub's own classes; the scores in it are the records', unrounded; every
    number of the text is in the records, and there are many. A wrong one would be found.
    """
    card = ModelCard.load(ran / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "summarization"
    assert {"compressor", "pruned"} <= set(card.data.tags or ())
    assert card.data.base_model is None and card.data.language is None
    (recovered,) = (r for r in read_json(ran / "metrics.json") if r["name"] == "evaluate@recover")
    scores = {e.metric_name: e.metric_value for e in card.data.eval_results or ()}
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
    assert scores == {name: recovered["metrics"][name] for name in names}
    assert strange_numbers(card.text, ran) == []
    assert len(NUMBER.findall(card.text)) > 40
    wrong = card.text.replace("| recover |", "| recover | 0.98765", 1)
    assert strange_numbers(wrong, ran) == ["0.98765"]


def test_a_real_run_has_a_page_and_lines_that_run(ran: Path, monkeypatch) -> None:
    """The card's Python block as it stands, in the run's folder; on the page the same numbers as in
    `metrics.json`: the main table's, and each stage's.
    """
    (lines,) = re.findall(r"```python\n(.*?)```", (ran / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(ran)
    exec(lines, {})
    text = (ran / "report.html").read_text("utf-8")
    records = {record["name"]: record for record in read_json(ran / "metrics.json")}
    assert f">{records['evaluate@recover']['metrics']['rougeLsum']:.4f}</td>" in text
    assert "Changed by this command: 1 key" in text and "<code>seed</code>" in text
    assert records["prune"]["groups"]["encoder.feed_forward"]["layers"] == [0, 1]
    assert "groups" not in records["evaluate@recover"]
    assert len(records["finetune"]["metrics"]["train_losses"]) == 8  # 64 rows, 8 a step


def _card(folder: Path, records: Any = None, *ended: str, rows: int = 2, **recipe: Any) -> str:
    """The card of a run that is made by hand, which is written to its folder, too."""
    run = make_run(folder, records, rows=rows, recipe=recipe)
    text = render_card(Results.read(run, *ended))
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text


@pytest.mark.parametrize(
    "records", [full_run(), full_run()[:6], labelled_run(), [record("l", "load", None)]]
)
def test_every_kind_of_run_has_a_card(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """With an export or without, measured or not, texts or labels: the records' numbers alone."""
    is_labelled = records[0]["name"] == "base"
    data = {"source": "hub", "dataset": "FiscalNote/billsum",
            "task": "multi_label" if is_labelled else "summarization",
            "max_source_length": 64, "max_target_length": 32}  # fmt: skip
    _card(tmp_path, records, rows=0 if is_labelled else 3, data=data, stages={})
    card = ModelCard.load(tmp_path / "README.md")
    assert strange_numbers(card.text, tmp_path) == []
    assert card.data.datasets == ["FiscalNote/billsum"]
    assert card.data.base_model == "google-t5/t5-small"
    expected = "text-classification" if is_labelled else "summarization"
    assert card.data.pipeline_tag == expected


def test_what_was_not_measured_is_said_and_not_made_up(tmp_path: Path) -> None:
    """No evaluation: no scores in the front matter, and a line that says so."""
    text = _card(tmp_path, full_run()[:6], "failed", "stage 'evaluate': out of memory")
    assert "model-index" not in text and "Its quality was not measured." in text
    assert "This run is not complete" in text and "out of memory" in text

    # `compressor reproduce` refuses a run without any result; its own command goes on.
    results = Results.read(make_run(tmp_path / "none", []), "interrupted")
    for text in (render_card(results), render_page(results)):
        assert "compressor reproduce" not in text
        assert "compressor run demo" in text


def test_limitations_follow_from_the_numbers(tmp_path: Path) -> None:
    """Zeros of no use, few rows with their interval, generated data: each only where it is so. Of
    an int8 model that is written as float32, the files are as large as they are.
    """
    text = _card(tmp_path)
    assert "0.4000 of its parameters are not zero" in text
    assert "Trained and scored on generated bills" in text
    dense = [record("base", "finetune", None), full_run()[6]]
    data = {"source": "files", "max_source_length": 64, "max_target_length": 32}
    other = _card(tmp_path / "dense", dense, data=data)
    assert "not zero, yet" not in other and "generated" not in other
    assert "Few rows: 200 were scored" in other and "0.8900 … 0.9200" in other
    records = full_run()
    records[-1] |= {"model": "quantize", "bytes": 8_000_000}
    wide = _card(tmp_path / "wide", records)
    assert "Its weights have 8.00 MB, the original's 0.00 MB." in wide
    # A quantized model is scored as it computes; its export as float32 computes otherwise.
    apart = "The scores are those of `quantize`; the export, in float32, was not scored."
    assert apart in wide and "model-index" not in wide


def export_as(weights: str) -> list[dict[str, Any]]:
    """The full run; its export has the weights of `recover`, in another type."""
    records = full_run()
    records[-1]["metrics"] |= {"format": "packed", "weights": weights}
    return records


def test_an_export_that_was_scored_itself_has_these_scores(tmp_path: Path) -> None:
    """Its source was not: it is no model without a quality, and no original of itself."""
    scored = record("evaluate@export", "evaluate", "export", metrics=evaluation(0.6))
    others = [r for r in export_as("int8") if r["stage"] not in ("evaluate", "benchmark")]
    text = _card(tmp_path, [*others, scored], stages={})
    assert "was not measured" not in text
    assert "the bootstrap interval of rougeLsum is 0.5900 … 0.6200" in text
    (sizes,) = re.findall(r"(?s)## Sizes\n(.*?)\n## ", text)
    assert re.findall(r"(?m)^\| (\S+) \|", sizes) == ["model", "---", "recover", "`export`"]


def test_scores_of_other_weights_are_not_an_exports(tmp_path: Path) -> None:
    """Recover was scored, its int8 export was not: retention and interval are not the export's."""
    metrics = evaluation(0.81) | {"retention": 0.9, "closeness": 0.91}
    scored = record("evaluate@recover", "evaluate", "recover", metrics=metrics)
    text = _card(tmp_path, [*export_as("int8"), scored])
    assert "The scores are those of `recover`; the export, in int8, was not scored." in text
    assert "It keeps" not in text and "model-index" not in text
    data = ModelCard.load(tmp_path / "README.md").data
    assert "quantized" in (data.tags or ()) and data.library_name == "compressor"
    same = _card(tmp_path / "same", [*export_as("float32"), scored])
    assert "It keeps 90.0 % of the main score of base." in same


@pytest.mark.parametrize("head", ["causal_lm", "none"])
def test_the_lines_for_a_model_that_is_no_encoder_decoder_run(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder is loaded as one, and reads a source that ends as in its training."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, AutoModelForCausalLM, GPT2Config, PreTrainedTokenizerFast

    data = {"max_source_length": 8, "max_target_length": 4, "prefix": "summarize: "}
    recipe = {"model": {"head": head}, "data": data}
    folder = make_run(tmp_path, recipe=recipe)
    (lines,) = re.findall(r"```python\n(.*?)```", render_card(Results.read(folder)), re.DOTALL)
    config = GPT2Config(**PICO["gpt2"], bos_token_id=1, eos_token_id=1)
    auto = AutoModelForCausalLM if head == "causal_lm" else AutoModel
    auto.from_config(config).save_pretrained(folder / "model")
    words = Tokenizer(models.WordLevel({"?": 0, "</s>": 1, "A": 2, "text.": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="?")
    tokenizer.save_pretrained(folder / "model")
    monkeypatch.chdir(folder)
    exec(lines, names := {})
    assert names["inputs"]["input_ids"][0].tolist() == [0, 2, 3] + [1] * (head == "causal_lm")
    if head == "causal_lm":
        assert names["written"].tolist() == names["output"][0, 4:].tolist()
    assert capsys.readouterr().out.endswith("\n")
    alone = make_run(tmp_path / "alone", full_run()[:6], recipe=recipe)
    use = "compressor write . <" if head == "causal_lm" else 'compressor.load(".")'
    assert use in render_card(Results.read(alone))


def test_markup_stays_text(tmp_path: Path) -> None:
    """Names, descriptions, errors, settings: the front matter loads; no HTML is in the body."""
    records = [record | {"label": EVIL} for record in full_run()]
    recipe = {"name": f"---\n{EVIL}", "description": f"---\nlicense: mit\n{EVIL}"}
    changed = [{"path": EVIL, "before": EVIL, "after": f"a | b ` c {EVIL}"}]
    make_run(tmp_path, records, recipe=recipe, asked={"changed": changed})
    results = Results.read(tmp_path, "failed", EVIL)
    (tmp_path / "README.md").write_text(render_card(results), encoding="utf-8")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license is None
    html = MarkdownIt("commonmark").enable("table").render(card.text)
    assert "<script" not in html and "&lt;script&gt;" in html
    render_page(results)
