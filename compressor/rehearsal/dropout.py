"""A model's folder, and a stage's settings, without dropout: two processes draw another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DROPS = ("dropout", "pdrop", "layerdrop")
"""What a config calls it, in the names of its keys."""


def without_dropout(model: Path, folder: Path) -> Path:
    """A model's folder with no dropout in its config."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings_without_dropout(config)), encoding="utf-8")
    return folder


def settings_without_dropout(values: Any) -> Any:
    """A config, or a stage's settings, with every probability of dropout at 0."""
    if isinstance(values, Mapping):
        return {key: 0.0 if _drops(key, each) else settings_without_dropout(each)
                for key, each in values.items()}  # fmt: skip
    if isinstance(values, list):
        return [settings_without_dropout(each) for each in values]
    return values


def _drops(key: str, value: Any) -> bool:
    return isinstance(value, float) and any(part in str(key) for part in _DROPS)
