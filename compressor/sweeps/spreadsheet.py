"""`sweep.csv`: a row for each point, for other programs to read. Nothing is rounded."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

from compressor.files import write_text
from compressor.metrics.predictions import guarded
from compressor.sweeps.state import Sweep

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BEFORE, _AFTER = ("name", "state"), ("cached", "stages", "seconds", "error")


def write_csv(path: Path, sweep: Sweep) -> None:
    """Write a row for each point: what differs, what it cost, its error, every metric of any.

    A text that a spreadsheet would take for a formula carries a leading apostrophe, as in
    `predictions.csv`; numbers do not. A value that a point does not have is an empty cell.
    """
    keys, metrics = sweep.keys(), sweep.metrics()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fixed = {*_BEFORE, *_AFTER}
    key_headings = _headings(keys, fixed, "override")
    metric_headings = _headings(metrics, fixed | set(keys), "metric")
    writer.writerow([*_BEFORE, *key_headings, *_AFTER, *metric_headings])
    for point in sweep.points:
        row = [point.name, point.state, *(point.differs.get(key, "") for key in keys)]
        row += [str(point.cached), str(point.stages), repr(point.seconds), point.error or ""]
        row += [repr(point.metrics[key]) if key in point.metrics else "" for key in metrics]
        writer.writerow([_cell(text) for text in row])
    write_text(path, stream.getvalue())


def _headings(names: Iterable[str], taken: set[str], kind: str) -> list[str]:
    """The names as headings; one that another column has says what it is."""
    return [_cell(f"{name} ({kind})" if name in taken else name) for name in names]


def _cell(text: str) -> str:
    return text if _NUMBER.fullmatch(text) else guarded(text)
