"""Packed files against dense ones: bytes, and seconds to load in a fresh process; no quality.

    make bench NAME=packed

Homework v6's masks (0.2989 non-zero) on T5-small's shape with fresh weights, through the real
recipe. Each format is loaded `TIMES` times, in turn, each time in a process of its own that has
imported everything; the dense one by plain `from_pretrained`. Medians.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from tests.benchmarks.common import compare, measure_apart, run_recipe, time_call, write

TIMES = 5
SETTINGS = {
    "huggingface": "format: huggingface, parity: null",
    "float32": "format: packed, weights: float32, parity: null",
    "bfloat16": "format: packed, weights: bfloat16, parity: null",
    "int8": "format: packed, weights: int8, parity: null",
}
CHAIN = ["load", *(f"{kind}_{n}" for n in range(1, 7) for kind in ("prune", "recover"))]


def exported(folder: Path) -> dict[str, tuple[Path, dict[str, float]]]:
    """Format → the directory that the recipe wrote, and the stage's metrics."""
    stages = "".join(f"  {name}: {{stage: export, {text}}}\n" for name, text in SETTINGS.items())
    pipeline = f"pipeline: [{', '.join([*CHAIN, *SETTINGS])}]\n"
    recipe = folder / "v6.yaml"
    recipe.write_text(f"defaults: [/homework/v6, _self_]\n{pipeline}stages:\n{stages}")
    groups = ("model=t5_small_fresh", "training=none", "skip=[finetune,evaluate,benchmark]")
    run, records = run_recipe(folder, "v6.yaml", *groups)
    return {
        record["name"]: (
            next(run.glob(f"stages/*-{record['name']}/model")),
            {"nonzero_ratio": record["nonzero_ratio"], **record["metrics"]},
        )
        for record in records
        if record["name"] in SETTINGS
    }


def seconds(folder: Path, kind: str) -> float:
    import transformers.models.t5.modeling_t5  # noqa: F401  # what it takes is not measured
    from transformers import AutoModelForSeq2SeqLM

    import compressor.backends.packed

    load = compressor.load_model
    if kind == "huggingface":
        load = AutoModelForSeq2SeqLM.from_pretrained
    taken, model = time_call(lambda: load(folder))
    assert next(model.parameters()).dtype.itemsize == 4 and not model.training
    return taken


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        models = exported(Path(temporary))
        took = [
            {kind: measure_apart(seconds, models[kind][0], kind) for kind in SETTINGS}
            for _ in range(TIMES)
        ]
    dense = models["huggingface"][1]["bytes"]
    formats = {
        kind: {
            "bytes": metrics["bytes"],
            "smaller": round(dense / metrics["bytes"], 2),
            "load_seconds": round(statistics.median(turn[kind] for turn in took), 3),
            "logits_difference": metrics["logits_difference"],
            "nonzero_ratio": round(metrics["nonzero_ratio"], 4),
        }
        for kind, (_, metrics) in models.items()
    }
    ours, theirs = (formats[kind]["bytes"] / 1e6 for kind in ("int8", "huggingface"))
    write("packed", **compare([ours], [theirs], "MB"), formats=formats)


if __name__ == "__main__":
    main()
