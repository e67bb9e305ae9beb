"""List what each stage did to quality, bytes and latency: the steps of waterfalls. No drawing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compressor.reports.run_page.results import Results

LATENCY = "latency_p50_ms"


def list_waterfalls(results: Results) -> list[dict[str, Any]]:
    """List for each chain of models that ends in a measured one its steps in each metric.

    Chains that begin another are left out. A chain has `name`, the last model's label, and `panels`
    of a metric and its `steps`: a total, what changed, and the total that comes out.
    """
    metrics = [metric for metric in (results.quality, "bytes", LATENCY) if metric is not None]
    ends = [*results.measurements] or [record["name"] for record in results.models][-1:]
    chains = [results.chain(end) for end in ends]
    waterfalls = []
    for chain in chains:
        is_part = any(chain == other[: len(chain)] and chain != other for other in chains)
        panels = [_list_steps(results, chain, metric) for metric in metrics]
        panels = [panel for panel in panels if len(panel["steps"]) > 2]
        if panels and not is_part:
            waterfalls.append({"name": results.label(chain[-1]), "panels": panels})
    return waterfalls


def _list_steps(results: Results, chain: Sequence[str], metric: str) -> dict[str, Any]:
    """List the steps of one metric along a chain.

    A model without a value joins the next that has one. Unchanged bytes are no step.
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
            label = " + ".join(waiting) if len(waiting) <= 3 else f"{waiting[0]} … {waiting[-1]}"
            steps.append({"label": label, "value": value - last, "total": False})
        waiting, last = [], value
    if last is not None:
        steps.append({"label": "result", "value": last, "total": True})
    after = waiting if steps else []
    return {"metric": metric, "steps": steps, "joined": joined, "unchanged": unchanged,
            "after": after}  # fmt: skip
