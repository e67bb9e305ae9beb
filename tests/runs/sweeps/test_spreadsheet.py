"""`sweep.csv`: read back by another program, it says exactly what was measured."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd

from compressor.runs.sweeps.page import write_csv
from compressor.runs.sweeps.state import PointStatus, Sweep

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
