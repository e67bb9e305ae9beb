"""Write `sweep.html`, a sweep as one page, and `sweep.csv`, for other programs to read.

The page has its data twice: as a table, which needs no script, and as JSON for the chart.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from compressor.core.files import write_text
from compressor.core.numbers import format_duration, format_values
from compressor.evaluation.metric_names import TEXT_SCORES
from compressor.evaluation.predictions import guard_cell
from compressor.recipe.objective import Direction
from compressor.reports.html.render import PageColumn, render
from compressor.runs.sweeps.points import shorten_keys
from compressor.runs.sweeps.state import PointStatus, State, Sweep, guess_direction

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BEFORE, _AFTER = ("name", "state"), ("cached", "stages", "seconds", "error")
_QUALITY = (
    *(*TEXT_SCORES, "micro_f1", "macro_f1", "entity_f1", "accuracy", "rougeL", "retention"),
)
_COST = ("bytes", "parameters", "nonzero_ratio", "latency_p50_ms")
_SIZE = "latency_p50_ms"
_USUAL = ("bytes", "latency_p50_ms", "retention", "nonzero_ratio", "parameters")
"""Metrics that the table shows at once, after the objectives; the others on demand."""
_FEW = 8
"""Up to so many metrics are all shown at once."""
_WORDS = {state: state for state in get_args(State)} | {"pruned": "stopped early"}
_REST = ("failed", "running", "pruned", "waiting")
"""States but `done`, in the order of what a person wants to know."""
_AIMS: Mapping[Direction, str] = {"maximize": "more is better", "minimize": "less is better"}


def write_page(path: Path, sweep: Sweep) -> None:
    """Write the sweep's page so that a reader sees the old one or the new one."""
    write_text(path, render_page(sweep, path.parent))


def render_page(sweep: Sweep, folder: Path) -> str:
    """Render the page as HTML; its links lead to what is in `folder` now."""
    columns = _list_keys(sweep) + _list_metrics(sweep)
    links = [_find_link(point, folder) for point in sweep.points]
    states = [point.state for point in sweep.points]
    counts = {state: states.count(state) for state in get_args(State)}
    words = _WORDS if sweep.running else _WORDS | {"running": "not ended"}
    values = {
        "sweep": sweep,
        "columns": columns,
        "rows": list(zip(sweep.points, links, sweep.mark_front(), strict=True)),
        "counts": counts,
        "progress": _describe_progress(counts, words),
        "words": words,
        "some_are_rare": any(column.rare for column in columns),
        "duration": format_duration,
        "empty": _explain_empty(sweep),
        "data": _collect_data(sweep, links),
    }
    return render("runs/sweeps/page.html", values)


def _find_link(point: PointStatus, folder: Path) -> str | None:
    """Find the point's run, relative to the page; None if there is nothing yet."""
    if point.state == "waiting":
        return None
    report = (folder / point.name / "report.html").is_file()
    return quote(os.fsencode(point.name)) + ("/report.html" if report else "/")


def _list_keys(sweep: Sweep) -> list[PageColumn]:
    """List a column for each key that differs."""
    columns = []
    for key, short in shorten_keys(sweep.list_keys()).items():
        cells = [point.differs.get(key, "") for point in sweep.points]
        number = all(_NUMBER.fullmatch(cell) for cell in cells if cell)
        columns.append(PageColumn(f"differs:{key}", short, key, cells, cells, number))
    return columns


def _list_metrics(sweep: Sweep) -> list[PageColumn]:
    """List a column for each metric: the objectives, the usual ones, then the others."""
    metrics, goals = sweep.list_metrics(), [metric for metric, _ in sweep.objectives]
    columns = []
    for metric in dict.fromkeys(m for m in (*goals, *_USUAL, *metrics) if m in metrics):
        values = [point.metrics.get(metric) for point in sweep.points]
        finite = [point.read_metric(metric) for point in sweep.points]
        texts = ["" if value is None else repr(value) for value in finite]
        constant = len(texts) > 1 and len(set(texts) - {""}) == 1
        rare = metric not in goals and (constant or metric not in _USUAL)
        aim = _choose_direction(metric, sweep)
        title = f"{metric}: {_AIMS[aim]}" if aim else metric
        cells = format_values(metric, values)
        columns.append(PageColumn(f"metric:{metric}", metric, title, cells, texts, True, rare))
    if len(columns) <= _FEW or all(column.rare for column in columns):
        columns = [replace(column, rare=False) for column in columns]
    return columns


def _choose_direction(metric: str, sweep: Sweep) -> Direction | None:
    return dict(sweep.objectives).get(metric, guess_direction(metric))


def _describe_progress(counts: Mapping[str, int], words: Mapping[str, str]) -> str:
    """Describe it as "9 of 12 points done, 1 failed, 1 running"."""
    rest = [f"{counts[state]} {words[state]}" for state in _REST if counts[state]]
    return ", ".join([f"{counts['done']} of {sum(counts.values())} points done", *rest])


def _explain_empty(sweep: Sweep) -> str | None:
    """Explain why there is no chart; None if there is one."""
    states = {point.state for point in sweep.points}
    if not states:
        return "This sweep has no points."
    if states == {"failed"}:
        return "Every point failed. The errors are below."
    if "done" not in states:
        if sweep.running:
            return "No point is done yet. Each appears here as soon as it is."
        return "No point was done when this sweep ended."
    metrics = _list_charted(sweep)
    if not metrics:
        return "Nothing was measured: the recipe has no stage that evaluates or benchmarks."
    if len(metrics) == 1:
        return f"Only {metrics[0]} was measured. A chart needs two metrics."
    return None


def _list_charted(sweep: Sweep) -> list[str]:
    """List the metrics that any done point has a value of."""
    done = [point for point in sweep.points if point.state == "done"]
    return [m for m in sweep.list_metrics() if any(p.read_metric(m) is not None for p in done)]


def _collect_data(sweep: Sweep, links: Sequence[str | None]) -> dict[str, Any]:
    """Collect what the chart is drawn from."""
    metrics, keys = _list_charted(sweep), sweep.list_keys()
    return {
        "running": sweep.running,
        "metrics": {metric: _choose_direction(metric, sweep) for metric in metrics},
        "objectives": sweep.list_compared(),
        "axes": _choose_axes(sweep, metrics),
        "labels": list(shorten_keys(keys).values()),
        "points": [
            {
                "name": point.name,
                "label": " · ".join(point.differs.get(key, "–") for key in keys),
                "link": link,
                "done": point.state == "done",
                "metrics": {metric: point.read_metric(metric) for metric in metrics},
            }
            for point, link in zip(sweep.points, links, strict=True)
        ],
    }


def _choose_axes(sweep: Sweep, metrics: Sequence[str]) -> dict[str, str | None]:
    """Choose what the chart begins with: cost across, quality up, latency as size."""
    up = _choose_metric("maximize", _QUALITY, metrics, sweep)
    others = [metric for metric in metrics if metric != up]
    across = _choose_metric("minimize", _COST, others, sweep)
    size = _SIZE if _SIZE in metrics and _SIZE not in (up, across) else None
    return {"x": across, "y": up, "size": size}


def _choose_metric(
    direction: Direction, usual: Sequence[str], metrics: Sequence[str], sweep: Sweep
) -> str | None:
    """Choose an objective of that direction, else a usual metric, any of it, or any at all."""
    goals = [metric for metric, aim in sweep.list_compared() if aim == direction]
    goals.sort(key=lambda metric: metric != "bytes")  # of several costs
    known = [metric for metric in metrics if _choose_direction(metric, sweep) == direction]
    others = sorted(metrics, key=lambda metric: metric in _COST)
    wanted = (*goals, *(metric for metric in usual if metric in known), *known, *others)
    return next((metric for metric in wanted if metric in metrics), None)


def write_csv(path: Path, sweep: Sweep) -> None:
    """Write a row for each point: what differs, what it cost, its error, every metric of any.

    A text that a spreadsheet would take for a formula carries a leading apostrophe.
    """
    keys, metrics = sweep.list_keys(), sweep.list_metrics()
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    fixed = {*_BEFORE, *_AFTER}
    key_headings = _make_headings(keys, fixed, "override")
    metric_headings = _make_headings(metrics, fixed | set(keys), "metric")
    writer.writerow([*_BEFORE, *key_headings, *_AFTER, *metric_headings])
    for point in sweep.points:
        row = [point.name, point.state, *(point.differs.get(key, "") for key in keys)]
        row += [str(point.cached), str(point.stages), repr(point.seconds), point.error or ""]
        row += [repr(point.metrics[key]) if key in point.metrics else "" for key in metrics]
        writer.writerow([_guard(text) for text in row])
    write_text(path, stream.getvalue())


def _make_headings(names: Iterable[str], taken: set[str], kind: str) -> list[str]:
    """Make headings of names; one that another column has says what it is."""
    return [_guard(f"{name} ({kind})" if name in taken else name) for name in names]


def _guard(text: str) -> str:
    return text if _NUMBER.fullmatch(text) else guard_cell(text)
