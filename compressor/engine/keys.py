"""Keys of the store: what decides a stage's result, and the digest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from compressor.core.packages import FRAMEWORKS, versions
from compressor.recipe.compose import Recipe
from compressor.stages.base import Planning, Stage


def digest(parts: Any) -> str:
    """Hash a JSON value with SHA-256, whatever the order of its keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def key_parts(
    recipe: Recipe,
    kind: str,
    stage: Stage,
    planning: Planning,
    *,
    inputs: Mapping[str, str] | list[list[str]],
    packages: Iterable[str],
) -> dict[str, Any]:
    """Collect what a stage's key is made of. Raises Unreachable, ValueError, OSError.

    Equal keys, equal results: what decides a byte that a stage writes is in its key by content,
    never by path, time or a mapping's order (`digest` sorts), and is compared again before and
    after it runs (`Plan.require_unchanged`). Left out are names, labels, and what moves last bits
    alone: threads, processes, device (`computed_with`), releases of other packages than these.
    """
    return {
        "stage": kind,
        "version": stage.version,
        "parameters": stage.parameters(),
        "inputs": inputs,
        "data": {split: recipe.data.key(split, part) for split, part in stage.reads().items()},
        "identity": dict(stage.identity(planning)),
        "seed": recipe.seed if stage.is_random() else None,
        "frameworks": versions({*FRAMEWORKS, *packages}),
    }
