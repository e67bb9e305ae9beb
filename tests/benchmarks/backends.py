"""T5-small's shape in every backend: 4 texts of 256 tokens in, 64 out, 2 threads, in turn.

Also with half of its layers: how large each file is. Fresh weights: the time does not depend on
what they are, and exports are not checked against their source here, but in the tests.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.benchmarks.common import run_recipe, write

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


def make_recipe() -> str:
    exports = [
        f"  {prefix}{name}: {{stage: export, model: {model}, {text}, parity: null}}\n"
        for prefix, model in MODELS.items()
        for name, text in EXPORTS.items()
    ]
    halves = ", ".join(f"half_{name}" for name in EXPORTS)
    return RECIPE.format(names=", ".join(EXPORTS), halves=halves) + "".join(exports)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "backends.yaml").write_text(make_recipe(), encoding="utf-8")
        _, records = run_recipe(Path(temporary), "backends.yaml")
    timed = {r["model"]: r["metrics"] for r in records if r["stage"] == "benchmark"}
    sizes = {r["name"]: r["metrics"]["bytes"] / 1e6 for r in records if r["stage"] == "export"}
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
    write("backends", **{"models": result, "half the layers, MB": halves})


if __name__ == "__main__":
    main()
