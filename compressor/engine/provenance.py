"""What a run was asked to do, as a later reader wants it told: written before its first stage.

The recipe's files can change afterwards, so what differs from the parent recipe is found at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compressor.core.errors import RecipeError
from compressor.core.files import recipes_folder
from compressor.engine.plan import Plan
from compressor.recipe.compose import ComposedRecipe, compose

ASKED = "asked.json"
"""The file's name in a run's folder."""

_OWN = {"name", "description", "outputs", "hydra"}
"""Keys that say nothing of what a recipe does."""

_OF_DATA = {"task", "prefix", "max_source_length", "max_target_length"}
"""Settings of the data, defaults filled in, that say how its models are used."""


def asked(plan: Plan) -> dict[str, Any]:
    """The recipe's parent, what differs from it, what the command changed, and the stages to come.

    `parent`: None, or its name and where this recipe's files differ from it. `changed`: where the
    command's overrides made the recipe differ from its own file. The stages' keys are what the run
    counts on, which `compressor gc` keeps. Either list of differences is None
    where one of the two recipes composes only with overrides. `data`: how texts are read. Costs a
    composition for each of the two files, about 0.15 s, and none for a recipe that has neither
    parent nor overrides.
    """
    composed = plan.composed
    own, parent = _own_and_parent(composed)
    alone = _alone(*_as_now(own)) if own is not None and (composed.overrides or parent) else None
    found: dict[str, Any] = {"parent": None, "changed": []}
    if parent is not None:
        above = _alone(*_as_now(parent))
        differs = None if alone is None or above is None else _listed(above, alone)
        found["parent"] = {"name": _name(parent), "differences": differs}
    if composed.overrides:
        found["changed"] = None if alone is None else _listed(alone, composed.public)
    nodes = [
        {"name": n.name, "stage": n.kind, "label": n.label, "model": n.model, "key": n.key}
        for n in plan.nodes
    ]
    data = composed.recipe.data.model_dump(mode="json", include=_OF_DATA)
    return found | {"nodes": nodes, "data": data}


def _own_and_parent(composed: ComposedRecipe) -> tuple[Path | None, Path | None]:
    """The recipe's own file, and that of the recipe it extends. `/base` and groups are neither."""
    base = recipes_folder() / "base.yaml"
    files = [s.file for s in composed.sources if s.package in {"", "_global_"} and s.file != base]
    own = files[-1] if files else None
    return own, files[-2] if len(files) > 1 else None


def _as_now(file: Path) -> tuple[Path, int]:
    return file, file.stat().st_mtime_ns


@cache
def _alone(file: Path, changed: int) -> Mapping[str, Any] | None:
    """A recipe's values without any override, as they may be shown; None where it needs some.

    Composed once for all points of a sweep, while the file is as it was `changed`.
    """
    try:
        return compose(str(file)).public
    except RecipeError:
        return None


def _name(file: Path) -> str:
    """Such as `homework/v1` for a checked-in recipe; a user's own file by its name."""
    root = recipes_folder()
    if file.is_relative_to(root):
        return file.relative_to(root).with_suffix("").as_posix()
    return file.name


def _listed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The differences as JSON; a side that has no such key is left out."""
    sides = (_plain(before), _plain(after))
    return [_entry(each) for each in differences(*sides)]


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in _OWN}


def _entry(difference: Difference) -> dict[str, Any]:
    sides: Sequence[tuple[str, Any]] = (("before", difference.before), ("after", difference.after))
    return {"path": difference.path} | {k: value for k, value in sides if value is not MISSING}


class Missing:
    """Stands for a value where the other side alone has the key."""

    def __repr__(self) -> str:
        return "(not there)"

    def __reduce__(self) -> str:
        """A copy, such as `dataclasses.asdict` makes, is `MISSING` itself."""
        return "MISSING"


MISSING = Missing()


@dataclass(frozen=True)
class Difference:
    """A key path, such as `stages.prune.amounts.lm_head`, and its value on either side."""

    path: str
    before: Any
    after: Any


def differences(before: Any, after: Any, path: str = "") -> list[Difference]:
    """Every innermost key whose value differs, in the order of `before`, then of `after`.

    Mappings are compared key by key. All else, lists too, is one value: an order of stages, or a
    set of `max_length`s, is read whole. A number equals another of its value (1 and 1.0), but no
    truth value does (1 and True).
    """
    return list(_differences(before, after, path))


def _differences(before: Any, after: Any, path: str) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys([*before, *after]):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key, MISSING), after.get(key, MISSING), inner)
    elif not _equal(before, after):
        yield Difference(path, before, after)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    lists = isinstance(one, Sequence) and isinstance(other, Sequence)
    if lists and not isinstance(one, str) and not isinstance(other, str):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
