"""`sweep.html`: a sweep as one page, read while it runs and a month later. No runs or stages here.

The page has its data twice: as a table, which needs no script, and as JSON for the chart.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from compressor.core.files import write_text
from compressor.core.numbers import duration, shown
from compressor.evaluation.predictions import guarded
from compressor.recipe.objective import Direction
from compressor.reports.html.render import render
from compressor.runs.sweeps.points import shortened
from compressor.runs.sweeps.state import Standing, State, Sweep, better

_QUALITY = ("rougeLsum", "micro_f1", "macro_f1", "accuracy", "rougeL", "retention")

_COST = ("bytes", "parameters", "nonzero_ratio", "latency_p50_ms")

_SIZE = "latency_p50_ms"

_USUAL = ("bytes", "latency_p50_ms", "retention", "nonzero_ratio", "parameters")
"""Metrics that the table shows at once, after the objectives; the others on demand."""

_FEW = 8
"""Up to so many metrics are all shown at once."""

_WORDS = {state: state for state in get_args(State)} | {"pruned": "stopped early"}

_REST = ("failed", "running", "pruned", "waiting")
"""States but `done`, in the order of what a person wants to know."""


@dataclass(frozen=True)
class Column:
    """A column of numbers or texts, a cell for each point."""

    key: str
    heading: str
    title: str
    cells: Sequence[str]
    values: Sequence[str]
    """What sorting goes by."""
    number: bool
    rare: bool = False
    """Shown on demand."""


def write_page(path: Path, sweep: Sweep) -> None:
    """Write the sweep's page so that a reader sees the old one or the new one."""
    write_text(path, page(sweep, path.parent))


def page(sweep: Sweep, folder: Path) -> str:
    """The page as HTML; its links lead to what is in `folder` now."""
    columns = _differing(sweep) + _measured(sweep)
    marks = sweep.on_front()
    links = [_link(point, folder) for point in sweep.points]
    states = [point.state for point in sweep.points]
    counts = {state: states.count(state) for state in get_args(State)}
    words = _WORDS if sweep.running else _WORDS | {"running": "not ended"}
    values = {
        "sweep": sweep,
        "columns": columns,
        "rows": list(zip(sweep.points, links, marks, strict=True)),
        "counts": counts,
        "progress": _progress(counts, words),
        "words": words,
        "some_are_rare": any(column.rare for column in columns),
        "duration": duration,
        "empty": _empty(sweep),
        "data": _data(sweep, links),
    }
    return render("runs/sweeps/page.html", values)


def _link(point: Standing, folder: Path) -> str | None:
    """Where the point's run is, relative to the page; None if there is nothing yet."""
    if point.state == "waiting":
        return None
    report = (folder / point.name / "report.html").is_file()
    return quote(os.fsencode(point.name)) + ("/report.html" if report else "/")


def _differing(sweep: Sweep) -> list[Column]:
    columns = []
    for key, short in shortened(sweep.keys()).items():
        cells = [point.differs.get(key, "") for point in sweep.points]
        number = all(_is_number(cell) for cell in cells if cell)
        columns.append(Column(f"differs:{key}", short, key, cells, cells, number))
    return columns


def _measured(sweep: Sweep) -> list[Column]:
    """A column for each metric: the objectives, the usual ones, then the others."""
    metrics, asked = sweep.metrics(), [metric for metric, _ in sweep.objectives]
    ordered = dict.fromkeys(m for m in (*asked, *_USUAL, *metrics) if m in metrics)
    columns = []
    for metric in ordered:
        values = [point.metrics.get(metric) for point in sweep.points]
        finite = [point.measured(metric) for point in sweep.points]
        texts = ["" if value is None else repr(value) for value in finite]
        constant = len(texts) > 1 and len(set(texts) - {""}) == 1
        rare = metric not in asked and (constant or metric not in _USUAL)
        title, cells = _aim(metric, sweep), shown(metric, values)
        columns.append(Column(f"metric:{metric}", metric, title, cells, texts, True, rare))
    if len(columns) <= _FEW or all(column.rare for column in columns):
        columns = [replace(column, rare=False) for column in columns]
    return columns


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _direction(metric: str, sweep: Sweep) -> Direction | None:
    return dict(sweep.objectives).get(metric, better(metric))


def _aim(metric: str, sweep: Sweep) -> str:
    direction = _direction(metric, sweep)
    aims = {"maximize": "more is better", "minimize": "less is better"}
    return f"{metric}: {aims[direction]}" if direction else metric


def _progress(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Such as "9 of 12 points done, 1 failed, 1 running"."""
    total = sum(counts.values())
    some = [f"{counts[state]} {words[state]}" for state in _REST if counts[state]]
    return ", ".join([f"{counts['done']} of {total} points done", *some])


def _empty(sweep: Sweep) -> str | None:
    """Why there is no chart, or None if there is one."""
    done = [point for point in sweep.points if point.state == "done"]
    if not sweep.points:
        return "This sweep has no points."
    if all(point.state == "failed" for point in sweep.points):
        return "Every point failed. The errors are below."
    if not done and sweep.running:
        return "No point is done yet. Each appears here as soon as it is."
    if not done:
        return "No point was done when this sweep ended."
    measured = _charted(sweep)
    if not measured:
        return "Nothing was measured: the recipe has no stage that evaluates or benchmarks."
    if len(measured) == 1:
        return f"Only {measured[0]} was measured. A chart needs two metrics."
    return None


def _charted(sweep: Sweep) -> list[str]:
    """The metrics that any done point has a value of."""
    done = [point for point in sweep.points if point.state == "done"]
    return [m for m in sweep.metrics() if any(p.measured(m) is not None for p in done)]


def _data(sweep: Sweep, links: Sequence[str | None]) -> dict[str, Any]:
    """What the chart is drawn from."""
    metrics, keys = _charted(sweep), sweep.keys()
    return {
        "running": sweep.running,
        "metrics": {metric: _direction(metric, sweep) for metric in metrics},
        "objectives": sweep.compared(),
        "axes": _axes(sweep, metrics),
        "labels": list(shortened(keys).values()),
        "points": [
            {
                "name": point.name,
                "label": " · ".join(point.differs.get(key, "–") for key in keys),
                "link": link,
                "done": point.state == "done",
                "metrics": {metric: point.measured(metric) for metric in metrics},
            }
            for point, link in zip(sweep.points, links, strict=True)
        ],
    }


def _axes(sweep: Sweep, metrics: Sequence[str]) -> dict[str, str | None]:
    """The metrics that the chart begins with: cost across, quality up, latency as size."""
    up = _first("maximize", _QUALITY, metrics, sweep)
    across = _first("minimize", _COST, [metric for metric in metrics if metric != up], sweep)
    size = _SIZE if _SIZE in metrics and _SIZE not in (up, across) else None
    return {"x": across, "y": up, "size": size}


def _first(
    direction: Direction, usual: Sequence[str], metrics: Sequence[str], sweep: Sweep
) -> str | None:
    """An objective of that direction, else a usual metric, else any of it, else any at all."""
    asked = [metric for metric, aim in sweep.compared() if aim == direction]
    asked.sort(key=lambda metric: metric != "bytes")  # of several costs
    known = [metric for metric in metrics if _direction(metric, sweep) == direction]
    others = sorted(metrics, key=lambda metric: metric in _COST)
    wanted = (*asked, *(metric for metric in usual if metric in known), *known, *others)
    return next((metric for metric in wanted if metric in metrics), None)


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
