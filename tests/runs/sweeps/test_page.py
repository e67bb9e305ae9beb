"""`sweep.html` and `sweep.csv`: what the files say, without a browser."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from compressor.runs.sweeps.page import write_csv, write_page
from compressor.runs.sweeps.state import PointStatus, Sweep
from tests.harness.pages import Text
from tests.runs.sweeps.handmade import AIMS, make_sweep


def _read(tmp_path: Path, sweep: Sweep) -> Text:
    write_page(tmp_path / "sweep.html", sweep)
    return Text((tmp_path / "sweep.html").read_text("utf-8"))


def test_the_page_says_what_was_asked_and_how_far_it_is(tmp_path: Path) -> None:
    """Title, command, progress and what was shared stand in the page without any script."""
    sweep = make_sweep()
    text = _read(tmp_path, replace(sweep, running=True)).words
    assert "9 of 12 points done, 1 failed, 1 running, 1 waiting" in text
    assert "41 distinct stages instead of 66" in text
    assert sweep.command in text and sweep.description in text
    assert sweep.points[7].error is not None and sweep.points[7].error.strip() in text
    text = _read(tmp_path, sweep).words
    assert "9 of 12 points done, 1 failed, 1 not ended, 1 waiting" in text
    assert "1 running" not in text


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "This sweep has no points."),
        ([PointStatus("0", {}, "running", "prune")], "No point is done yet."),
        (
            [PointStatus("0", {}, "failed", error="x")] * 2,
            "Every point failed. The errors are below.",
        ),
        ([PointStatus("0", {}, "done")], "Nothing was measured"),
        ([PointStatus("0", {}, "done", metrics={"bytes": 3})], "Only bytes was measured."),
        (
            [PointStatus("0", {}, "done", metrics={"bytes": 3, "loss": float("nan")})],
            "Only bytes was",
        ),
    ],
)
def test_a_page_without_a_chart_says_why(tmp_path: Path, points, message: str) -> None:
    """No empty axes: a sentence, and no chart's script in the file."""
    page = _read(tmp_path, Sweep("demo", points, AIMS, running=True))
    assert message in page.words
    assert (tmp_path / "sweep.html").stat().st_size < 100_000
    assert not any(attributes.get("id") == "chart" for _, attributes in page.tags)


def test_links_lead_to_a_report_if_there_is_one(tmp_path: Path) -> None:
    """To `report.html` where it is, else to the run's folder; none where nothing has begun."""
    names = ["0", "lm_head=0.3,x:y", "ä b#1?%", "3"]
    (tmp_path / names[2]).mkdir()
    (tmp_path / names[2] / "report.html").write_text("")
    states = ["done", "failed", "done", "waiting"]
    points = [PointStatus(name, {}, state) for name, state in zip(names, states, strict=True)]  # type: ignore[arg-type]
    page = _read(tmp_path, Sweep("demo", points))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["0/", "lm_head%3D0.3%2Cx%3Ay/", "%C3%A4%20b%231%3F%25/report.html"]


POINTS = (
    PointStatus("a=1", {"x.y": "-0.5", "+z": "=1+1"}, "done", cached=2, stages=5, seconds=1.25,
          metrics={"rougeLsum": 0.1 + 0.2, "bytes": 12345678901}),
    PointStatus("b", {"x.y": "0.5", "name": "@me"}, "failed", error='-Oops, "x"\nmore', stages=5),
)  # fmt: skip


def test_every_point_is_a_row_and_nothing_is_rounded_or_a_formula(tmp_path: Path) -> None:
    """Columns in their order; floats to the last bit; what a point lacks is empty; a text that a
    spreadsheet would run carries an apostrophe, and a negative number does not.
    """
    write_csv(tmp_path / "sweep.csv", Sweep("demo", POINTS))
    with (tmp_path / "sweep.csv").open(newline="", encoding="utf-8") as stream:
        heading, first, second = csv.reader(stream)
    assert heading == [
        *("name", "state", "x.y", "'+z", "name (override)"),
        *("cached", "stages", "seconds", "error", "rougeLsum", "bytes"),
    ]
    assert first[2:4] == ["-0.5", "'=1+1"]
    assert first[5:] == ["2", "5", "1.25", "", "0.30000000000000004", "12345678901"]
    assert second[2:5] == ["0.5", "", "'@me"]
    assert second[8:] == ['\'-Oops, "x"\nmore', "", ""]
    frame = pd.read_csv(tmp_path / "sweep.csv")
    assert frame["rougeLsum"][0] == 0.1 + 0.2 and frame["x.y"].tolist() == [-0.5, 0.5]
