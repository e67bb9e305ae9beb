"""What each stage did to quality, bytes and latency: the steps of waterfalls. No drawing here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.reports.run_page.results import Results

LATENCY = "latency_p50_ms"


def waterfalls(results: Results) -> list[dict[str, Any]]:
    """For each chain of models that ends in a measured one, its steps in each metric.

    Chains that are the beginning of another are left out. A chain: `name`, the last model's label,
    and `panels`, each with the metric's name and `steps`: the first has a total, the others what
    changed, and the last is the total that comes out.
    """
    metrics = [m for m in (results.quality, "bytes", LATENCY) if m is not None]
    ends = [*results.measured] or [record["name"] for record in results.models][-1:]
    chains = [results.chain(end) for end in ends]
    chains = [c for c in chains if not any(c == o[: len(c)] and len(c) < len(o) for o in chains)]
    found = []
    for chain in chains:
        panels = [_panel(results, chain, metric) for metric in metrics]
        panels = [panel for panel in panels if len(panel["steps"]) > 2]
        if panels:
            found.append({"name": results.label(chain[-1]), "panels": panels})
    return found


def _together(labels: Sequence[str]) -> str:
    """The name of a step of several stages."""
    return " + ".join(labels) if len(labels) <= 3 else f"{labels[0]} … {labels[-1]}"


def _panel(results: Results, chain: Sequence[str], metric: str) -> dict[str, Any]:
    """The steps of one metric along a chain.

    A model without a value joins the next that has one; of bytes, which every model has, stages
    that changed nothing are left out.
    """
    steps: list[dict[str, Any]] = []
    waiting: list[str] = []
    last: float | None = None
    joined = unchanged = False
    for model in chain:
        value = results.value(model, metric)
        waiting.append(results.label(model))
        if value is None:
            continue
        if last is None:
            steps.append({"label": waiting[-1], "value": value, "total": True})
        elif metric == "bytes" and value == last:
            unchanged = True
        else:
            joined = joined or len(waiting) > 1
            steps.append({"label": _together(waiting), "value": value - last, "total": False})
        waiting, last = [], value
    if last is not None:
        steps.append({"label": "result", "value": last, "total": True})
    left = [*waiting] if steps else []
    return {"metric": metric, "steps": steps, "joined": joined, "unchanged": unchanged,
            "after": left}  # fmt: skip
