"""What the charts of a report are drawn from: losses, sparsity, lengths, sensitivity, times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compressor.evaluation.rouge import NAMES
from compressor.reports.run_page.results import Record, Results

PRUNED_BY = 0.001
"""A stage whose model has a smaller non-zero ratio by more than this has pruned."""


def losses(results: Results) -> list[dict[str, Any]]:
    """For each training its loss by step and its validation loss by epoch, in the run's order."""
    found = []
    for record in results.models:
        metrics = record["metrics"]
        train, validation = metrics.get("train_losses"), metrics.get("validation_curve")
        if train or validation:
            found.append(
                {
                    "name": record["label"],
                    "steps": metrics["steps"],
                    "train": train or [],
                    "validation": validation or [],
                }
            )
    return found


def sparsity(results: Results) -> dict[str, Any] | None:
    """Group × layer of each model: all and non-zero weights; `first` is the last pruned one."""
    known = [record for record in results.models if record.get("groups")]
    if not known:
        return None
    pruned = [number for number, record in enumerate(known) if _has_pruned(record, results)]
    models = [{"name": record["label"], "groups": record["groups"]} for record in known]
    return {"models": models, "first": pruned[-1] if pruned else len(models) - 1}


def _has_pruned(record: Record, results: Results) -> bool:
    source = results.by_name.get(record["model"] or "")
    before = 1.0 if source is None else float(source["nonzero_ratio"])
    return before - float(record["nonzero_ratio"]) > PRUNED_BY


def lengths(results: Results) -> dict[str, Any] | None:
    """ROUGE with its interval, and the share cut off, at each `max_length` of each model."""
    models = []
    for record in results.of("evaluate"):
        found: Mapping[str, Any] = record["metrics"].get("lengths") or {}
        if not found:
            continue
        limits = sorted(found, key=int)
        models.append(
            {
                "name": results.label(record["model"]),
                "limits": [int(limit) for limit in limits],
                "cut_off": [found[limit].get("cut_off") for limit in limits],
                "scores": {
                    name: [[found[k][name], *found[k]["intervals"][name]] for k in limits]
                    for name in NAMES
                },
            }
        )
    return {"models": models} if models else None


def labels(results: Results) -> dict[str, Any] | None:
    """F1 of each label and model, for a table and a chart; None where rows have no labels."""
    records = [r for r in results.of("evaluate") if isinstance(r["metrics"].get("labels"), dict)]
    if not records:
        return None
    names = list(records[0]["metrics"]["labels"])
    return {
        "names": names,
        "positives": [records[0]["metrics"]["labels"][name]["positives"] for name in names],
        "models": [
            {
                "name": results.label(record["model"]),
                "f1": [record["metrics"]["labels"].get(name, {}).get("f1") for name in names],
            }
            for record in records
        ],
    }


def sensitivity(results: Results) -> list[dict[str, Any]]:
    """For each such stage: the loss without pruning, and at each amount of each group."""
    found = []
    for record in results.of("sensitivity"):
        metrics = record["metrics"]
        groups = [
            {
                "name": name,
                "weights": curve["weights"],
                "points": [[0.0, metrics["loss"]]]
                + [[point["amount"], point["loss"]] for point in curve["points"]],
            }
            for name, curve in metrics["groups"].items()
        ]
        found.append({"name": record["label"], "rows": metrics["rows"], "groups": groups})
    return found


def cases(results: Results) -> list[dict[str, Any]]:
    """Every case that a benchmark timed, of every model; empty where there is one case alone.

    `case` is its name, of what differs between cases: such as "batch 32, 512 tokens in".
    """
    found = [
        {"model": results.label(record["model"]), **case}
        for record in results.of("benchmark")
        for case in record["metrics"].get("cases", ())
    ]
    varied = {axis for axis in _CASE if len({case.get(axis) for case in found}) > 1}
    return [case | {"case": _case_name(case, varied)} for case in found] if varied else []


_CASE = {
    "batch_size": "batch {}",
    "input_tokens": "{} tokens in",
    "output_tokens": "{} tokens out",
    "threads": "threads: {}",
}
"""What a benchmark varies, and how a reader is told."""


def _case_name(case: Mapping[str, Any], varied: Collection[str]) -> str:
    texts = [form.format(case[axis]) for axis, form in _CASE.items()
             if axis in varied and case.get(axis) is not None]  # fmt: skip
    return ", ".join(texts) or "rows as they are"


def by_model(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model its cases, with p50, p95 and p99 in milliseconds."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        model = found.setdefault(case["model"], {"name": case["model"], "cases": [], "ms": []})
        model["cases"].append(case["case"])
        model["ms"].append([case["p50_ms"], case["p95_ms"], case["p99_ms"]])
    return list(found.values())
