"""`report.html`: what the file says without a browser, and what a person sees and does in one.

Tests with `browser` need Playwright and Debian's chromium (`make test-browser`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.core.files import write_json
from compressor.reports.run_page.page import render_page
from compressor.reports.run_page.results import Results
from compressor.reports.write import write_reports
from tests.harness.pages import EVIL, Text, check_themes
from tests.reports.handmade import (
    evaluation,
    full_run,
    make_run,
    random_texts,
    read_json,
    record,
    training,
    zero_counts,
)

MOST_BYTES = 12_000_000
MARKS = {
    "waterfall": ".waterfalllayer .point path",
    "losses": ".scatterlayer .trace .js-line, .scatterlayer .point",
    "sparsity": ".heatmaplayer image",
    "lengths": ".scatterlayer .point",
    "labels": ".scatterlayer .point",
    "sensitivity": ".scatterlayer .point",
    "cases": ".scatterlayer .point",
}


def _read(folder: Path, **how: Any) -> Text:
    return Text(render_page(Results.read(folder, **how)))


def labelled_run() -> list[dict[str, Any]]:
    """A run of two classifiers."""

    def metrics(f1: float) -> dict[str, Any]:
        values = {"positives": 9, "given": 8, "roc_auc": 0.9, "average_precision": 0.8}
        labels = {"joy": {**values, "f1": f1}, "anger": {**values, "f1": f1 - 0.1}}
        return {"micro_f1": f1, "macro_f1": f1, "accuracy": f1, "labels": labels}

    return [
        record("base", "finetune", None, groups=zero_counts(0), metrics=training()),
        record("small", "shrink", "base", groups=zero_counts(0)),
        record("evaluate@base", "evaluate", "base", metrics=metrics(0.9)),
        record("evaluate@small", "evaluate", "small", metrics=metrics(0.7)),
    ]


def large_run() -> list[dict[str, Any]]:
    """40 stages: 18 rounds of pruning and training, three evaluations, one benchmark."""
    records = [record("load", "load", None, groups=zero_counts(0, layers=24))]
    for number in range(18):
        share = 0.05 * (number + 1)
        sizes = {"nonzero": 1000 - 50 * number, "nonzero_ratio": 1 - share}
        pruned = {**sizes, "groups": zero_counts(share, layers=24)}
        prune, train = f"prune_{number}", f"recover_{number}"
        records.append(record(prune, "prune", records[-1]["name"], **pruned))
        records.append(record(train, "finetune", prune, **pruned, metrics=training(200)))
    for number in (0, 9, 17):
        model, metrics = f"recover_{number}", evaluation(0.9 - 0.01 * number, count=3000)
        records.append(record(f"evaluate@{model}", "evaluate", model, metrics=metrics))
    return records


# --- what the file says, without a browser --------------------------------------------------------


def test_the_page_says_what_was_asked_and_what_came_out(tmp_path: Path) -> None:
    """Command, recipe, every stage, and the main table stand in the page without any script; each
    of four sizes has a column, none made of another.
    """
    page = _read(make_run(tmp_path))
    for word in ("A run made by hand.", "compressor run demo", "base", "quantize", "export"):
        assert word in page.words
    assert "done started 2026-03-01 12:00 12 stages none cached 16.5 s" in page.words
    assert "0.9000" in page.words and "0.8500" in page.words  # the main table's rougeLsum
    assert "they make a model neither smaller nor faster" in page.words
    assert "compressor reproduce" in page.words
    buttons = [a["id"] for tag, a in page.tags if tag == "button" and "id" in a]
    for key in ("parameters", "nonzero_ratio", "bytes", "resident_bytes"):
        assert buttons.count(f"sort-stages-{key}") == 1


def test_differences_from_the_parent_are_told(tmp_path: Path) -> None:
    """Both sides of each key; what one side lacks is said."""
    differences = [
        {"path": "stages.prune.amounts.lm_head", "before": 0.3, "after": 0.6},
        {"path": "stages.recover", "after": {"stage": "finetune", "epochs": 20}},
    ]
    parent = {"name": "homework/v1", "differences": differences}
    page = _read(make_run(tmp_path, asked={"parent": parent, "changed": None}))
    assert "Different from the parent recipe homework/v1: 2 keys" in page.words
    assert "stages.prune.amounts.lm_head 0.3 0.6" in page.words
    assert "(not there) {stage: finetune, epochs: 20}" in page.words
    assert "Changed by this command: not known" in page.words


def test_a_run_that_did_not_end_says_what_was_done_and_the_error(tmp_path: Path) -> None:
    """Stages that were done, the one that failed, and those that were not reached."""
    folder = make_run(tmp_path)
    write_json(folder / "metrics.json", full_run()[:4])
    page = _read(folder, ended="failed", error="stage 'recover': the loss is nan at step 3")
    assert "failed" in page.words and "the loss is nan at step 3" in page.words
    assert "recover finetune failed" in page.words
    assert "quantize quantize not reached" in page.words
    assert "4 of 12 stages done" in page.words
    (folder / "metrics.json").unlink()
    (folder / "asked.json").unlink()
    text = render_page(Results.read(folder, ended="interrupted"))
    assert "No stage was done." in text and len(text) < 100_000


def test_artifacts_from_before_lack_counts_and_it_is_said(tmp_path: Path) -> None:
    """Models without counts by layer: a sentence instead of a chart."""
    records = [{k: v for k, v in record.items() if k != "groups"} for record in full_run()]
    page = _read(make_run(tmp_path, records))
    assert "made before zeros were counted by layer" in page.words
    assert not any(attributes.get("id") == "sparsity" for _, attributes in page.tags)

    # JSON has no NaN: a browser would refuse the page's whole data.
    records = full_run()
    records[1]["metrics"] |= {"train_losses": [[1, float("nan")], [2, float("inf")]]}
    text = render_page(Results.read(make_run(tmp_path / "nan", records)))
    assert "NaN" not in re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]  # type: ignore[index]


def test_every_text_is_a_text(tmp_path: Path) -> None:
    """Recipe, names, errors, environment and rows may hold markup: none of it is any."""
    folder = make_run(
        tmp_path,
        [record | {"label": EVIL} for record in full_run()],
        source=[EVIL, "half \ud83d pair".encode("utf-8", "replace").decode()],
        recipe={"description": EVIL, "name": EVIL},
        environment={"command": ["compressor", EVIL], "platform": EVIL},
        asked={"changed": [{"path": EVIL, "before": EVIL, "after": {"a": EVIL}}]},
    )
    page = _read(folder, ended="failed", error=f"half \ud83d {EVIL}")
    plain = _read(make_run(tmp_path / "plain"))
    assert page.words.count("<script>document.title='broken'</script>") > 15
    scripts, expected = ([tag for tag, _ in text.tags].count("script") for text in (page, plain))
    assert scripts == expected
    assert "387420489" not in page.words.split("Environment")[0].split("Outcome")[0]


def test_a_page_that_cannot_be_made_is_told_and_leaves_the_rest(tmp_path: Path, capsys) -> None:
    """A warning with the reason, a file with the traceback; no older page stays; no exception."""
    folder = make_run(tmp_path)
    write_reports(folder, "done")
    assert (folder / "report.html").is_file() and (folder / "README.md").is_file()
    (folder / "stages" / "06-evaluate@base" / "predictions.csv").write_text("no such,columns\n")
    write_reports(folder, "done")
    err = capsys.readouterr().err
    assert err.startswith("warning: report.html was not written: ValueError:")
    assert "has no column" in err and (folder / "report-error.txt").is_file()
    assert not (folder / "report.html").exists() and (folder / "README.md").is_file()
    (folder / "metrics.json").write_text("[")
    write_reports(folder, "done")
    assert "report.html and README.md was not written" in capsys.readouterr().err


def test_a_large_run_fits(tmp_path: Path) -> None:
    """40 stages, three models' 3,000 predictions, sources of 1,000 characters: at most 12 MB."""
    records = large_run()
    assert len(records) == 40
    source = [text[:1000] for text in random_texts(3000, 1, 240)]
    folder = make_run(tmp_path, records, source=source, recipe={"stages": {}})
    started = time.process_time()
    text = render_page(Results.read(folder))
    assert len(text.encode()) <= MOST_BYTES
    assert time.process_time() - started < 10
    assert text.count('{"n":') == 3000 and "rows are in this page" not in text


# --- a real browser -------------------------------------------------------------------------------

Open = Callable[..., Any]


@pytest.fixture
def open_report(open_file: Open) -> Open:
    """Write a run's page and open it."""

    def opened(folder: Path, **options: Any) -> Any:
        (folder / "report.html").write_text(render_page(Results.read(folder)), encoding="utf-8")
        return open_file(folder / "report.html", **options)

    return opened


def _draw(page: Any, chart: str) -> Any:
    """Scroll to a chart and wait until it is drawn."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart}[data-drawn]", state="attached", timeout=60_000)
    return page.locator(f"#{chart}")


def _column(page: Any, table: str, key: str) -> list[str]:
    cells: list[str] = page.evaluate(
        """([table, key]) => {
            const element = document.getElementById(table);
            const at = [...element.tHead.rows[0].cells].findIndex((c) => c.dataset.key === key);
            return [...element.tBodies[0].rows].map((row) => row.cells[at].innerText.trim());
        }""",
        [table, key],
    )
    return cells


def test_every_chart_has_marks(open_report: Open, tmp_path: Path) -> None:
    """Of summaries and of labels: each chart is drawn when it is scrolled to, and is not empty."""
    page = open_report(make_run(tmp_path / "summaries"))
    for chart in ("waterfall", "losses", "sparsity", "lengths", "sensitivity", "cases"):
        assert _draw(page, chart).locator(MARKS[chart]).count() >= 1, chart
    first, second, _ = (panel.bounding_box() for panel in page.locator("#waterfall .plot").all())
    assert first["x"] + first["width"] <= second["x"]
    drawn = page.locator("#waterfall .main-svg:first-child").first.bounding_box()
    assert drawn["width"] <= first["width"] + 1
    check_themes(page, "#losses .xtick text")
    assert page.locator("#lengths .scatterlayer .point").count() == 3 * 3 * 2
    page = open_report(make_run(tmp_path / "labels", labelled_run(), rows=0, recipe={"stages": {}}))
    assert _draw(page, "labels").locator(MARKS["labels"]).count() == 4


def test_a_persons_choices_draw_again_and_stay(open_report: Open, tmp_path: Path) -> None:
    """Model of the heat map, score, training and a logarithmic axis; a reload keeps them."""
    page = open_report(make_run(tmp_path))
    _draw(page, "sparsity")
    zeros = "document.querySelector('#sparsity .plot').data[0].z[0][0]"
    assert page.input_value("#sparsity-choice") == "2"  # load, base, prune: the last pruned one
    assert page.evaluate(zeros) == pytest.approx(0.6)
    page.select_option("#sparsity-choice", label="load")
    page.wait_for_timeout(200)
    assert page.evaluate(zeros) == 0
    _draw(page, "losses")
    page.check("#losses-log")
    page.select_option("#losses-choice", label="recover")
    page.wait_for_timeout(300)
    kind = "document.querySelector('#losses .plot').layout.yaxis.type"
    assert page.evaluate(kind) == "log"
    assert page.evaluate("document.querySelector('#losses .plot').data.length") == 2
    page.reload()
    _draw(page, "losses")
    assert page.input_value("#sparsity-choice") == "0" and page.input_value("#losses-choice") == "1"


def test_hovering_tells_the_numbers(open_report: Open, tmp_path: Path) -> None:
    """On the heat map: group, layer, share and both counts."""
    page = open_report(make_run(tmp_path))
    chart = _draw(page, "sparsity")
    box = chart.locator(".heatmaplayer image").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.wait_for_selector("#sparsity .hoverlayer .hovertext")
    text = chart.locator(".hoverlayer").text_content()
    assert "encoder.self_attention, layer 0" in text and "60.00%" in text
    assert "600 of 1,000" in text


def test_headings_sort_numbers_as_numbers(open_report: Open, tmp_path: Path) -> None:
    """By keyboard too; what is empty comes last both ways."""
    page = open_report(make_run(tmp_path))
    button = page.locator("#sort-stages-bytes")
    button.click()
    assert _column(page, "stages", "bytes")[:2] == ["1.100 kB", "4.000 kB"]
    button.press("Enter")
    sizes = _column(page, "stages", "bytes")
    assert sizes[0] == "4.000 kB" and sizes[-1] == ""
    page.click("#sort-outcome-rougeLsum")
    assert _column(page, "outcome", "rougeLsum") == ["0.0900", "0.8500", "0.9000"]


def test_the_most_regressed_summaries_come_first(open_report: Open, tmp_path: Path) -> None:
    """In the order that Python would sort them in; twenty at a time; what was lost is shown."""
    folder = make_run(tmp_path, rows=45)
    page = open_report(folder)
    kept = [
        read_json(path)["rougeLsum"] for path in sorted(folder.glob("stages/*/row_scores.json"))
    ]
    lost = [round(after - before, 4) for before, after in zip(kept[0], kept[2], strict=True)]
    expected = [f"row {n}" for n in sorted(range(45), key=lambda n: lost[n])]
    rows = page.locator("#texts article > p.muted")
    assert rows.all_text_contents() == expected[:20]
    assert page.locator("#texts .lost").first.text_content() == f"−{-min(lost):.4f}"
    assert page.inner_text("#texts-where") == "1 – 20 of 45"
    page.click("#texts-after")
    page.click("#texts-after")
    assert rows.all_text_contents() == expected[40:]
    assert page.locator("#texts-after").is_disabled()
    page.select_option("#texts-model", label="prune")
    assert rows.count() == 20 and rows.all_text_contents() != expected[:20]
    page.select_option("#texts-model", "all")
    assert page.locator("#texts article").first.locator(".side").count() == 4


def test_words_that_differ_are_marked(open_report: Open, tmp_path: Path) -> None:
    """A word diff by hand: "a big red cat sat" against "a red dog sat down"."""
    folder = make_run(tmp_path, rows=1)
    for name, text in {"base": "a big red cat sat", "quantize": "a red dog sat down"}.items():
        (path,) = folder.glob(f"stages/*-evaluate@{name}/predictions.csv")
        lines = path.read_text().splitlines()
        cells = lines[2].split(",")
        path.write_text("\n".join([*lines[:2], ",".join([*cells[:4], text, *cells[5:]])]) + "\n")
    page = open_report(folder)
    assert page.locator("#texts mark.gone").all_text_contents() == ["big", "cat"]
    assert page.locator("#texts mark.new").all_text_contents() == ["dog", "down"]
    sides = page.locator("#texts .side p").all_text_contents()
    assert sides[1:] == ["a big red cat sat", "a red dog sat down"]


def test_a_filter_finds_rows_and_a_source_unfolds(open_report: Open, tmp_path: Path) -> None:
    """In source, reference and summaries, whatever the case; nothing found is said."""
    sources = [*random_texts(30, 1), "A Needle in the hay."]
    page = open_report(make_run(tmp_path, source=sources))
    page.fill("#texts-filter", "needle")
    assert page.locator("#texts article").count() == 1
    assert page.locator("#texts-pages").is_hidden()
    page.click("#texts details summary")
    assert page.inner_text("#texts details p") == "A Needle in the hay."
    page.fill("#texts-filter", "no such words")
    assert page.inner_text("#texts .empty") == "No row has that."


def test_markup_in_data_stays_text_in_the_browser(open_report: Open, tmp_path: Path) -> None:
    """In tables, ticks, hover texts, summaries and sources; nothing of it runs."""
    records = full_run()
    for made in records:
        made["label"] = f"<img src=x>{EVIL}"
    folder = make_run(tmp_path, records, source=[f"<img src=x>{EVIL}"] * 3, recipe={"name": EVIL})
    page = open_report(folder)
    for chart in ("waterfall", "losses", "sparsity", "lengths", "sensitivity", "cases"):
        _draw(page, chart)
    page.click("#texts details summary")
    assert "<img src=x></script><script>" in page.inner_text("#texts details p")
    ticks = page.locator("#waterfall .xtick text").first.text_content()
    assert ticks.startswith("<img src=x></script>")
    assert page.locator("img").count() == 0
    assert page.title() == f"{EVIL}: done".replace("\u2028", "\u2028") != "broken"


def test_a_phone_needs_no_sideways_scroll(open_report: Open, tmp_path: Path) -> None:
    """At 360 px tables scroll in their boxes, and every chart is as wide as the screen allows."""
    page = open_report(make_run(tmp_path), width=360, has_touch=True, is_mobile=True)
    for chart in ("waterfall", "losses", "sparsity", "lengths", "sensitivity", "cases"):
        drawn = _draw(page, chart)
        for svg in drawn.locator(".main-svg").all():
            box = svg.bounding_box()
            assert box is None or box["x"] + box["width"] <= 360
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_print_has_every_chart_and_cuts_none(open_report: Open, tmp_path: Path) -> None:
    """Printing draws what was never scrolled to."""
    page = open_report(make_run(tmp_path))
    _draw(page, "waterfall")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for chart in ("losses", "sparsity", "lengths", "sensitivity", "cases"):
        page.wait_for_selector(f"#{chart}[data-drawn]", state="attached")
    assert page.pdf()[:5] == b"%PDF-"


def test_a_large_run_opens_soon(open_report: Open, tmp_path: Path) -> None:
    """40 stages and 3,000 predictions: text, and the charts of the first screen, within a bound.

    A generous one, for machines with other work: tests/benchmarks/report_page.py measures.
    """
    source = [text[:1000] for text in random_texts(3000, 1, 240)]
    folder = make_run(tmp_path, large_run(), source=source, recipe={"stages": {}})
    started = time.monotonic()
    page = open_report(folder)
    page.wait_for_selector("#waterfall[data-drawn]", state="attached", timeout=30_000)
    assert page.locator("#texts article").count() == 20
    assert time.monotonic() - started < 20
    assert page.locator("#stages tbody tr").count() == 40
