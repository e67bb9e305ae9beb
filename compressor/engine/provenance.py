"""Record what a run was asked to do before its first stage: the recipe's files may change later."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compressor.core.differences import MISSING, find_differences
from compressor.core.errors import RecipeError
from compressor.core.files import find_recipes_folder
from compressor.engine.plan import Plan
from compressor.recipe.compose import ComposedRecipe, compose

ASKED = "asked.json"
"""The file's name in a run's folder."""
_IGNORED_KEYS = {"name", "description", "outputs", "hydra"}
"""Keys that say nothing of what a recipe does."""
_DATA_KEYS = {"task", "prefix", "max_source_length", "max_target_length"}
"""Settings of the data, defaults filled in, that say how its models are used."""


def describe_request(plan: Plan) -> dict[str, Any]:
    """Describe the recipe's parent, what the command changed, and the stages to come.

    `parent`: None, or its name and where this recipe's files differ from it. `changed`: where the
    overrides made it differ from its own file. Either list of differences is None where one of the
    two composes only with overrides. `nodes`: with keys for `gc`. `data`: how texts are read.
    """
    composed = plan.composed
    file, parent = _find_files(composed)
    values = _compose_alone(file) if file and (composed.overrides or parent) else None
    request: dict[str, Any] = {"parent": None, "changed": []}
    if parent is not None:
        above = _compose_alone(parent)
        differences = None if values is None or above is None else _list_differences(above, values)
        request["parent"] = {"name": _name_recipe(parent), "differences": differences}
    if composed.overrides:
        changed = None if values is None else _list_differences(values, composed.public)
        request["changed"] = changed
    nodes = [
        {"name": n.name, "stage": n.kind, "label": n.label, "model": n.model, "key": n.key}
        for n in plan.nodes
    ]
    data = composed.recipe.data.model_dump(mode="json", include=_DATA_KEYS)
    return request | {"nodes": nodes, "data": data}


def _find_files(composed: ComposedRecipe) -> tuple[Path | None, Path | None]:
    """Find the recipe's own file, and that of the recipe it extends: not `/base` nor a group's."""
    base = find_recipes_folder() / "base.yaml"
    files = [s.file for s in composed.sources if s.package in {"", "_global_"} and s.file != base]
    return files[-1] if files else None, files[-2] if len(files) > 1 else None


def _compose_alone(file: Path) -> Mapping[str, Any] | None:
    """Compose a recipe without any override, as it may be shown; None where it needs some."""
    return _compose_once(file, file.stat().st_mtime_ns)


@cache
def _compose_once(file: Path, _changed: int) -> Mapping[str, Any] | None:
    """Compose a file once for all points of a sweep, while it is as it was `changed`."""
    try:
        return compose(str(file)).public
    except RecipeError:
        return None


def _name_recipe(file: Path) -> str:
    """Name a checked-in recipe as in `homework/v1`, and a user's own file by its name."""
    root = find_recipes_folder()
    if file.is_relative_to(root):
        return file.relative_to(root).with_suffix("").as_posix()
    return file.name


def _list_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List differences as JSON; a side that has no such key is left out."""
    return [
        {name: value for name, value in vars(difference).items() if value is not MISSING}
        for difference in find_differences(before, after)
        if difference.path.partition(".")[0] not in _IGNORED_KEYS
    ]
