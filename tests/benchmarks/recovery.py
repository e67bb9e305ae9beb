"""Ways to recover a real T5 after a one-shot prune, for the same steps: loss and rougeLsum.

    make bench NAME=recovery ARGS="--model DIR"
    .venv/bin/python -m tests.benchmarks.recovery --model DIR --data DIR --outputs DIR

DIR of the model: a T5 fine-tuned on the data, a Hugging Face directory, and the teacher; of
the data: `train.jsonl` and `validation.jsonl` with `text` and `summary`. SparseGPT takes 0.645 of
each group (on the T5 of 77 M, whose embedding stays, 0.493 is non-zero); then each variant trains.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.common import SHARED, run_recipe, write

PRUNED = 0.645
TAUGHT = {"stage": "distill", "teacher": "load", "temperature": 1.0, "dropout": False}
VARIANTS: dict[str, dict[str, Any]] = {
    "labels": {"stage": "finetune"},
    "labels_still": {"stage": "finetune", "dropout": False},
    "half_half": {
        "stage": "distill", "teacher": "load",
        "losses": {"labels": 0.5, "logits": 0.5}, "temperature": 2.0,
    },
    "logits": {**TAUGHT, "losses": {"labels": 0.0, "logits": 1.0}},
    "features": {**TAUGHT, "losses": {"labels": 0.0, "logits": 1.0, "features": 1.0}},
    "lora": {
        "stage": "finetune", "dropout": False, "lora": {"rank": 16}, "learning_rate": 2e-3
    },
}  # fmt: skip
"""Name → the stage that recovers."""


def make_recipe(given: argparse.Namespace) -> dict[str, Any]:
    """Write all variants into one recipe, since they start from one pruned model."""
    parts = {"self_attention": PRUNED, "feed_forward": PRUNED}
    amounts = {"encoder": parts, "decoder": {**parts, "cross_attention": PRUNED}, "lm_head": PRUNED}
    prune = {"importance": "sparsegpt", "calibration_rows": 48, "amounts": amounts}
    stages: dict[str, Any] = {"load": {}, "prune": prune}
    for name in given.variants:
        stages[name] = {**VARIANTS[name], "model": "prune"}
    models = ["load", "prune", *given.variants]
    stages["evaluate"] = {"models": models, "against": "load", "max_length": [48]}
    files = {split: f"{given.data}/{split}.jsonl" for split in ("train", "validation")}
    limits = {"max_source_length": given.tokens, "max_target_length": 48}
    return {
        "defaults": ["/base", {"/model": "headline"}, {"/data": "files"}, "_self_"],
        "pipeline": list(stages),
        "model": {"source": str(given.model)},
        "data": {
            "prefix": "summarize: ", "files": files, **limits,
            "rows": {"validation": 100, "test": given.rows},
        },
        "training": {
            "max_steps": given.steps, "learning_rate": 5e-4, "precision": "bf16",
            "warmup_steps": 3,
        },
        "stages": stages,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED / "data/scitldr")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/bench/recovery"))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    given.outputs.mkdir(parents=True, exist_ok=True)
    recipe = given.outputs / "recovery.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(given), sort_keys=False), encoding="utf-8")
    run, records = run_recipe(given.outputs, recipe.name, "outputs=outputs")
    by_name = {record["name"]: record["metrics"] for record in records}
    rows = {
        name: {
            "rougeLsum": by_name[f"evaluate@{name}"]["rougeLsum"],
            "validation_loss": by_name[name].get("validation_loss"),
        }
        for name in ("load", "prune", *given.variants)
    }
    write("recovery", run=str(run), steps=given.steps, scored=given.rows, models=rows)


if __name__ == "__main__":
    main()
