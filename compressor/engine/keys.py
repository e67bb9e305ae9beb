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

    The rule: equal keys, equal results. Whatever decides a byte that a stage writes is in its key
    by content, never by path or time, and is compared again before and after the stage runs
    (`Plan.require_unchanged`): settings, the keys of what it reads from the store, rows, and by
    `identity` files of the recipe's own, commits, and the machine that a time belongs to. The order
    of a mapping is not in a key (`digest` sorts), so a stage either sorts it or names it there.
    What decides nothing is in no key: names, paths, labels, files that nobody reads.

    Left out on purpose, since they move a result by its last bits or are recorded elsewhere:
    threads, processes and the device (`computed_with`); environment variables, of which no stage
    reads any; releases of packages other than torch, transformers, what writes or runs an export
    (`packages`), trains a tokenizer, or scores (`identity`): `environment.json` has them.
    `tests/test_keys.py` walks the files that runs open.
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
