"""T5-small's shape in every backend: 4 texts of 256 tokens in, 64 out, 2 threads, in turn.

Also with half of its layers: how large each file is. Fresh weights: the time does not depend on
what they are, and exports are not checked against their source here, but in the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.report import write

EXPORTS = {
    "ctranslate2_int8": "format: ctranslate2, weights: int8",
    "ctranslate2_float32": "format: ctranslate2, weights: float32",
    "onnx_int8": "format: onnx, weights: int8",
    "onnx_float32": "format: onnx, weights: float32",
}
MODELS = {"": "torch_float32", "half_": "half"}
"""What stands before an export's name → the model that is exported."""
RECIPE = """
defaults: [/base, /model: t5_small_fresh, /data: bills, _self_]
name: backends
pipeline: [torch_float32, torch_int8, {names}, benchmark, half, {halves}]
stages:
  torch_float32: {{stage: load}}
  torch_int8: {{stage: quantize}}
  half: {{stage: shrink, model: torch_float32, encoder_layers: 0.5, decoder_layers: 0.5}}
  benchmark:
    models: [torch_float32, torch_int8, {names}]
    batch_sizes: [4]
    input_lengths: [256]
    output_lengths: [64]
    threads: [2]
    texts: 28
"""


def recipe() -> str:
    exports = [
        f"  {prefix}{name}: {{stage: export, model: {model}, {text}, parity: null}}\n"
        for prefix, model in MODELS.items()
        for name, text in EXPORTS.items()
    ]
    halves = ", ".join(f"half_{name}" for name in EXPORTS)
    return RECIPE.format(names=", ".join(EXPORTS), halves=halves) + "".join(exports)


def records(folder: Path) -> list[dict[str, Any]]:
    """Run the recipe in a folder of its own."""
    (folder / "backends.yaml").write_text(recipe(), encoding="utf-8")
    command = [sys.executable, "-m", "compressor", "run", "backends.yaml"]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)
    (metrics,) = folder.glob("outputs/runs/backends/*/metrics.json")
    found: list[dict[str, Any]] = json.loads(metrics.read_text(encoding="utf-8"))
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        found = records(Path(temporary))
    timed = {r["model"]: r["metrics"] for r in found if r["stage"] == "benchmark"}
    sizes = {r["name"]: r["metrics"]["bytes"] / 1e6 for r in found if r["stage"] == "export"}
    result = {
        name: {
            "seconds": round(metrics["cases"][0]["p50_ms"] / 1000, 3),
            "faster": round(metrics["speedup"], 2),
            "tokens_per_second": round(metrics["tokens_per_second"], 1),
            "resident_mb": round(metrics["resident_bytes"] / 1e6),
            "load_seconds": round(metrics["load_seconds"], 2),
            "mb": round(sizes[name], 2) if name in sizes else None,
        }
        for name, metrics in timed.items()
    }
    halves = {name: round(size, 2) for name, size in sizes.items() if name.startswith("half_")}
    write("backends", {"models": result, "half the layers, MB": halves})


if __name__ == "__main__":
    main()
