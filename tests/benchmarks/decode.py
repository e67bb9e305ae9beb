"""Prefill and decode of a decoder: torch beside a plain loop, and each backend that is installed.

    make bench NAME=decode

A Llama of 26 M parameters with fresh weights, 4 prompts of 256 tokens, 32 new ones, 1 thread. The
plain loop reads the prompts with `past_key_values`, then a token at a time. It and `benchmark`'s
own process are asked in turn; it fails where their times are more than a tenth apart.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from compressor.backends.formats import TextSettings
from compressor.data.bills import Bills
from compressor.data.source_base import SplitRows
from compressor.evaluation.timing import Reader
from tests.benchmarks.common import run_recipe, write

THREADS, ROWS, READ, WRITTEN, ROUNDS, APART = 1, 4, 256, 32, 7, 0.1
EXPORTS = {
    "ct2": "format: ctranslate2, weights: float32",
    "ct2_int8": "format: ctranslate2, weights: int8",
    "onnx": "format: onnx, weights: float32",
    "onnx_int8": "format: onnx, weights: int8",
}
if find_spec("llama_cpp") is not None:
    EXPORTS |= {
        "gguf": "format: gguf, weights: float32",
        "gguf_int8": "format: gguf, weights: int8",
    }
NAMES = ", ".join(["torch", *EXPORTS])
STAGES = "\n".join(
    f"  {name}: {{stage: export, model: torch, {values}, parity: null}}"
    for name, values in EXPORTS.items()
)
RECIPE = f"""
defaults: [/base, /data: bills, _self_]
name: decode
pipeline: [{NAMES}, benchmark]
model:
  head: causal_lm
  config: {{model_type: llama, vocab_size: 1000, hidden_size: 512, num_hidden_layers: 8,
           num_attention_heads: 8, num_key_value_heads: 4, intermediate_size: 1536,
           max_position_embeddings: 512}}
  tokenizer: {{vocab_size: 1000}}
data: {{task: language_modeling, rows: {{train: 200, validation: 8, test: 64}},
       max_source_length: 256, max_target_length: 32, prefix: ""}}
stages:
  torch: {{stage: load}}
{STAGES}
  benchmark: {{models: [{NAMES}], batch_sizes: [{ROWS}],
              input_lengths: [{READ}], output_lengths: [{WRITTEN}],
              threads: [{THREADS}], texts: 12}}
"""
SHOWN = ("first_token_ms", "prefill_tokens_per_second", "decode_tokens_per_second", "speedup")


@torch.inference_mode()
def loop_plainly(model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds to the first tokens, and of those after them."""
    begun = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    token = output.logits[:, -1].argmax(-1, keepdim=True)
    first = time.perf_counter() - begun
    for _ in range(WRITTEN - 1):
        output = model(token, past_key_values=output.past_key_values, use_cache=True)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
    return first, time.perf_counter() - begun - first


def compare_times(folder: Path, log: Path) -> dict[str, dict[str, float]]:
    """Ask `benchmark`'s process and the plain loop in turn: median seconds of prefill, decode."""
    data = Bills(
        source="bills", rows=SplitRows(test=64), task="language_modeling", prefix="",
        max_source_length=READ, max_target_length=WRITTEN,
    )  # fmt: skip
    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.randint(3, 1000, (ROWS, READ), generator=torch.Generator().manual_seed(0))
    about = TextSettings.of(data, head="causal_lm", model_type="")
    ours, theirs = [], []
    request = {"do": "read", "batch_size": ROWS, "input_tokens": READ, "start": 0}
    with Reader(folder, data.load("test").texts, about, threads=THREADS, log=log) as reader:
        reader.read_answer()
        for turn in range(-2, ROUNDS):
            first, whole = (
                reader.ask(**request, max_length=new, min_length=new)["seconds"]
                for new in (1, WRITTEN)
            )
            plain = loop_plainly(model, ids)
            if turn >= 0:
                ours.append((first, whole - first))
                theirs.append(plain)
    phases = ("prefill", "decode")
    return {
        phase: {
            "ours": statistics.median(a), "theirs": statistics.median(b),
            "ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
        }
        for phase, a, b in zip(phases, zip(*ours, strict=True), zip(*theirs, strict=True),
                               strict=True)
    }  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "decode.yaml").write_text(RECIPE, encoding="utf-8")
        run, records = run_recipe(Path(temporary), "decode.yaml")
        loaded = next((run / "stages").glob("*torch"))
        compared = compare_times(loaded, Path(temporary) / "log")
    timed = {r["model"]: r["metrics"]["cases"][0] for r in records if r["stage"] == "benchmark"}
    models = {name: {key: round(case[key], 2) for key in SHOWN} for name, case in timed.items()}
    write("decode", models=models, **{"beside a plain loop": compared})
    if any(abs(phase["ratio"] - 1) > APART for phase in compared.values()):
        sys.exit(f"the times of a plain loop are more than {APART:.0%} apart")


if __name__ == "__main__":
    main()
