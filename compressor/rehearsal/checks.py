"""What is looked at in what a rehearsed stage left, beyond that it did not fail."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.data.sources import Data
from compressor.errors import StageError
from compressor.files import MANIFEST
from compressor.plan import Node

_LOSSES = ("loss", "train_loss", "validation_loss", "validation_losses", "baseline_loss")
_TOKENS = 8


def look_at(node: Node, folder: Path, data: Data) -> Iterator[str]:
    """What was checked of a stage's artifact, in words. Raises StageError where it is wrong."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    metrics = manifest["metrics"]
    yield from _losses(metrics)
    yield from _masks(node, folder)
    yield from _reports(node, metrics)
    if node.kind == "quantize":
        yield _quantized(folder, data)
    if "parity" in metrics:
        yield _export(metrics)


def _losses(metrics: Mapping[str, Any]) -> Iterator[str]:
    found = {name: metrics[name] for name in _LOSSES if metrics.get(name) is not None}
    for name, values in found.items():
        for value in values if isinstance(values, list) else [values]:
            if not math.isfinite(value):
                raise StageError(f"{name} is {value}")
    if "steps" in metrics and metrics.get("train_loss") is not None:
        yield f"{metrics['steps']} steps, losses finite"
    elif found:
        yield "loss finite"


def _masks(node: Node, folder: Path) -> Iterator[str]:
    """Where a plan knows how many entries are pruned, so many are, and they are zero."""
    path = folder / "masks.safetensors"
    if not node.stage.changes_model or not path.is_file() or node.facts is None:
        return
    from safetensors.torch import load_file

    from compressor.checkpoint import Checkpoint

    masks, checkpoint = load_file(path), Checkpoint.load(folder)
    gone = sum(int((~mask).count_nonzero()) for mask in masks.values())
    alive = sum(
        int(checkpoint.parameter(name)[~mask].count_nonzero()) for name, mask in masks.items()
    )
    if alive:
        raise StageError(f"{alive} pruned entries are not zero")
    planned = sum(count for _, count in node.facts.masked)
    if node.facts.exact and gone != planned:
        raise StageError(f"{gone} entries are pruned, and the plan says {planned}")
    yield f"{gone:,} entries are zero" + (", as planned" if node.facts.exact else "")


def _reports(node: Node, metrics: Mapping[str, Any]) -> Iterator[str]:
    if node.kind == "evaluate" and "lengths" in metrics:
        yield f"decoded and scored at max_length {', '.join(metrics['lengths'])}"
    elif node.kind == "evaluate":
        yield "labels given and scored"
    elif node.kind == "benchmark":
        cases = {name: len(each["cases"]) for name, each in metrics["models"].items()}
        yield f"timed {', '.join(cases)}; {max(cases.values())} cases each"
    elif node.kind == "sensitivity":
        yield f"{len(metrics['groups'])} groups measured"


def _quantized(folder: Path, data: Data) -> str:
    """Load what was saved, and have it write, or give labels."""
    import torch

    from compressor.checkpoint import Checkpoint
    from compressor.data.examples import source_ids

    checkpoint = Checkpoint.load(folder)
    if checkpoint.tokenizer is None:
        return "saved and loaded again; it has no tokenizer, and read nothing"
    sources = source_ids(["The quick brown fox."], checkpoint.tokenizer, data)
    if checkpoint.head == "seq2seq_lm":
        from compressor.generation import decode

        written = decode(checkpoint.model, sources, max_length=_TOKENS, device="cpu").tokens[0]
        if not written:
            raise StageError("what was saved, once loaded again, writes no token")
        return f"saved, loaded again, wrote {len(written)} tokens"
    with torch.inference_mode():
        output = next(iter(checkpoint.model(input_ids=torch.tensor(sources)).values()))
    if not bool(output.isfinite().all()):
        raise StageError("what was saved, once loaded again, gives numbers that are not finite")
    return "saved, loaded again, read a text"


def _export(metrics: Mapping[str, Any]) -> str:
    parity = metrics["parity"]
    found = []
    if "equal_tokens" in parity:
        found.append(f"{parity['equal_tokens']:.0%} of tokens equal")
    if "equal_labels" in parity:
        found.append(f"{parity['equal_labels']:.0%} of labels equal")
    if "logits_difference" in parity:
        found.append(f"logits differ by {parity['logits_difference']:.1g}")
    rows = f"{parity['rows']} rows"
    return f"export {metrics['format']}: loaded in a fresh process, {rows}: {', '.join(found)}"
