"""Packed files against dense ones: bytes, and seconds to load in a fresh process; no quality.

    make bench NAME=packed

Homework v6's masks (0.2989 non-zero) on T5-small's shape with fresh weights, through the real
recipe. Each format is loaded `TIMES` times, in turn, each time in a process of its own that has
imported everything; the dense one by plain `from_pretrained`. Medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.report import write

TIMES = 5
SETTINGS = {
    "huggingface": "format: huggingface, parity: null",
    "float32": "format: packed, weights: float32, parity: null",
    "bfloat16": "format: packed, weights: bfloat16, parity: null",
    "int8": "format: packed, weights: int8, parity: null",
}
CHAIN = ["load", *(f"{kind}_{n}" for n in range(1, 7) for kind in ("prune", "recover"))]
LOAD = """
import sys, time
import compressor, compressor.backends.packed, transformers.models.t5.modeling_t5
from transformers import AutoModelForSeq2SeqLM
plain = sys.argv[2] == "huggingface"
load = AutoModelForSeq2SeqLM.from_pretrained if plain else compressor.load_model
start = time.perf_counter()
model = load(sys.argv[1])
seconds = time.perf_counter() - start
assert next(model.parameters()).dtype.itemsize == 4 and not model.training
print(seconds)
"""


def exported(folder: Path) -> dict[str, tuple[Path, dict[str, float]]]:
    """Format → the directory that the recipe wrote, and the stage's metrics."""
    stages = "".join(f"  {name}: {{stage: export, {text}}}\n" for name, text in SETTINGS.items())
    pipeline = f"pipeline: [{', '.join([*CHAIN, *SETTINGS])}]\n"
    recipe = folder / "v6.yaml"
    recipe.write_text(f"defaults: [/homework/v6, _self_]\n{pipeline}stages:\n{stages}")
    groups = ("model=t5_small_fresh", "training=none", "skip=[finetune,evaluate,benchmark]")
    command = [sys.executable, "-m", "compressor", "run", "v6.yaml", *groups]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    (metrics,) = folder.glob("outputs/runs/v6/*/metrics.json")
    return {
        record["name"]: (next(metrics.parent.glob(f"stages/*-{record['name']}/model")), {
            "nonzero_ratio": record["nonzero_ratio"], **record["metrics"],
        })
        for record in json.loads(metrics.read_text())
        if record["name"] in SETTINGS
    }  # fmt: skip


def seconds(folder: Path, kind: str) -> float:
    command = [sys.executable, "-c", LOAD, str(folder), kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        found = exported(Path(temporary))
        took = [{kind: seconds(found[kind][0], kind) for kind in SETTINGS} for _ in range(TIMES)]
    dense = found["huggingface"][1]["bytes"]
    formats = {
        kind: {
            "bytes": metrics["bytes"],
            "smaller": round(dense / metrics["bytes"], 2),
            "load_seconds": round(statistics.median(turn[kind] for turn in took), 3),
            "logits_difference": metrics["logits_difference"],
            "nonzero_ratio": round(metrics["nonzero_ratio"], 4),
        }
        for kind, (_, metrics) in found.items()
    }
    ours, theirs = ("int8", "huggingface")
    write(
        "packed",
        {
            "ours": formats[ours]["bytes"] / 1e6,
            "theirs": formats[theirs]["bytes"] / 1e6,
            "ratio": formats[theirs]["bytes"] / formats[ours]["bytes"],
            "unit": "MB",
            "pairs": [[formats[ours]["bytes"] / 1e6, formats[theirs]["bytes"] / 1e6]],
            "formats": formats,
        },
    )


if __name__ == "__main__":
    main()
