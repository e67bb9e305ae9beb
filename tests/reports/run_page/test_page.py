"""`report.html`: what the file says without a browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compressor.core.files import write_json
from compressor.reports.run_page.page import render_page
from compressor.reports.run_page.results import Results
from compressor.reports.write import write_reports
from tests.harness.pages import Text
from tests.reports.handmade import (
    full_run,
    make_run,
)


def _read(folder: Path, **how: Any) -> Text:
    return Text(render_page(Results.read(folder, **how)))


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
