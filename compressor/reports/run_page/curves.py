"""List what the charts of a report are drawn from: losses, zeros, lengths, sensitivity, times."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compressor.evaluation.rouge import ROUGE_TYPES
from compressor.reports.run_page.results import Results

PRUNED_BY = 0.001
"""A stage whose model has a smaller non-zero ratio by more than this has pruned."""


def list_losses(results: Results) -> list[dict[str, Any]]:
    """List for each training its loss by step and its validation loss by epoch."""
    trainings = [(record["label"], record["metrics"]) for record in results.models]
    return [
        {
            "name": label,
            "steps": metrics["steps"],
            "train": metrics.get("train_losses") or [],
            "validation": metrics.get("validation_curve") or [],
        }
        for label, metrics in trainings
        if metrics.get("train_losses") or metrics.get("validation_curve")
    ]


def count_zeros(results: Results) -> dict[str, Any] | None:
    """Count all and non-zero weights by group and layer of each model; `first`: the last pruned."""
    records = [record for record in results.models if record.get("groups")]
    if not records:
        return None
    before = [results.by_name.get(r["model"] or "", {}).get("nonzero_ratio", 1.0) for r in records]
    lost = [ratio - r["nonzero_ratio"] for ratio, r in zip(before, records, strict=True)]
    pruned = [number for number, share in enumerate(lost) if share > PRUNED_BY]
    models = [{"name": record["label"], "groups": record["groups"]} for record in records]
    return {"models": models, "first": pruned[-1] if pruned else len(models) - 1}


def list_lengths(results: Results) -> dict[str, Any] | None:
    """List scores with their interval, and the share cut off, at each `max_length` of each model.

    A score that a model lacks, or its interval, is None.
    """
    models = []
    records = results.of("evaluate")
    measured = [record["metrics"].get("intervals") or {} for record in records]
    known = list(dict.fromkeys(name for intervals in measured for name in intervals))
    of_rouge = [name for name in reversed(ROUGE_TYPES) if name in known]
    names = list(dict.fromkeys([*(n for n in known[:1] if n not in of_rouge), *of_rouge, *known]))
    for record in records:
        lengths: Mapping[str, Any] = record["metrics"].get("lengths") or {}
        scores = [lengths[limit] for limit in sorted(lengths, key=int)]
        if scores:
            models.append(
                {
                    "name": results.label(record["model"]),
                    "limits": sorted(map(int, lengths)),
                    "cut_off": [score.get("cut_off") for score in scores],
                    "scores": {n: [_read_score(score, n) for score in scores] for n in names},
                }
            )
    title = "ROUGE by limit" if of_rouge == names else "Scores by limit"
    return {"models": models, "names": names, "title": title} if models else None


def _read_score(scores: Mapping[str, Any], name: str) -> list[float | None]:
    return [scores.get(name), *((scores.get("intervals") or {}).get(name) or (None, None))]


def list_label_scores(results: Results) -> dict[str, Any] | None:
    """List F1 of each label, or type of entity, and model, for a table and a chart; None where rows
    have no labels.
    """
    evaluated = [(r, _find_label_scores(r["metrics"])) for r in results.of("evaluate")]
    records = [(record, labels) for record, labels in evaluated if labels]
    if not records:
        return None
    labels = records[0][1]
    return {
        "names": list(labels),
        "positives": [label["positives"] for label in labels.values()],
        "counted": "entities" if "entities" in records[0][0]["metrics"] else "rows with it",
        "models": [
            {
                "name": results.label(record["model"]),
                "f1": [scores.get(name, {}).get("f1") for name in labels],
            }
            for record, scores in records
        ],
    }


def _find_label_scores(metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    scores = metrics.get("labels") or metrics.get("entities")
    return scores if isinstance(scores, dict) else {}


def list_sensitivity(results: Results) -> list[dict[str, Any]]:
    """List for each such stage the loss without pruning, and at each amount of each group."""
    stages = []
    for record in results.of("sensitivity"):
        metrics = record["metrics"]
        groups = [
            {
                "name": name,
                "weights": curve["weights"],
                "points": [
                    [0.0, metrics["loss"]],
                    *([point["amount"], point["loss"]] for point in curve["points"]),
                ],
            }
            for name, curve in metrics["groups"].items()
        ]
        stages.append({"name": record["label"], "rows": metrics["rows"], "groups": groups})
    return stages


_CASE = {
    "batch_size": "batch {}",
    "input_tokens": "{} tokens in",
    "output_tokens": "{} tokens out",
    "threads": "threads: {}",
}
"""What a benchmark varies, and how a reader is told."""


def list_cases(results: Results) -> list[dict[str, Any]]:
    """List every case that a benchmark timed of every model, if there are several.

    `case` is its name, of what differs between cases: such as "batch 32, 512 tokens in".
    """
    cases = [
        {"model": results.label(record["model"]), **case}
        for record in results.of("benchmark")
        for case in record["metrics"].get("cases", ())
    ]
    varied = {axis for axis in _CASE if len({case.get(axis) for case in cases}) > 1}
    return [case | {"case": _name_case(case, varied)} for case in cases] if varied else []


def _name_case(case: Mapping[str, Any], varied: Collection[str]) -> str:
    axes = [axis for axis in _CASE if axis in varied and case.get(axis) is not None]
    return ", ".join(_CASE[axis].format(case[axis]) for axis in axes) or "rows as they are"


def group_by_model(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Group cases by their model, with p50, p95 and p99 in milliseconds."""
    models: dict[str, dict[str, Any]] = {}
    for case in cases:
        model = models.setdefault(case["model"], {"name": case["model"], "cases": [], "ms": []})
        model["cases"].append(case["case"])
        model["ms"].append([case["p50_ms"], case["p95_ms"], case["p99_ms"]])
    return list(models.values())
