"""The run directory: what was asked, with what, what came out, and links into the store."""

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
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from compressor.core import machine
from compressor.core.files import write_json, write_text
from compressor.core.numbers import finite
from compressor.core.redaction import redact
from compressor.engine.plan import Node, Plan
from compressor.engine.store.store import Store
from compressor.stages.base import SIZES, Report
from compressor.training.launch_config import read_processes

_PACKAGES = (
    *("compressor", "torch", "transformers", "accelerate", "datasets", "tokenizers"),
    *("ctranslate2", "onnx", "onnxscript", "onnxruntime", "gguf", "llama_cpp_python"),
    *("optuna", "hydra-core", "numpy", "scikit-learn", "rouge_score", "nltk"),
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
        write_json(folder / "environment.json", environment(plan))
        (folder / "stages").mkdir(exist_ok=True)
        return cls(folder, store)

    def add(self, node: Node, manifest: Mapping[str, Any], *, cached: bool, seconds: float) -> None:
        """Record a node that is in the store, and link to it."""
        number = len(self.records)
        assert node.key is not None
        link(self.store.path(node.key), self.folder / "stages" / f"{number:02d}-{node.name}")
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
            self.records += self._for_each_model(record)
        else:
            self.records.append(record)
        for name in ("predictions.csv", "model"):
            if name in {entry.split("/")[0] for entry in manifest["files"]} and (
                not node.stage.changes_model
            ):
                link(self.store.path(node.key) / name, self.folder / name)
        self._note_changes(record)
        self.write()

    def _note_changes(self, record: Mapping[str, Any]) -> None:
        """Say in `environment.json` where a training went on in other processes than before."""
        changes = record["metrics"].get("changes_of_processes")
        if changes:
            path = self.folder / "environment.json"
            about = json.loads(path.read_text(encoding="utf-8"))
            about.setdefault("resumed", []).extend(
                {"stage": record["name"], **change} for change in changes
            )
            write_json(path, about)

    def _for_each_model(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A record for each model of a report on all at once; the first has the time."""
        measured = record["metrics"]["models"]
        sizes = {known["name"]: known for known in self.records}
        found = []
        for model, metrics in measured.items():
            name = f"{record['name']}@{model}" if len(measured) > 1 else record["name"]
            own = {key: sizes[model][key] for key in SIZES}
            found.append({**record, **own, "name": name, "model": model, "metrics": metrics})
            record = {**record, "seconds": 0.0, "made_in_seconds": 0.0}
        return found

    def write(self) -> None:
        # Manifests of earlier versions may have NaN.
        write_json(self.folder / "metrics.json", finite(self.records))


def new_folder(parent: Path) -> Path:
    """`<parent>/<time>`, which nobody else has; made here, so that two cannot share it."""
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


def link(target: Path, place: Path) -> None:
    """A relative symbolic link, or a copy where there can be none; replaces what is there."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    elif place.is_dir():
        shutil.rmtree(place)
    try:
        place.symlink_to(os.path.relpath(target, place.parent), target_is_directory=target.is_dir())
    except OSError:
        (shutil.copytree if target.is_dir() else shutil.copy2)(target, place)


def environment(plan: Plan) -> dict[str, Any]:
    """What a person needs to make this run again. No environment variables: they hold secrets."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine.description(),
        "cores": machine.cores(),
        "gpus": [gpu.name for gpu in machine.gpus()],
        "packages": versions,
        "directory": str(Path.cwd()),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "recipe_files": [str(source.file) for source in plan.composed.sources],
        "overrides": list(plan.composed.overrides),
        "processes": read_processes(plan.composed.recipe.launch).count,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The records of a run."""
    loaded: list[dict[str, Any]] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return loaded


ABOUT, OUTCOME = "sweep.json", "point.json"
