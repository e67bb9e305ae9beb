"""Render a comparison of runs as one page. What it says is `compare`'s."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.core.files import write_text
from compressor.core.numbers import format_values, replace_nonfinite
from compressor.reports.compare.compare import LATENCIES, METHOD, Comparison, Model, Pair
from compressor.reports.compare.significance import LABELS, SUMMARIES
from compressor.reports.compare.tables import format_interval, format_p, format_value
from compressor.reports.html.render import render
from compressor.reports.show import summarize_metrics

COLOURS = 6
"""Runs that have a colour and a shape of their own; further ones have them again."""


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the page so that a reader sees the old one or the new one. Makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, render_page(comparison))


def render_page(comparison: Comparison) -> str:
    """Render the page as HTML."""
    pairs, metrics = comparison.pairs, _list_metrics(comparison)
    sizes = [(pair, size) for pair in pairs for size in pair.sizes]
    latencies = any(size.name.startswith("latency") for _, size in sizes)
    values = {
        "names": comparison.names,
        "runs": comparison.runs,
        "rows": [
            ("Recipe", "recipe", comparison.recipe),
            ("Machine", "machine", comparison.environment),
        ],
        "pairs": pairs,
        "scores": [(pair, score) for pair in pairs for score in pair.scores],
        "sizes": [
            (p, size, format_values(size.name, [size.before, size.after])) for p, size in sizes
        ],
        "steps": comparison.steps,
        "summarize_metrics": summarize_metrics,
        "several": len(comparison.runs) > 2,
        "metrics": metrics,
        "models": [model for model in comparison.models if _is_drawn(model, metrics)],
        "method": METHOD,
        "latencies": LATENCIES if latencies else None,
        "format_value": format_value,
        "format_interval": format_interval,
        "format_p": format_p,
        "colours": COLOURS,
        "data": _list_chart_data(comparison, metrics),
    }
    return render("reports/compare/page.html", values)


def _list_metrics(comparison: Comparison) -> list[str]:
    """List the measures that a pair has, the main ones first."""
    names = dict.fromkeys(score.metric for pair in comparison.pairs for score in pair.scores)
    main = [name for name in (*SUMMARIES, *LABELS) if name in names]
    return list(dict.fromkeys([*main, *names]))


def _is_drawn(model: Model, metrics: Sequence[str]) -> bool:
    """Return whether the chart of all models has a place for it."""
    values = replace_nonfinite([model.number(metric) for metric in metrics])
    return any(value is not None for value in values) and bool(model.evaluation["bytes"])


def _list_chart_data(comparison: Comparison, metrics: Sequence[str]) -> dict[str, Any]:
    """List what the charts are drawn from."""
    return {
        "running": False,
        "names": comparison.names,
        "metrics": list(metrics),
        "pairs": [_pair_data(pair) for pair in comparison.pairs],
        "models": [
            {
                "label": model.label,
                "run": model.run,
                "bytes": model.evaluation["bytes"],
                "size": format_values("bytes", [model.evaluation["bytes"]])[0],
                "scores": {metric: model.number(metric) for metric in metrics},
            }
            for model in comparison.models
            if _is_drawn(model, metrics)
        ],
    }


def _pair_data(pair: Pair) -> dict[str, Any]:
    return {
        "name": pair.name,
        "run": pair.run,
        "headline": pair.headline,
        "scores": {
            score.metric: {
                "difference": score.difference,
                "low": score.low,
                "high": score.high,
                "text": f"{score.before:.4f} → {score.after:.4f}, {score.difference:+.4f}",
                "interval": format_interval(score.low, score.high),
                "p": format_p(score.p),
            }
            for score in pair.scores
        },
    }
