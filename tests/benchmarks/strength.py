"""How much of a model is left after pruning: the default way against others, after recovery.

    make bench NAME=strength ARGS="--model DIR"
    .venv/bin/python -m tests.benchmarks.strength --model DIR --data DIR --outputs DIR

DIR of the model: a T5, a Hugging Face directory; of the data: `train.jsonl` and `validation.jsonl`
with `text` and `summary`. A base is trained for 120 steps (with `--base-steps 0` the model is the
base), each variant pruned from it and trained for 48 more, and all are scored on the same rows:
retention is a variant's rougeLsum as a share of the base's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

from tests.benchmarks.common import SHARED, run_recipe, write

HALF, THIRD = {"target": {"nonzero_ratio": 0.5}}, {"target": {"nonzero_ratio": 0.3}}
UNIFORM = {"allocation": "uniform", "importance": "sparsegpt"}
VARIANTS: dict[str, dict[str, Any]] = {
    "half": HALF,
    "half_uniform": HALF | UNIFORM,
    "half_magnitude": HALF | UNIFORM | {"importance": "magnitude"},
    "third": THIRD,
    "third_uniform": THIRD | UNIFORM,
}
"""Name → settings of `prune`; `half` and `third` are the default way."""
DATA = {"prefix": "summarize: ", "max_source_length": 256, "max_target_length": 64}
TRAINING = {"batch_size": 8, "learning_rate": 5e-4, "precision": "bf16"}


def make_recipe(given: argparse.Namespace) -> dict[str, Any]:
    """Write all variants into one recipe, which share the base."""
    training = {"stage": "finetune", "epochs": 1}
    base = {**training, "max_steps": given.base_steps}
    stages: dict[str, Any] = {"load": {}} | ({"base": base} if given.base_steps else {})
    original = list(stages)[-1]
    for name in given.variants:
        stages[f"{name}_prune"] = {"stage": "prune", "model": original, **VARIANTS[name]}
        stages[name] = {**training, "max_steps": given.steps, "model": f"{name}_prune"}
    models = [original, *given.variants]
    stages["evaluate"] = {"models": models, "against": original, "max_length": [48]}
    files = {split: f"{given.data}/{split}.jsonl" for split in ("train", "validation")}
    return {
        "defaults": ["/base", {"/model": "headline"}, {"/data": "files"}, "_self_"],
        "pipeline": list(stages),
        "model": {"source": str(given.model)},
        "data": {**DATA, "files": files, "rows": {"validation": 64, "test": given.rows}},
        "training": TRAINING,
        "stages": stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=SHARED / "data/scitldr")
    parser.add_argument("--outputs", type=Path, default=Path("outputs/bench/strength"))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--base-steps", type=int, default=120)
    parser.add_argument("--steps", type=int, default=48)
    given = parser.parse_args()
    given.outputs.mkdir(parents=True, exist_ok=True)
    recipe = given.outputs / "strength.yaml"
    recipe.write_text(yaml.safe_dump(make_recipe(given), sort_keys=False), encoding="utf-8")
    run, records = run_recipe(given.outputs, recipe.name, "outputs=outputs")
    scores, nonzero, losses = {}, {}, {}
    for record in records:
        name = record["name"].removeprefix("evaluate@")
        if record["name"] != name:
            scores[name] = record["metrics"]["rougeLsum"]
        elif name in given.variants:
            nonzero[name], losses[name] = record["nonzero_ratio"], record["metrics"]
    original = scores["base" if given.base_steps else "load"]
    rows = {
        name: {
            "rougeLsum": score,
            "of_base": score / original,
            "nonzero_ratio": nonzero.get(name, 1.0),
            "validation_loss": losses.get(name, {}).get("validation_loss"),
        }
        for name, score in scores.items()
    }
    write("strength", run=str(run), steps=given.steps, scored=given.rows, models=rows)


if __name__ == "__main__":
    main()
