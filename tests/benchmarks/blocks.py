"""SparseGPT layer by layer, against llm-compressor's sequential pipeline; and stages' memory.

    make bench NAME=blocks

Half of all weights in the layers of a Llama of 1 B's and of 3 B's shape go, with fresh weights, a
few layers of each, in float32, on the same rows and with two threads, each side in processes of its
own, in turn. Seconds a layer are those between the ends of two. The error is that of each layer's
output, of both models against the dense one, relative. llm-compressor gets an environment of its
own in `build/llmcompressor`. Then the peak of memory of stages on a Llama of 334 M parameters, over
what the process held before, in bytes of its weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from compressor.compression import sparsegpt
from compressor.compression.pruning import Grouping, Pruner
from compressor.data.bills import Bills
from compressor.data.examples import Examples
from compressor.engine import worker
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from compressor.stages.base import Inputs, stage_class
from tests.benchmarks.common import MIB, measure_apart, measure_rise, time_call, write
from tests.harness.stages import stage_context, tokenizer

SHAPES: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8},
    "3B": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
           "num_attention_heads": 24, "num_key_value_heads": 8},
    "334M": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16,
             "num_attention_heads": 16, "num_key_value_heads": 16},
}  # fmt: skip
VOCABULARY = 128_256
"""Of the real models; the shapes here have 1,000 tokens, since no embedding is pruned."""
THEIRS = Path("build/llmcompressor/bin/python")
ALL = {"groups": {"layers": ["model.layers.*_proj.weight"]}, "amounts": {"layers": 0.5}}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "load": ("load", {"source": "{}/source", "head": "causal_lm"}),
    "load bfloat16": ("load", {"source": "{}/half", "head": "causal_lm"}),
    "prune": ("prune", ALL),
    "prune wanda": ("prune", ALL | {"importance": "wanda", "calibration_rows": 2}),
    "prune sparsegpt": ("prune", ALL | {"importance": "sparsegpt", "calibration_rows": 2}),
    "prune taylor": ("prune", ALL | {"importance": "taylor", "calibration_rows": 2}),
    "shrink": ("shrink", {"decoder_layers": 12, "importance": "even"}),
    "slice": ("slice", {"feed_forward": 0.75}),
    "slice depth": ("slice", {"decoder": {"layers": 12}}),
    "quantize int8": ("quantize", {"weights": "int8"}),
    "quantize int4": ("quantize", {"weights": "int4"}),
    "quantize bfloat16": ("quantize", {"weights": "bfloat16"}),
    "export": ("export", {"parity": None}),
    "export packed": ("export", {"format": "packed", "parity": None}),
}


class OnlyPad:
    pad_token_id = eos_token_id = 0


def build(name: str, layers: int, vocabulary: int) -> Checkpoint:
    torch.manual_seed(0)
    values = SHAPES[name] | {"num_hidden_layers": layers, "vocab_size": vocabulary}
    config = AutoConfig.for_model("llama", **values, tie_word_embeddings=True, eos_token_id=0)
    return Checkpoint(build_model(config, "causal_lm").eval(), None, "causal_lm")


def prune_ours(folder: Path, origin: Any, threads: int, out: Path) -> dict[str, Any]:
    torch.set_num_threads(threads)
    checkpoint = Checkpoint.load(folder)
    checkpoint.tokenizer = OnlyPad()  # type: ignore[assignment]  # nothing else is read of it
    model = checkpoint.model
    weights = sum(float(p.detach().sum()) * 0 + p.nbytes for p in model.parameters())  # all read
    names = [name for name, _ in model.named_parameters() if "_proj" in name]
    ids = load_file(folder / "rows")["ids"].tolist()
    rows, ends = Examples([row[:1] for row in ids], [row[1:] for row in ids], "joined"), []
    prune = sparsegpt.prune_with_sparsegpt

    def timed(*arguments: Any) -> Any:
        result = prune(*arguments)
        ends.append((time.perf_counter(), time.process_time()))
        return result

    sparsegpt.prune_with_sparsegpt = timed
    pruner = Pruner(checkpoint, Grouping(importance="sparsegpt"), examples=rows, origin=origin)
    count = sum(checkpoint.get_parameter(n).numel() for n in names) // 2
    extra, (seconds, _) = measure_rise(lambda: time_call(lambda: pruner.prune_group(names, count)))
    save_file({name: checkpoint.get_parameter(name).detach() for name in names}, out)
    matrices = len(names) // model.config.num_hidden_layers
    masks = sum(mask.nbytes for mask in checkpoint.masks.values())
    return {
        "seconds": seconds, "ends": ends[matrices - 1 :: matrices],
        "extra_bytes": extra * MIB - masks, "weight_bytes": weights, "mask_bytes": masks,
    }  # fmt: skip


def prune_theirs(folder: Path, threads: int, out: Path) -> dict[str, Any]:
    script = Path(__file__).parent / "theirs" / "sparsegpt.py"
    command = [
        str(THEIRS),
        "-I",
        str(script),
        str(folder),
        str(folder / "rows"),
        str(threads),
        str(out),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout.split("RESULT ")[1])
    return result


@torch.no_grad()
def layer_outputs(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: outputs.append(out))
             for layer in model.model.layers]  # fmt: skip
    model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


def errors(folder: Path, pruned: Path) -> tuple[list[float], float]:
    """Give each layer's relative error on the first rows, and the share of zeros."""
    model = Checkpoint.load(folder).model
    ids = load_file(folder / "rows")["ids"][:2]
    dense = layer_outputs(model, ids)
    state = load_file(pruned)
    model.load_state_dict(state, strict=False)
    zeros = sum(int((w == 0).sum()) for w in state.values()) / sum(
        w.numel() for w in state.values()
    )
    pairs = zip(dense, layer_outputs(model, ids), strict=True)
    return [float((a - b).square().sum() / a.square().sum()) for a, b in pairs], zeros


def compare_shape(
    name: str, layers: int, rows: int, length: int, threads: int, folder: Path
) -> dict[str, Any]:
    """Prune a few layers of a shape on both sides; ours also with dense inputs."""
    build(name, layers, 1000).save(folder)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 1000, (rows, length), generator=generator)
    save_file({"ids": ids}, folder / "rows")
    runs = {
        "ours": lambda out: measure_apart(prune_ours, folder, "pruned", threads, out),
        "theirs": lambda out: prune_theirs(folder, threads, out),
        "ours, dense inputs": lambda out: measure_apart(prune_ours, folder, "dense", threads, out),
    }
    result: dict[str, Any] = {}
    for side, run in runs.items():
        measured: dict[str, Any] = run(folder / side)
        ends = measured.pop("ends")
        times = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ends)][: layers - 1]
        seconds, cpu_seconds = (statistics.median(values) for values in zip(*times, strict=True))
        error, zeros = errors(folder, folder / side)
        result[side] = measured | {
            "seconds_a_layer": seconds, "cpu_seconds_a_layer": cpu_seconds,
            "errors": error, "zeros": zeros,
        }  # fmt: skip
        print(name, side, result[side], flush=True)
    ours, whole = result["ours"], SHAPES[name]["num_hidden_layers"]
    embedding = 4 * VOCABULARY * SHAPES[name]["hidden_size"]
    layer = (ours["weight_bytes"] - 4 * 1000 * SHAPES[name]["hidden_size"]) / layers
    result |= {
        "ratio": result["theirs"]["seconds_a_layer"] / ours["seconds_a_layer"],
        "cpu_ratio": result["theirs"]["cpu_seconds_a_layer"] / ours["cpu_seconds_a_layer"],
        "unit": "s a layer",
        "whole_model_gib": (
            whole * (layer + ours["mask_bytes"] / layers) + embedding + ours["extra_bytes"]
        ) / 2**30,
    }  # fmt: skip
    return result


def save_sources(folder: Path) -> None:
    checkpoint = build("334M", 16, 32_000)
    checkpoint.tokenizer = tokenizer()
    checkpoint.save(folder / "stored")
    for name, dtype in (("source", torch.float32), ("half", torch.bfloat16)):
        checkpoint.model.to(dtype).save_pretrained(folder / name, max_shard_size="400MB")
        checkpoint.tokenizer.save_pretrained(folder / name)


def measure_stage(folder: Path, name: str) -> dict[str, float]:
    """Run a stage as the engine does; its peak over what the process held before."""
    torch.set_num_threads(2)
    kind, settings = STAGES[name]
    values = {k: v.format(folder) if isinstance(v, str) else v for k, v in settings.items()}
    stage = stage_class(kind).model_validate(values)
    data = Bills(source="bills", max_source_length=256, max_target_length=64)
    weights = (folder / "stored" / "model.safetensors").stat().st_size
    with tempfile.TemporaryDirectory(dir=folder) as out:
        context = stage_context(Path(out) / "out", data)
        inputs = Inputs(folder / "stored")
        peak, (seconds, _) = measure_rise(
            lambda: time_call(lambda: worker.run_stage(stage, inputs, context))
        )
        return {"peak": peak * MIB / weights, "seconds": seconds}


def install_theirs() -> None:
    if not THEIRS.exists():
        subprocess.run([sys.executable, "-m", "venv", THEIRS.parents[1]], check=True)
        torch_version = f"torch=={torch.__version__.split('+')[0]}"
        pip = [str(THEIRS), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, "llmcompressor==0.14.0.1", torch_version], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="*", default=["1B", "3B"])
    parser.add_argument("--stages", nargs="*", default=list(STAGES))
    given = parser.parse_args()
    install_theirs()
    path = Path("outputs/bench/blocks.json")
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in given.shapes:
        with tempfile.TemporaryDirectory() as made:
            sizes = given.layers, given.rows, given.length, given.threads
            shape = compare_shape(name, *sizes, Path(made))
        about = {"tokens": given.rows * given.length, "threads": given.threads}
        result[name] = {**about, "layers": given.layers, **shape}
        write("blocks", **result)
    if given.stages:
        with tempfile.TemporaryDirectory() as made:
            save_sources(Path(made))
            peaks = {name: measure_apart(measure_stage, Path(made), name) for name in given.stages}
        result["stages"] = result.get("stages", {}) | peaks
        write("blocks", **result)


if __name__ == "__main__":
    main()
