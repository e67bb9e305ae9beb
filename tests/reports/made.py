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

EVIL = """</script><script>document.title='broken'</script> "quoted" 'too' & 😀 \u2028 {{9**9}}"""
GROUPS = ("encoder.self_attention", "encoder.feed_forward", "decoder.feed_forward")
WORDS = ("the", "bill", "directs", "a", "secretary", "to", "give", "assistance", "for", "water")


def record(name: str, stage: str, model: str | None, **values: Any) -> dict[str, Any]:
    """One record of `metrics.json`."""
    sizes = {"parameters": 1000, "nonzero": 1000, "nonzero_ratio": 1.0, "bytes": 4000}
    common = {"name": name, "stage": stage, "label": name, "model": model, "key": f"key-{name}"}
    times = {"cached": False, "seconds": 1.5, "made_in_seconds": 1.25, "metrics": {}}
    return {**common, **sizes, **times, **values}


def groups(share: float, layers: int = 6) -> dict[str, Any]:
    """Counts by group and layer, with `share` of the weights zero."""
    kept = round(1000 * (1 - share))
    found: dict[str, Any] = {
        name: {
            "layers": list(range(layers)),
            "weights": [1000] * layers,
            "nonzero": [kept + 10 * n for n in range(layers)],
        }
        for name in GROUPS
    }
    head = {"layers": [None], "weights": [5000], "nonzero": [5 * kept]}
    return found | {"lm_head": head, "other": {"layers": [None], "weights": [60], "nonzero": [60]}}


def trained(steps: int = 60, start: float = 4.0) -> dict[str, Any]:
    """The metrics of a training."""
    losses = [[n, 0.5 + start * math.exp(-3 * n / steps)] for n in range(1, min(steps, 200) + 1)]
    validation = [[steps // 2, 2.0], [steps, 1.5]]
    return {
        "train_loss": losses[-1][1],
        "validation_loss": 1.5,
        "validation_losses": [2.0, 1.5],
        "train_losses": losses,
        "validation_curve": validation,
        "steps": steps,
        "samples_per_second": 100.0,
        "resumed": 0,
    }


def scores(
    quality: float, limits: Sequence[int] = (20, 40, 64), count: int = 200
) -> dict[str, Any]:
    """The metrics of an evaluation of summaries."""

    def at(share: float) -> dict[str, Any]:
        value = quality * share
        names = ("rouge1", "rouge2", "rougeL", "rougeLsum")
        intervals = {name: [value - 0.01, value + 0.02] for name in names}
        return {"count": count, **dict.fromkeys(names, value), "intervals": intervals,
                "gen_len": 30 * share, "cut_off": 1 - share}  # fmt: skip

    lengths = {str(limit): at((n + 1) / len(limits)) for n, limit in enumerate(limits)}
    return {**lengths[str(limits[-1])], "samples_per_second": 40.0, "lengths": lengths}


def timed(p50: float) -> dict[str, Any]:
    """The metrics of a benchmark of two cases."""
    cases = [
        {"batch_size": batch, "input_tokens": None, "output_tokens": None, "threads": 1,
         "p50_ms": p50 * batch**0.5, "p95_ms": 2 * p50 * batch**0.5, "p99_ms": 3 * p50 * batch**0.5,
         "batches": 3, "texts_per_second": 900 / p50, "tokens_per_second": 9000 / p50,
         "speedup": 100 / p50, "peak_bytes": 400_000_000, "joules_per_text": None}
        for batch in (1, 32)
    ]  # fmt: skip
    return {
        "cases": cases,
        "load_seconds": 1.0,
        "resident_bytes": 380_000_000,
        "threads": 1,
        "latency_p50_ms": p50,
        "latency_p95_ms": 2 * p50,
        "latency_p99_ms": 3 * p50,
        "speedup": 100 / p50,
        "texts_per_second": 900 / p50,
        "tokens_per_second": 9000 / p50,
    }


def usual() -> list[dict[str, Any]]:
    """A run with everything: training, sensitivity, pruning, int8, reports, an export."""
    pruned = {"nonzero": 400, "nonzero_ratio": 0.4}
    curve = {
        "weights": 2_000_000,
        "left": 2_000_000,
        "points": [{"amount": a, "loss": 1.5 + a} for a in (0.1, 0.5, 0.9)],
    }
    sensitive = {"loss": 1.5, "rows": 64, "groups": dict.fromkeys(GROUPS, curve)}
    exported = {
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
    kept = {"retention": 0.1, "closeness": 0.19}
    return [
        record("load", "load", None, groups=groups(0)),
        record("base", "finetune", "load", groups=groups(0), metrics=trained()),
        record("sensitivity", "sensitivity", "base", metrics=sensitive),
        record("prune", "prune", "base", **pruned, groups=groups(0.6)),
        record("recover", "finetune", "prune", **pruned, groups=groups(0.6), metrics=trained(40)),
        record("quantize", "quantize", "recover", **pruned, bytes=1100, groups=groups(0.6)),
        record("evaluate@base", "evaluate", "base", metrics=scores(0.9)),
        record("evaluate@prune", "evaluate", "prune", metrics=scores(0.09) | kept),
        record("evaluate@quantize", "evaluate", "quantize", bytes=1100, metrics=scores(0.85)),
        record("benchmark@base", "benchmark", "base", metrics=timed(80.0), key="key-benchmark"),
        record("benchmark@quantize", "benchmark", "quantize", metrics=timed(50.0), bytes=1100,
               key="key-benchmark", seconds=0.0, made_in_seconds=0.0),
        record("export", "export", "recover", **pruned, metrics=exported),
    ]  # fmt: skip


def texts(count: int, seed: int, words: int = 25) -> list[str]:
    """Sentences of random words, the same for the same seed."""
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=words)) + "." for _ in range(count)]


def predicted(
    folder: Path,
    number: int,
    stage: str,
    written: Sequence[str],
    row_scores: Sequence[float] | None,
    *,
    sources: Sequence[str],
    references: Sequence[str],
) -> None:
    """What an evaluation leaves in the store, at two limits: the shorter one is never shown."""
    place = folder / "stages" / f"{number:02d}-{stage}"
    place.mkdir(parents=True)
    rows = [
        Prediction(n, limit, sources[n], references[n], text if limit == 64 else "short", 9, False)
        for limit in (20, 64)
        for n, text in enumerate(written)
    ]
    write_predictions(place / "predictions.csv", rows)
    if row_scores is not None:
        write_json(place / "row_scores.json", {"max_length": 64, "rougeLsum": list(row_scores)})


def made(
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
    records = usual() if records is None else records
    about = {
        "name": "demo",
        "description": "A run made by hand.",
        "pipeline": ["load", "evaluate"],
        "stages": {"evaluate": {"against": "base"}, "prune": {"amounts": {"lm_head": 0.6}}},
        "model": {"source": "google-t5/t5-small"},
        "data": {"source": "bills", "task": "summarization", "max_source_length": 64,
                 "max_target_length": 32, "prefix": "summarize: "},
    }  # fmt: skip
    values = {**about, **(recipe or {})}
    text = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    machine = {"system": "Linux", "processor": "AMD EPYC", "threads": 1, "device": "cpu"}
    plain = {
        "started": "2026-03-01T12:00:00+00:00",
        "python": "3.11.7",
        "machine": machine,
        "gpus": [],
        "packages": {"compressor": "0.1.0"},
        "command": ["compressor", "run", "demo"],
    }
    write_json(folder / "environment.json", {**plain, **(environment or {})})
    nodes = [{k: r[k] for k in ("name", "stage", "label", "model")} for r in records]
    write_json(
        folder / "asked.json", {"parent": None, "changed": [], "nodes": nodes, **(asked or {})}
    )
    # With NaN where there is one, which earlier versions wrote.
    (folder / "metrics.json").write_text(json.dumps(list(records)))
    sources = source or texts(rows, 1, 60)
    references = texts(len(sources), 2)
    for number, each in enumerate(records):
        if each["stage"] == "evaluate":
            chance = random.Random(number)
            own = [round(chance.random(), 3) for _ in sources]
            written = texts(len(sources), 10 + number)
            predicted(folder, number, each["name"], written, own, sources=sources,
                      references=references)  # fmt: skip
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
