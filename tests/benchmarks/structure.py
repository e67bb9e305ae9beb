"""Width and depth against latency, bytes and quality: which of them to take from a real T5.

    make bench NAME=structure ARGS="--model DIR"
    .venv/bin/python -m tests.benchmarks.structure --model DIR --data DIR --outputs DIR

DIR of the model: a T5 fine-tuned on the data, a Hugging Face directory; of the data: `train.jsonl`
and `validation.jsonl` with `text` and `summary`. Each variant loses layers, then heads and neurons,
by `shrink` and the default of `slice`, and recovers for 48 steps of `finetune`; what is scored and
timed is its CTranslate2 int8 export, the original's too. One text at a time, 2 threads, all models
in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.common import SHARED, run_recipe, write

VARIANTS: dict[str, dict[str, Any]] = {
    "width": {"slice": {"heads": 0.5, "feed_forward": 0.5}},
    "decoder": {"shrink": {"decoder_layers": 0.5, "importance": "loss"}},
    "decoder_even": {"shrink": {"decoder_layers": 0.5}},
    "decoder_quarter": {"shrink": {"decoder_layers": 0.25}},
    "decoder_width": {
        "shrink": {"decoder_layers": 0.5},
        "slice": {"heads": 0.5, "feed_forward": 0.5},
    },
    "both": {"shrink": {"encoder_layers": 0.5, "decoder_layers": 0.5}},
}
"""Name → the stages that make the model smaller, each with its settings."""
DATA = {"prefix": "summarize: ", "max_source_length": 256, "max_target_length": 64}


def make_recipe(given: argparse.Namespace) -> dict[str, Any]:
    """Write the chains of all variants into one recipe, as they share their beginning."""
    ct2 = {"stage": "export", "format": "ctranslate2", "parity": None}
    stages: dict[str, Any] = {"load": {}, "original": {**ct2, "model": "load"}}
    for name in given.variants:
        model = "load"
        for kind, settings in VARIANTS[name].items():
            model, before = f"{name}_{kind}", model
            stages[model] = {"stage": kind, "model": before, **settings}
        stages[f"{name}_recover"] = {"stage": "finetune", "model": model, "epochs": 1}
        stages[name] = {**ct2, "model": f"{name}_recover"}
    exports = ["original", *given.variants]
    stages["evaluate"] = {"models": exports, "against": "original", "max_length": [48]}
    timing = {"max_length": 48, "batch_sizes": [1], "threads": [2], "texts": given.texts}
    stages["benchmark"] = {"models": exports, **timing}
    files = {split: f"{given.data}/{split}.jsonl" for split in ("train", "validation")}
    rows = {"validation": 32, "test": given.rows}
    return {
        "defaults": ["/base", {"/model": "headline"}, {"/data": "files"}, "_self_"],
        "pipeline": list(stages),
        "model": {"source": str(given.model)},
        "data": {**DATA, "files": files, "rows": rows},
        "training": {
            "max_steps": given.steps, "batch_size": 8, "learning_rate": 5e-4, "warmup_steps": 5,
            "precision": "bf16",
        },
        "stages": stages,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED / "data/scitldr")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/bench/structure"))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--texts", type=int, default=24)
    given = parser.parse_args()
    given.outputs.mkdir(parents=True, exist_ok=True)
    recipe = given.outputs / "structure.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(given), sort_keys=False), encoding="utf-8")
    run, records = run_recipe(given.outputs, recipe.name, "outputs=outputs")
    by_name = {record["name"]: record for record in records}
    original = by_name["evaluate@original"]["metrics"]["rougeLsum"]
    rows = {}
    for name in ("original", *given.variants):
        times = by_name[f"benchmark@{name}"]["metrics"]
        score = by_name[f"evaluate@{name}"]["metrics"]["rougeLsum"]
        rows[name] = {
            "rougeLsum": score,
            "of_original": score / original,
            "bytes": by_name[name]["bytes"],
            "latency_p50_ms": times["latency_p50_ms"],
            "speedup": times["speedup"],
        }
    write("structure", run=str(run), steps=given.steps, scored=given.rows, models=rows)


if __name__ == "__main__":
    main()
