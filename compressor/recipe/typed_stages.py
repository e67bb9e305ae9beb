"""Turn a recipe's stages into typed ones, and report wrong keys, types and ranges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from compressor.core.errors import nearest
from compressor.recipe.validation import explain_validation_error
from compressor.stages.base import Stage, stage_class, stage_kinds

if TYPE_CHECKING:
    from compressor.recipe.compose import Recipe

SECTIONS = {"model": "load", "training": "finetune"}
"""Top-level group with stages' defaults → the stage whose fields it may have."""
Report = Callable[[str, str], None]
"""Takes the path of a key in the recipe, and a message."""


def build_stages(recipe: Recipe, report: Report) -> dict[str, tuple[str, Stage]]:
    """Map each valid stage's name to (kind, typed stage), and report the others."""
    for section, kind in SECTIONS.items():
        for path, message in _check_group(stage_class(kind), getattr(recipe, section)):
            report(f"{section}.{path}", message)
    typed: dict[str, tuple[str, Stage]] = {}
    for name, values in recipe.stages.items():
        kind = find_kind(name, values)
        try:
            cls = stage_class(kind)
        except KeyError:
            path = f"stages.{name}.stage" if "stage" in (values or {}) else f"stages.{name}"
            hint = nearest(kind, stage_kinds())
            report(path, f"no stage {kind!r}; {hint} (set `stage:` where the name is another)")
            continue
        stage = _build_stage(recipe, name, cls, report)
        if stage is not None:
            typed[name] = kind, stage
    return typed


def find_kind(name: str, values: Mapping[str, Any] | None) -> str:
    """Give the kind of a recipe's stage: what its `stage:` says, or else its name."""
    return str((values or {}).get("stage", name))


def read_group(recipe: Recipe, cls: type[Stage]) -> dict[str, Any]:
    """Give what the recipe's group says of a stage's fields."""
    group: dict[str, Any] = getattr(recipe, cls.section) if cls.section else {}
    keys = cls.section_keys
    return {key: value for key, value in group.items() if keys is None or key in keys}


def locate_field(recipe: Recipe, name: str, cls: type[Stage], path: str) -> str:
    """Give a field's path in the recipe: below the stage, or below the group that set it."""
    first = path.partition(".")[0]
    if first not in (recipe.stages[name] or {}) and first in read_group(recipe, cls):
        return f"{cls.section}.{path}"
    return f"stages.{name}.{path}" if path else f"stages.{name}"


def _build_stage(recipe: Recipe, name: str, cls: type[Stage], report: Report) -> Stage | None:
    settings = {key: value for key, value in (recipe.stages[name] or {}).items() if key != "stage"}
    merged = {**read_group(recipe, cls), **settings}
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        for path, message in explain_validation_error(error, cls, merged):
            place = locate_field(recipe, name, cls, path)
            if cls.section is None or not place.startswith(f"{cls.section}."):
                report(place, message)  # a group's own are reported with it
    return None


def _check_group(model: type[BaseModel], values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what is wrong with some of a model's fields, which others may complete."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        if not error.errors()[0]["loc"]:  # a rule between fields
            return []
        problems = explain_validation_error(error, model, values)
        required = {name for name, field in model.model_fields.items() if field.is_required()}
        return [(path, message) for path, message in problems if path not in required]
    return []
