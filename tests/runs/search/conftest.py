"""The pico recipe without training, for searches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PRUNE_ONLY = (
    ("[load, finetune, prune, recover, evaluate]", "[load, prune]"),
    ("  finetune: {epochs: 1}\n", ""),
    ("  recover: {stage: finetune, epochs: 1}\n  evaluate: {max_length: [8, 16]}\n", ""),
)
HEAD = "stages.prune.amounts.lm_head"


def with_search(write: Callable[..., Path], search: str, *replacements: tuple[str, str]) -> Path:
    """The pico recipe without training, with a search."""
    path = write(*PRUNE_ONLY, *replacements)
    path.write_text(path.read_text() + search)
    return path
