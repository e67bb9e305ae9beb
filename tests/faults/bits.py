"""`python -m tests.faults.bits THREADS FOLDER`: what stages make of a pico model, as digests.

A JSON object: stage → [SHA-256 of its files, of its metrics without times].
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from compressor.runs.reproduction import _MEASURED, _leaves
from tests.faults import LONG
from tests.faults.stages import SUMMARIES, TEXTS, pico_t5, ran, rows_of_text

GROUP = {"amounts": {"encoder": {"feed_forward": 0.5}}, "calibration_rows": 4}
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {"epochs": 1, "learning_rate": 1e-3}),
    "distill": ("distill", {"epochs": 1, "teacher": "t", "losses": {"hidden": 1.0}}),
    "prune": ("prune", {"amounts": {"encoder": {"feed_forward": 0.5}}}),
    "prune random": ("prune", {**GROUP, "importance": "random"}),
    "prune taylor": ("prune", {**GROUP, "importance": "taylor"}),
    "prune wanda": ("prune", {**GROUP, "importance": "wanda"}),
    "prune sparsegpt": ("prune", {**GROUP, "importance": "sparsegpt"}),
    "prune N:M": ("prune", {"pattern": "2:4"}),
    "sensitivity": ("sensitivity", {"amounts": [0.5], "rows": 4, "only": ["lm_head"]}),
    "slice": ("slice", {"heads": 1, "feed_forward": 0.5, "layers": 1}),
    "slice taylor": ("slice", {"feed_forward": 0.5, "importance": "taylor"}),
    "shrink": ("shrink", {"encoder_layers": 1}),
    "smooth": ("smooth", {}),
    "quantize int8": ("quantize", {"weights": "int8"}),
    "quantize int4": ("quantize", {"weights": "int4", "group_size": 8}),
    "quantize bfloat16": ("quantize", {"weights": "bfloat16"}),
    "trim_vocabulary": ("trim_vocabulary", {}),
    "pseudo_label": ("pseudo_label", {"max_length": 12}),
    "evaluate": ("evaluate", {"max_length": [6, 12]}),
    "evaluate beams": ("evaluate", {"max_length": 12, "num_beams": 3}),
    "baseline": ("baseline", {}),
}
WITHOUT_SUMS = (
    "prune", "prune random", "prune N:M", "shrink", "quantize int8", "quantize int4",
    "quantize bfloat16", "trim_vocabulary", "baseline",
)  # fmt: skip
"""Whose results no order of additions decides: the same bits with any number of threads."""


SHORT = ("finetune", "prune taylor", "slice", "quantize int8", "smooth", "evaluate")
TRIED = STAGES if LONG else {name: STAGES[name] for name in SHORT}


def of_files(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        found.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def of_metrics(metrics: dict[str, Any]) -> str:
    kept = [
        (path, value)
        for path, value in _leaves(metrics)
        if not any(map(_MEASURED.search, path.split(".")))
    ]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def main(threads: int, folder: Path) -> None:
    torch.set_num_threads(threads)
    pico_t5().save(folder / "teacher")
    found = {}
    for name, (kind, settings) in TRIED.items():
        into = folder / name.replace(" ", "_").replace(":", "_")
        artifacts = {"teacher": folder / "teacher"} if kind == "distill" else {}
        data = rows_of_text(into / "data", TEXTS[:16], SUMMARIES[:16])
        metrics = ran(kind, pico_t5(), data, into, artifacts, **settings)
        found[name] = [of_files(into / kind), of_metrics(metrics)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
