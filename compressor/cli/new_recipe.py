"""A recipe of one's own, begun from another: its settings as comments to take the `#` away from.

`#epochs: 20` is a setting as the other recipe has it; `# Passes …`, with a space, is a remark.
"""

from __future__ import annotations

import inspect
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from compressor.errors import RecipeError, nearest
from compressor.fields import list_fields
from compressor.files import recipes_folder, write_text
from compressor.form import SECTIONS, kind_of
from compressor.plan import plan
from compressor.recipe import NAME, Composed, Recipe, compose, from_config
from compressor.recipe_files import HYDRA_SETTINGS, Source, recipe_names
from compressor.schema import source_classes, unwrap_paragraphs
from compressor.stage import Stage, stage_class
from compressor.store import Store

WIDTH = 100
_SCHEMA_LINE = "# yaml-language-server: $schema={}"
_TOP = ("seed", "outputs", "skip", "launch", "objective", "search")


def new(file: Path, parent: str, *, full: bool = False, force: bool = False) -> None:
    """Write a recipe that extends `parent`, or with `full` has all of it. Raises RecipeError."""
    if file.suffix != ".yaml":
        raise RecipeError(f"{file}: a recipe's file name ends in .yaml")
    if not file.parent.is_dir():
        raise RecipeError(f"{file}: there is no folder {str(file.parent)!r}")
    if file.exists() and not force:
        raise RecipeError(f"{file} is there already; --force replaces it")
    if not full and parent not in recipe_names():
        hint = nearest(parent, recipe_names())
        raise RecipeError(f"no checked-in recipe {parent!r}; {hint} (--full copies any recipe)")
    if not re.fullmatch(NAME, file.stem):
        signs = "letters (a to z), digits, '_', '-' and single '.'"
        raise RecipeError(f"{file}: a recipe is called as its file is, with {signs}")
    composed = compose(parent)
    above = {recipes_folder() / "base.yaml", *(() if full else _files(composed))}
    if file.name in {each.relative_to(recipes_folder()).as_posix() for each in above}:
        what = f"not the checked-in {file.stem!r}: take another name for it"
        raise RecipeError(f"{file} would extend itself, {what}")
    write_text(file, text(composed, parent, schema_place(file), full=full))


def _files(composed: Composed) -> list[Path]:
    """The checked-in files that a recipe is made of."""
    return [source.file for source in composed.sources]


def schema_place(file: Path) -> str:
    """Where a recipe's file finds the schema: from beside it in a checkout, else its address."""
    schema = recipes_folder() / "schema" / "recipe.json"
    folder = file.absolute().parent
    if folder.resolve().is_relative_to(recipes_folder().parent.resolve()):
        return Path(os.path.relpath(schema, folder)).as_posix()
    return schema.resolve().as_uri()


def text(composed: Composed, parent: str, schema: str, *, full: bool) -> str:
    """A recipe's file."""
    return "\n".join(_Writer(composed, parent, active=full).lines(schema)) + "\n"


class _Writer:
    """Writes the lines of one file. `active`: settings are no comments."""

    def __init__(self, composed: Composed, parent: str, *, active: bool) -> None:
        self.recipe, self.values, self.parent = composed.recipe, composed.values, parent
        self.active = active
        self.sweep = _sweep(composed.sources)
        self.defaults = {} if active else _defaults(composed)
        self.told: set[str] = set()
        """Kinds whose settings are described already."""

    def lines(self, schema: str) -> Iterator[str]:
        yield _SCHEMA_LINE.format(schema)
        yield from _remarks(self._introduction(), 0)
        yield from _dumped("defaults", ["/base" if self.active else f"/{self.parent}", "_self_"])
        yield ""
        yield from self._setting("description", self.recipe.description, active=True)
        yield from _remarks("Stages in their order; their settings are below.", 0)
        yield "pipeline:"
        yield from _flow(self.recipe.pipeline)
        for name in _TOP:
            value = self.values.get(name, Recipe.model_fields[name].get_default())
            about = Recipe.model_fields[name].description or ""
            yield from self._setting(name, value, about=about)
        for section in ("model", "data", "training"):
            yield ""
            yield from self._section(section)
        yield ""
        yield "stages:"
        for name, own in self.recipe.stages.items():
            yield from self._stage(name, own or {})
        if self.active and self.sweep:
            yield ""
            yield from _remarks("How `run -m` sweeps.", 0)
            yield from _dumped("hydra", self.sweep)

    def _introduction(self) -> str:
        if self.active:
            return (
                f"All of {self.parent}, as it was composed: it extends nothing but `base`, and the "
                "groups `model=` and `data=` are not among its choices. `compressor stages KIND` "
                "has every setting of a stage."
            )
        return (
            f"It extends {self.parent}. A line such as `#seed: 0` is what {self.parent} says: take "
            "the # away, also of the group that it stands in, and change it. Remarks have a space "
            "after the #. `compressor stages KIND` has every setting of a stage."
        )

    def _section(self, section: str) -> Iterator[str]:
        """One of the recipe's groups: what it says, with what that means."""
        values: Mapping[str, Any] = self.values.get(section) or {}
        if not values:
            return
        yield from _remarks(_about(section), 0)
        yield f"{self._mark()}{section}:"
        is_data = section not in SECTIONS
        cls = source_classes()[values["source"]] if is_data else stage_class(SECTIONS[section])
        for name, value in values.items():
            field = cls.model_fields.get(name)
            about = (field.description if field is not None else None) or ""
            yield from self._setting(name, value, about=about, inside=section)

    def _stage(self, name: str, own: Mapping[str, Any]) -> Iterator[str]:
        kind = kind_of(name, own)
        told = kind in self.told
        self.told.add(kind)
        yield ""
        first = unwrap_paragraphs(inspect.getdoc(stage_class(kind)) or "").splitlines()[0]
        yield from _remarks(first, 2) if not told else ()
        yield f"  {name}:"
        # It changes nothing, and keeps the stage a mapping while all else is a comment.
        yield f"    stage: {kind}"
        known = {field.path: field for field in list_fields(kind) if "." not in field.path}
        said = {key: value for key, value in own.items() if key != "stage"}
        for field, value in (said | self.defaults.get(name, {})).items():
            about = known[field].description if not told else ""
            yield from self._setting(field, value, about=about, indent=4)

    def _mark(self) -> str:
        return "" if self.active else "#"

    def _setting(
        self,
        name: str,
        value: Any,
        *,
        about: str = "",
        indent: int = 0,
        inside: str = "",
        active: bool = False,
    ) -> Iterator[str]:
        """A setting, with what it means behind it or, where that is long, above it."""
        mark = "" if active else self._mark()
        depth = 2 if inside else 0
        before = f"{' ' * indent}{mark}{' ' * depth}"
        dumped = [before + line for line in _dumped(name, value, WIDTH - len(before) - 15)]
        about = " ".join(about.split())
        beside = f"{dumped[0]}  # {about}"
        if about and len(dumped) == 1 and len(beside) <= WIDTH:
            dumped = [beside]
        elif about:
            yield from _remarks(about, indent + (depth if self.active else 0))
        yield from dumped


def _defaults(composed: Composed) -> dict[str, dict[str, Any]]:
    """Stage → what it leaves at its defaults, of its kind's own fields: of a kind's first stage.

    Without what planning says means nothing there.
    """
    recipe = composed.recipe
    found: dict[str, dict[str, Any]] = {}
    kinds: set[str] = set()
    for name, own in recipe.stages.items():
        kind = kind_of(name, own)
        if kind not in kinds:
            found[name] = dict(_left_out(stage_class(kind), {*(own or {}), *_group(recipe, kind)}))
        kinds.add(kind)
    stages = {name: (own or {}) | found.get(name, {}) for name, own in recipe.stages.items()}
    values = {**composed.values, "stages": stages}
    try:
        plan(from_config(values, recipe.name, composed.sources, ()), Store.of(recipe.outputs))
    except RecipeError as error:
        for problem in error.problems:
            _, _, place = problem.path.partition("stages.")
            stage, _, field = place.partition(".")
            found.get(stage, {}).pop(field, None)
    return found


def _group(recipe: Recipe, kind: str) -> Mapping[str, Any]:
    section = stage_class(kind).section
    return getattr(recipe, section) if section else {}


def _left_out(cls: type[Stage], said: set[str]) -> Iterator[tuple[str, Any]]:
    """The class's own fields, which none of those that it extends has, with their defaults."""
    for name, field in cls.model_fields.items():
        if name in cls.__annotations__ and name not in said and not field.is_required():
            yield name, _json(cls, name, field.get_default(call_default_factory=True))


def _sweep(sources: Sequence[Source]) -> dict[str, Any]:
    """What a recipe's files say to Hydra, as later ones have it."""
    at_the_top = (source.file for source in sources if source.package in ("", "_global_"))
    files: list[Any] = [OmegaConf.load(file) for file in at_the_top]
    said = OmegaConf.merge(*(file.get("hydra") or {} for file in files))
    values: Any = OmegaConf.to_container(said)
    return {key: value for key, value in values.items() if key in HYDRA_SETTINGS}


def _about(section: str) -> str:
    about = Recipe.model_fields[section].description
    return about or "Where rows come from, and how they are read (a `data/` group)."


def _json(cls: type[Stage], name: str, default: Any) -> Any:
    """A default as a recipe writes it."""
    if default is None or isinstance(default, bool | int | float | str):
        return default
    return cls.model_construct(**{name: default}).model_dump(mode="json", include={name})[name]


def _remarks(about: str, indent: int) -> Iterator[str]:
    before = " " * indent + "# "
    yield from textwrap.wrap(
        about, WIDTH, initial_indent=before, subsequent_indent=before, break_on_hyphens=False
    )


def _dumped(name: str, value: Any, width: int = WIDTH) -> list[str]:
    """A setting's lines of YAML: what holds only plain values on one line where it fits."""
    style = None if isinstance(value, Mapping | list) else False
    made = yaml.safe_dump(
        {name: value}, sort_keys=False, allow_unicode=True, default_flow_style=style, width=width
    )
    return made.splitlines()


def _flow(names: Iterable[str]) -> list[str]:
    """A list of names in brackets, over as many lines as it needs."""
    inside = ", ".join(names)
    return textwrap.wrap(f"[{inside}]", WIDTH, initial_indent="  ", subsequent_indent="   ")
