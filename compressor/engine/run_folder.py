"""Write a run's directory: its recipe, its environment, its results, and links into the store."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from compressor.core import machine
from compressor.core.files import write_json, write_text
from compressor.core.numbers import replace_nonfinite
from compressor.core.packages import find_version
from compressor.core.redaction import redact
from compressor.engine.plan import Node, Plan
from compressor.engine.store.store import Store
from compressor.stages.base import SIZES, Report
from compressor.training.launch_config import read_processes

_PACKAGES = (
    *("compressor", "torch", "transformers", "accelerate", "datasets", "tokenizers"),
    *("ctranslate2", "onnx", "onnxscript", "onnxruntime", "gguf", "llama_cpp_python"),
    *("optuna", "hydra-core", "numpy", "scikit-learn"),
    *("rouge_score", "nltk", "sacrebleu", "evaluate"),
)


@dataclass
class Run:
    """One run's directory, brought up to date after every stage."""

    folder: Path
    store: Store
    records: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def create(cls, folder: Path, plan: Plan, store: Store) -> Run:
        """Make the directory, with the resolved recipe and the environment in it."""
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(plan.composed.public, sort_keys=False, allow_unicode=True)
        write_text(folder / "recipe.yaml", text)
        write_json(folder / "environment.json", describe_environment(plan))
        (folder / "stages").mkdir(exist_ok=True)
        return cls(folder, store)

    def add(self, node: Node, manifest: Mapping[str, Any], *, cached: bool, seconds: float) -> None:
        """Record a node that is in the store, and link to it."""
        assert node.key is not None
        artifact, number = self.store.path(node.key), len(self.records)
        link_or_copy(artifact, self.folder / "stages" / f"{number:02d}-{node.name}")
        record = {
            "name": node.name,
            "stage": node.kind,
            "label": redact(node.label),  # which tables have, too
            "model": node.model,
            "key": node.key,
            "cached": cached,
            **manifest["model"],
            "seconds": round(seconds, 3),
            "made_in_seconds": manifest["seconds"],
            "computed_with": manifest.get("computed_with"),
            "metrics": manifest["metrics"],
        }
        if isinstance(node.stage, Report) and node.stage.together:
            self.records += self._split_by_model(record)
        else:
            self.records.append(record)
        if not node.stage.changes_model:
            for name in {"predictions.csv", "perplexity.csv", "model"} & {
                f.split("/")[0] for f in manifest["files"]
            }:
                link_or_copy(artifact / name, self.folder / name)
        self._note_changed_processes(record)
        self.write()

    def _note_changed_processes(self, record: Mapping[str, Any]) -> None:
        """Note in `environment.json` where a training resumed in other processes than before."""
        changes = record["metrics"].get("changes_of_processes")
        if changes:
            path = self.folder / "environment.json"
            about = json.loads(path.read_text(encoding="utf-8"))
            resumed = about.setdefault("resumed", [])
            resumed += [{"stage": record["name"], **change} for change in changes]
            write_json(path, about)

    def _split_by_model(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        """Make a record for each model of a report on all at once; the first has the time."""
        metrics_of = record["metrics"]["models"]
        sizes = {known["name"]: {key: known[key] for key in SIZES} for known in self.records}
        records = []
        for model, metrics in metrics_of.items():
            name = f"{record['name']}@{model}" if len(metrics_of) > 1 else record["name"]
            about = {"name": name, "model": model, "metrics": metrics}
            records.append(record | sizes[model] | about)
            record = record | {"seconds": 0.0, "made_in_seconds": 0.0}
        return records

    def write(self) -> None:
        # Manifests of earlier versions may have NaN.
        write_json(self.folder / "metrics.json", replace_nonfinite(self.records))


def make_run_folder(parent: Path) -> Path:
    """Make `<parent>/<time>`, which nobody else has: two runs cannot share it."""
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        folder = parent / f"{stamp}{suffix}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{parent}: too many runs within one second")


def link_or_copy(target: Path, place: Path) -> None:
    """Replace a place by a relative link to a target, or by a copy where there are no links."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    try:
        place.symlink_to(os.path.relpath(target, place.parent), target_is_directory=target.is_dir())
    except OSError:
        (shutil.copytree if target.is_dir() else shutil.copy2)(target, place)


def describe_environment(plan: Plan) -> dict[str, Any]:
    """Describe what this run is made with. No environment variables: they hold secrets."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine.describe_machine(),
        "cores": machine.count_cores(),
        "gpus": [gpu.name for gpu in machine.list_gpus()],
        "packages": {package: find_version(package) for package in _PACKAGES},
        "directory": str(Path.cwd()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "recipe_files": [str(source.file) for source in plan.composed.sources],
        "overrides": list(plan.composed.overrides),
        "processes": read_processes(plan.composed.recipe.launch).world_size,
        "git": _find_git_commit(),
    }


def _find_git_commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


ABOUT, OUTCOME = "sweep.json", "point.json"
