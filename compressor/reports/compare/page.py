"""`compare --html`: a comparison of runs as one page. What it says is `compare`'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.core.files import write_text
from compressor.core.numbers import shown
from compressor.reports.compare.compare import LATENCIES, METHOD, Comparison, Model, Pair, Step
from compressor.reports.compare.significance import LABELS, SUMMARIES
from compressor.reports.compare.tables import interval, p_text, value_text
from compressor.reports.html.render import render
from compressor.reports.show import line, state

COLOURS = 6
"""Runs that have a colour and a shape of their own; further ones have them again."""


def write_page(path: Path, found: Comparison) -> None:
    """Write the page so that a reader sees the old one or the new one. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(found))


def page(found: Comparison) -> str:
    """The page as HTML."""
    latencies = any(s.name.startswith("latency") for pair in found.pairs for s in pair.sizes)
    metrics = _metrics(found)
    values = {
        "names": found.names,
        "runs": [(run, str(state(run))) for run in found.runs],
        "told": [("Recipe", "recipe", found.recipe), ("Machine", "machine", found.environment)],
        "pairs": found.pairs,
        "scores": [(pair, score) for pair in found.pairs for score in pair.scores],
        "sizes": [_size_row(pair, size) for pair in found.pairs for size in pair.sizes],
        "steps": [(step, _seconds(step), _metrics_line(step)) for step in found.steps],
        "several": len(found.runs) > 2,
        "metrics": metrics,
        "models": [model for model in found.models if _is_drawn(model, metrics)],
        "method": METHOD,
        "latencies": LATENCIES if latencies else None,
        "value_text": value_text,
        "interval": interval,
        "p_text": p_text,
        "colours": COLOURS,
        "data": _data(found, metrics),
    }
    return render("reports/compare/page.html", values)


def _metrics(found: Comparison) -> list[str]:
    """The measures that a pair has, the main ones first."""
    there = dict.fromkeys(score.metric for pair in found.pairs for score in pair.scores)
    usual = [name for name in (*SUMMARIES, *LABELS) if name in there]
    return [*usual, *(name for name in there if name not in usual)]


def _size_row(pair: Pair, size: Any) -> tuple[Pair, Any, list[str]]:
    return pair, size, shown(size.name, [size.before, size.after])


def _seconds(step: Step) -> list[float | None]:
    return [r["made_in_seconds"] if r is not None else None for r in (step.before, step.after)]


def _metrics_line(step: Step) -> list[str]:
    return [line(record) if record is not None else "" for record in (step.before, step.after)]


def _is_drawn(model: Model, metrics: Sequence[str]) -> bool:
    """Whether the chart of all models has a place for it."""
    has = any(_finite(model.number(metric)) is not None for metric in metrics)
    return has and bool(model.evaluation["bytes"])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _data(found: Comparison, metrics: Sequence[str]) -> dict[str, Any]:
    """What the charts are drawn from."""
    return {
        "running": False,
        "names": found.names,
        "metrics": list(metrics),
        "pairs": [
            {
                "name": pair.name,
                "run": pair.run,
                "headline": pair.headline,
                "scores": {
                    score.metric: {
                        "difference": _finite(score.difference),
                        "low": score.low,
                        "high": score.high,
                        "text": f"{score.before:.4f} → {score.after:.4f}, {score.difference:+.4f}",
                        "interval": interval(score.low, score.high),
                        "p": p_text(score.p),
                    }
                    for score in pair.scores
                },
            }
            for pair in found.pairs
        ],
        "models": [
            {
                "label": model.label,
                "run": model.run,
                "bytes": model.evaluation["bytes"],
                "size": shown("bytes", [model.evaluation["bytes"]])[0],
                "scores": {metric: _finite(model.number(metric)) for metric in metrics},
            }
            for model in found.models
            if _is_drawn(model, metrics)
        ],
    }
