"""A run's folder made by hand, in the very formats that a run writes, of any size and content."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from compressor.core.files import write_json
from compressor.evaluation.predictions import Prediction, write_predictions

GROUPS = ("encoder.self_attention", "encoder.feed_forward", "decoder.feed_forward")
WORDS = ("the", "bill", "directs", "a", "secretary", "to", "give", "assistance", "for", "water")


def record(name: str, stage: str, model: str | None, **values: Any) -> dict[str, Any]:
    """One record of `metrics.json`."""
    sizes = {"parameters": 1000, "nonzero": 1000, "nonzero_ratio": 1.0, "bytes": 4000}
    common = {"name": name, "stage": stage, "label": name, "model": model, "key": f"key-{name}"}
    times = {"cached": False, "seconds": 1.5, "made_in_seconds": 1.25, "metrics": {}}
    return {**common, **sizes, **times, **values}


def zero_counts(share: float, layers: int = 6) -> dict[str, Any]:
    """Counts by group and layer, with `share` of the weights zero."""
    kept = round(1000 * (1 - share))
    places = list(range(layers))
    nonzero = [kept + 10 * n for n in places]
    group = {"layers": places, "weights": [1000] * layers, "nonzero": nonzero}
    head = {"layers": [None], "weights": [5000], "nonzero": [5 * kept]}
    other = {"layers": [None], "weights": [60], "nonzero": [60]}
    return {**dict.fromkeys(GROUPS, group), "lm_head": head, "other": other}


def training(steps: int = 60) -> dict[str, Any]:
    """The metrics of a training."""
    losses = [[n, 0.5 + 4 * math.exp(-3 * n / steps)] for n in range(1, min(steps, 200) + 1)]
    return {
        "train_loss": losses[-1][1],
        "validation_loss": 1.5,
        "validation_losses": [2.0, 1.5],
        "train_losses": losses,
        "validation_curve": [[steps // 2, 2.0], [steps, 1.5]],
        "steps": steps,
        "samples_per_second": 100.0,
        "resumed": 0,
    }


def evaluation(quality: float, count: int = 200) -> dict[str, Any]:
    """The metrics of an evaluation of summaries, at three limits."""
    lengths = {}
    for limit, share in (("20", 1 / 3), ("40", 2 / 3), ("64", 1)):
        names, value = ("rouge1", "rouge2", "rougeL", "rougeLsum"), quality * share
        intervals = {name: [value - 0.01, value + 0.02] for name in names}
        lengths[limit] = {"count": count, **dict.fromkeys(names, value), "intervals": intervals,
                          "gen_len": 30 * share, "cut_off": 1 - share}  # fmt: skip
    return {**lengths["64"], "samples_per_second": 40.0, "lengths": lengths}


def benchmark(p50: float) -> dict[str, Any]:
    """The metrics of a benchmark of two cases."""
    rates = {"texts_per_second": 900 / p50, "tokens_per_second": 9000 / p50, "speedup": 100 / p50}
    cases = [
        {"batch_size": batch, "input_tokens": None, "output_tokens": None, "threads": 1,
         "p50_ms": p50 * batch**0.5, "p95_ms": 2 * p50 * batch**0.5, "p99_ms": 3 * p50 * batch**0.5,
         "batches": 3, "peak_bytes": 400_000_000, "joules_per_text": None, **rates}
        for batch in (1, 32)
    ]  # fmt: skip
    latencies = {f"latency_p{p}_ms": n * p50 for n, p in enumerate((50, 95, 99), 1)}
    sizes = {"load_seconds": 1.0, "resident_bytes": 380_000_000, "threads": 1}
    return {"cases": cases, **sizes, **latencies, **rates}


EXPORTED = {
    "format": "huggingface",
    "weights": "float32",
    "claimed_bytes": 4000,
    "disk_bytes": 5000,
    "bytes": 4000,
    "gzip_bytes": 1800,
    "logits_difference": 0.0,
    "parity": {"rows": 32, "equal_tokens": 1.0, "rougeLsum_difference": 0.0},
    "load_seconds": 2.0,
    "resident_bytes": 390_000_000,
}


def full_run() -> list[dict[str, Any]]:
    """A run with everything: training, sensitivity, pruning, int8, reports, an export."""
    sizes = {"nonzero": 400, "nonzero_ratio": 0.4}
    pruned = {**sizes, "groups": zero_counts(0.6)}
    points = [{"amount": amount, "loss": 1.5 + amount} for amount in (0.1, 0.5, 0.9)]
    curve = {"weights": 2_000_000, "left": 2_000_000, "points": points}
    sensitive = {"loss": 1.5, "rows": 64, "groups": dict.fromkeys(GROUPS, curve)}
    kept = {"retention": 0.1, "closeness": 0.19}
    return [
        record("load", "load", None, groups=zero_counts(0)),
        record("base", "finetune", "load", groups=zero_counts(0), metrics=training()),
        record("sensitivity", "sensitivity", "base", metrics=sensitive),
        record("prune", "prune", "base", **pruned),
        record("recover", "finetune", "prune", **pruned, metrics=training(40)),
        record("quantize", "quantize", "recover", **pruned, bytes=1100),
        record("evaluate@base", "evaluate", "base", metrics=evaluation(0.9)),
        record("evaluate@prune", "evaluate", "prune", metrics=evaluation(0.09) | kept),
        record("evaluate@quantize", "evaluate", "quantize", bytes=1100, metrics=evaluation(0.85)),
        record("benchmark@base", "benchmark", "base", metrics=benchmark(80.0), key="key-benchmark"),
        record("benchmark@quantize", "benchmark", "quantize", metrics=benchmark(50.0), bytes=1100,
               key="key-benchmark", seconds=0.0, made_in_seconds=0.0),
        record("export", "export", "recover", **sizes, metrics=dict(EXPORTED)),
    ]  # fmt: skip


def labelled_run() -> list[dict[str, Any]]:
    """A run of two classifiers."""

    def metrics(f1: float) -> dict[str, Any]:
        values = {"positives": 9, "given": 8, "roc_auc": 0.9, "average_precision": 0.8}
        labels = {"joy": {**values, "f1": f1}, "anger": {**values, "f1": f1 - 0.1}}
        return {"micro_f1": f1, "macro_f1": f1, "accuracy": f1, "labels": labels}

    return [
        record("base", "finetune", None, groups=zero_counts(0), metrics=training()),
        record("small", "shrink", "base", groups=zero_counts(0)),
        record("evaluate@base", "evaluate", "base", metrics=metrics(0.9)),
        record("evaluate@small", "evaluate", "small", metrics=metrics(0.7)),
    ]


def random_texts(count: int, seed: int, words: int = 25) -> list[str]:
    """Sentences of random words, the same for the same seed."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=words)) + "." for _ in range(count)]


def write_evaluation(
    folder: Path,
    number: int,
    stage: str,
    predictions: Sequence[str],
    row_scores: Sequence[float] | None,
    *,
    sources: Sequence[str],
    references: Sequence[str],
) -> None:
    """Write what an evaluation leaves in the store; the shorter of two limits is never shown."""
    place = folder / "stages" / f"{number:02d}-{stage}"
    place.mkdir(parents=True)
    rows = [
        Prediction(n, limit, sources[n], references[n], text if limit == 64 else "short", 9, False)
        for limit in (20, 64)
        for n, text in enumerate(predictions)
    ]
    write_predictions(place / "predictions.csv", rows)
    if row_scores is not None:
        write_json(place / "row_scores.json", {"max_length": 64, "rougeLsum": list(row_scores)})


RECIPE = {
    "name": "demo",
    "description": "A run made by hand.",
    "pipeline": ["load", "evaluate"],
    "stages": {"evaluate": {"against": "base"}, "prune": {"amounts": {"lm_head": 0.6}}},
    "model": {"source": "google-t5/t5-small"},
    "data": {"source": "bills", "task": "summarization", "max_source_length": 64,
             "max_target_length": 32, "prefix": "summarize: "},
}  # fmt: skip
ENVIRONMENT = {
    "started": "2026-03-01T12:00:00+00:00",
    "python": "3.11.7",
    "machine": {"system": "Linux", "processor": "AMD EPYC", "threads": 1, "device": "cpu"},
    "gpus": [],
    "packages": {"compressor": "0.1.0"},
    "command": ["compressor", "run", "demo"],
}


def make_run(
    folder: Path,
    records: Sequence[Mapping[str, Any]] | None = None,
    *,
    rows: int = 50,
    recipe: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
    source: Sequence[str] | None = None,
) -> Path:
    """Write a run's folder; its evaluations have `rows` predictions each."""
    folder.mkdir(parents=True, exist_ok=True)
    records = full_run() if records is None else records
    text = yaml.safe_dump({**RECIPE, **(recipe or {})}, allow_unicode=True, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    write_json(folder / "environment.json", {**ENVIRONMENT, **(environment or {})})
    nodes = [{key: r[key] for key in ("name", "stage", "label", "model")} for r in records]
    request = {"parent": None, "changed": [], "nodes": nodes, **(asked or {})}
    write_json(folder / "asked.json", request)
    # With NaN where there is one, which earlier versions wrote.
    (folder / "metrics.json").write_text(json.dumps(list(records)))
    sources = source or random_texts(rows, 1, 60)
    texts = {"sources": sources, "references": random_texts(len(sources), 2)}
    for number, made in enumerate(records):
        if made["stage"] == "evaluate":
            chance = random.Random(number)
            scores = [round(chance.random(), 3) for _ in sources]
            predictions = random_texts(len(sources), 10 + number)
            write_evaluation(folder, number, made["name"], predictions, scores, **texts)
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
