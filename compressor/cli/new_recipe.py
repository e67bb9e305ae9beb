"""Begin a recipe of one's own from another: its settings as comments to take the `#` away from.

`#epochs: 20` is a setting as the other recipe has it; `# Passes …`, with a space, is a remark.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from pydantic import BaseModel

from compressor.core.errors import RecipeError, nearest
from compressor.core.files import find_recipes_folder, write_text
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import NAME, ComposedRecipe, Recipe, compose, validate_values
from compressor.recipe.describe import list_fields
from compressor.recipe.files import HYDRA_SETTINGS, Source, list_recipes
from compressor.recipe.schema import find_source_classes, unwrap_paragraphs
from compressor.recipe.typed_stages import SECTIONS, find_kind
from compressor.stages.base import Stage, stage_class

WIDTH = 100
_TOP = ("seed", "outputs", "skip", "launch", "objective", "search")


def write_new_recipe(file: Path, parent: str, *, full: bool = False, force: bool = False) -> None:
    """Write a recipe that extends `parent`, or with `full` has all of it. Raises RecipeError."""
    _check_file(file, force=force)
    if not full and parent not in list_recipes():
        hint = nearest(parent, list_recipes())
        raise RecipeError(f"no checked-in recipe {parent!r}; {hint} (--full copies any recipe)")
    composed, root = compose(parent), find_recipes_folder()
    ancestors = {root / "base.yaml", *(() if full else [item.file for item in composed.sources])}
    if file.name in {path.relative_to(root).as_posix() for path in ancestors}:
        what = f"not the checked-in {file.stem!r}: take another name for it"
        raise RecipeError(f"{file} would extend itself, {what}")
    lines = _Writer(composed, parent, full=full).write_lines(_locate_schema(file))
    write_text(file, "\n".join(lines) + "\n")


def _check_file(file: Path, *, force: bool) -> None:
    if file.suffix != ".yaml":
        raise RecipeError(f"{file}: a recipe's file name ends in .yaml")
    if not file.parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {str(file.parent)!r}")
    if file.exists() and not force:
        raise RecipeError(f"{file} is there already; --force replaces it")
    if not re.fullmatch(NAME, file.stem):
        signs = "letters (a to z), digits, '_', '-' and single '.'"
        raise RecipeError(f"{file}: a recipe is called as its file is, with {signs}")


def _locate_schema(file: Path) -> str:
    """Give the schema's path from a recipe's file in a checkout, elsewhere its address."""
    schema = find_recipes_folder() / "schema" / "recipe.json"
    folder = file.absolute().parent
    if folder.resolve().is_relative_to(find_recipes_folder().parent.resolve()):
        return Path(os.path.relpath(schema, folder)).as_posix()
    return schema.resolve().as_uri()


class _Writer:
    """Writes the lines of one file. Where it is not `full`, settings are comments."""

    def __init__(self, composed: ComposedRecipe, parent: str, *, full: bool) -> None:
        self.recipe, self.values, self.parent = composed.recipe, composed.values, parent
        self.full, self.mark = full, "" if full else "#"
        self.sweep = _read_sweep(composed.sources) if full else {}
        self.defaults = {} if full else _list_defaults(composed)
        self.described: set[str] = set()
        """The kinds whose settings have their remarks already."""

    def write_lines(self, schema: str) -> Iterator[str]:
        yield f"# yaml-language-server: $schema={schema}"
        yield from _remark(self._introduce())
        yield from _dump("defaults", ["/base" if self.full else f"/{self.parent}", "_self_"])
        yield ""
        yield from _dump("description", self.recipe.description)
        yield from _remark("Stages in their order; their settings are below.")
        yield "pipeline:"
        names = ", ".join(self.recipe.pipeline)
        yield from textwrap.wrap(f"[{names}]", WIDTH, initial_indent="  ", subsequent_indent="   ")
        for name in _TOP:
            value = self.values.get(name, Recipe.model_fields[name].get_default())
            yield from self._write_setting(name, value, _describe(Recipe, name))
        for section in ("model", "data", "training"):
            yield ""
            yield from self._write_section(section)
        yield ""
        yield "stages:"
        for name, settings in self.recipe.stages.items():
            yield from self._write_stage(name, settings or {})
        if self.sweep:
            yield ""
            yield from _remark("How `run -m` sweeps.")
            yield from _dump("hydra", self.sweep)

    def _introduce(self) -> str:
        text = (
            f"It extends {self.parent}. A line such as `#seed: 0` is what {self.parent} says: take "
            "the # away, also of the group that it stands in, and change it. Remarks have a space "
            "after the #."
        )
        if self.full:
            text = (
                f"All of {self.parent}, as it was composed: it extends nothing but `base`, and the "
                "groups `model=` and `data=` are not among its choices."
            )
        return f"{text} `compressor stages KIND` has every setting of a stage."

    def _write_section(self, section: str) -> Iterator[str]:
        """Write one of the recipe's groups: what it says, with what that means."""
        values: Mapping[str, Any] = self.values.get(section) or {}
        if not values:
            return
        yield from _remark(_describe(Recipe, section))
        yield f"{self.mark}{section}:"
        is_data = section == "data"
        cls = find_source_classes()[values["source"]] if is_data else stage_class(SECTIONS[section])
        for name, value in values.items():
            yield from self._write_setting(name, value, _describe(cls, name), depth=2)

    def _write_stage(self, name: str, settings: Mapping[str, Any]) -> Iterator[str]:
        kind = find_kind(name, settings)
        is_first = kind not in self.described
        self.described.add(kind)
        yield ""
        if is_first:
            doc = unwrap_paragraphs(inspect.getdoc(stage_class(kind)) or "")
            yield from _remark(doc.splitlines()[0], 2)
        yield f"  {name}:"
        # It changes nothing, and keeps the stage a mapping while all else is a comment.
        yield f"    stage: {kind}"
        about = {field.path: field.description for field in list_fields(kind) if is_first}
        for key, value in (dict(settings) | self.defaults.get(name, {})).items():
            if key != "stage":
                yield from self._write_setting(key, value, about.get(key, ""), indent=4)

    def _write_setting(
        self, name: str, value: Any, about: str, *, indent: int = 0, depth: int = 0
    ) -> Iterator[str]:
        """Write a setting, with what it means behind it or, where that is long, above it.

        `indent` stands before the comment's sign, `depth` after it.
        """
        before = f"{' ' * indent}{self.mark}{' ' * depth}"
        lines = [before + line for line in _dump(name, value, WIDTH - len(before) - 15)]
        about = " ".join(about.split())
        beside = f"{lines[0]}  # {about}"
        if about and len(lines) == 1 and len(beside) <= WIDTH:
            lines = [beside]
        elif about:
            yield from _remark(about, indent + (depth if self.full else 0))
        yield from lines


def _list_defaults(composed: ComposedRecipe) -> dict[str, dict[str, Any]]:
    """Map the first stage of each kind to the defaults of its own fields that planning accepts."""
    recipe = composed.recipe
    unset: dict[str, dict[str, Any]] = {}
    stages = {name: settings or {} for name, settings in recipe.stages.items()}
    first = {find_kind(name, settings): name for name, settings in reversed(stages.items())}
    for kind, name in first.items():
        cls = stage_class(kind)
        group = getattr(recipe, cls.section) if cls.section else {}
        unset[name] = dict(_read_defaults(cls, {*stages[name], *group}))
    stages = {name: settings | unset.get(name, {}) for name, settings in stages.items()}
    values = {**composed.values, "stages": stages}
    try:
        plan(validate_values(values, recipe.name, composed.sources, ()), Store.of(recipe.outputs))
    except RecipeError as error:
        for problem in error.problems:
            stage, _, field = problem.path.partition("stages.")[2].partition(".")
            unset.get(stage, {}).pop(field, None)
    return unset


def _read_defaults(cls: type[Stage], taken: set[str]) -> Iterator[tuple[str, Any]]:
    """Yield the class's own fields, which none of those that it extends has, as a recipe's."""
    for name, field in cls.model_fields.items():
        if name in cls.__annotations__ and name not in taken and not field.is_required():
            default = field.get_default(call_default_factory=True)
            if default is not None and not isinstance(default, bool | int | float | str):
                stage = cls.model_construct(**{name: default})
                default = stage.model_dump(mode="json", include={name})[name]
            yield name, default


def _read_sweep(sources: Sequence[Source]) -> dict[str, Any]:
    """Read what a recipe's files say to Hydra, as later ones have it."""
    files: list[Any] = [OmegaConf.load(source.file) for source in sources if not source.above]
    merged = OmegaConf.merge(*(file.get("hydra") or {} for file in files))
    values: Any = OmegaConf.to_container(merged)
    return {key: value for key, value in values.items() if key in HYDRA_SETTINGS}


def _describe(cls: type[BaseModel], name: str) -> str:
    return (cls.model_fields[name].description if name in cls.model_fields else None) or ""


def _remark(text: str, indent: int = 0) -> list[str]:
    lines = textwrap.wrap(text, WIDTH - indent - 2, break_on_hyphens=False)
    return [f"{' ' * indent}# {line}" for line in lines]


def _dump(name: str, value: Any, width: int = WIDTH) -> list[str]:
    """Write a setting in lines of YAML: what holds only plain values on one line where it fits."""
    how: Any = {"sort_keys": False, "allow_unicode": True, "width": width}
    style = None if isinstance(value, Mapping | list) else False
    text: str = yaml.safe_dump({name: value}, default_flow_style=style, **how)
    return text.splitlines()
