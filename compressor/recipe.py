"""From a recipe's name and overrides to a validated `Recipe`. Stages are planned elsewhere.

Hydra composes; whatever is wrong, or could run code or read the environment, is told as a `Problem`
with file, line and key path.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from hydra import compose as hydra_compose
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator

from compressor.data.sources import Data
from compressor.errors import Problem, RecipeError
from compressor.field_types import SETTINGS, Integer
from compressor.files import recipes_folder
from compressor.hydra_loading import (
    COMPOSITION_ERRORS,
    compose_problem,
    hydra_loader,
    hydra_overrides,
    refuse_overrides,
    set_values,
    sets_a_value,
)
from compressor.launching import Launch
from compressor.objective import Objective, Search
from compressor.recipe_files import (
    Source,
    find,
    locate,
    refuse_base_behind,
    refuse_code,
    refuse_misread,
    refuse_resolvers_in_defaults,
    runs_something,
)
from compressor.stage import stage_kinds
from compressor.validation import validation_problems

_PART = r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.?"
NAME = rf"^{_PART}(/{_PART})*$"
"""A folder below `outputs/runs`: no part of it climbs out."""
STAGE_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
"""A part of a folder's name, of which file systems allow 255 bytes."""


def _stage_name(name: str) -> str:
    if not re.fullmatch(STAGE_NAME, name):
        raise ValueError(
            "a stage's name has letters, digits and _ only, 100 at most, and begins with no digit"
        )
    return name


StageName = Annotated[str, AfterValidator(_stage_name)]


class Recipe(BaseModel):
    """A composed recipe. `stages` stay mappings here: planning makes them typed, one by one."""

    model_config = SETTINGS

    name: str = Field(
        max_length=200,
        description="Names the folder of its runs.",
        json_schema_extra={"pattern": NAME},
    )
    description: str = Field("", description="What it is for, in a line or two.")
    seed: Integer = Field(0, ge=0, description="Of every random choice that a stage makes.")
    outputs: str = Field("outputs", description="Folder of store, runs and sweeps.")
    pipeline: list[str] = Field(min_length=1, description="Names of stages, in their order.")
    skip: list[str] = Field([], description="Names or kinds of stages left out of the pipeline.")
    stages: dict[StageName, dict[str, Any] | None] = Field(
        description="The settings of each stage."
    )
    model: dict[str, Any] = Field({}, description="Defaults of `load` stages (a `model/` group).")
    data: Data
    training: dict[str, Any] = Field({}, description="Defaults of stages that train.")
    launch: Launch = Field(default_factory=Launch)
    objective: Objective | None = Field(None, description="What makes a point of a sweep better.")
    search: Search | None = Field(None, description="How `run -m` looks for the best point.")

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, value: str) -> str:
        if not re.fullmatch(NAME, value):
            raise ValueError(
                "expected letters, digits, '_', '-' and single '.', in parts between single '/'"
            )
        return value


@dataclass(frozen=True)
class Composed:
    """A recipe together with where each of its keys was written."""

    recipe: Recipe
    values: Mapping[str, Any]
    sources: tuple[Source, ...]
    overrides: tuple[str, ...]

    def in_a_file(self, path: str) -> bool:
        """Whether a file of the recipe, rather than the command line alone, has this key."""
        parts = path.split(".")
        found = (source.line(parts) for source in self.sources)
        return any(place is not None and place[0] == len(parts) for place in found)

    def problem(self, path: str, message: str) -> Problem:
        return locate(path, message, self.sources, self.overrides)


def compose(recipe: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose and validate a recipe. Raises RecipeError with everything that is wrong with it."""
    folder, name = find(recipe)
    refuse_overrides(overrides)
    with hydra_loader(folder) as loader:
        sources: list[Source] = []
        try:
            merged = _merged(loader, folder, name, overrides, sources)
            values = container(merged, sources, overrides)
        except COMPOSITION_ERRORS as error:
            problem = compose_problem(error, folder, name, overrides, sources)
            raise RecipeError([problem]) from error
    return from_config(values, name, tuple(sources), tuple(overrides))


class Composer:
    """Composes one recipe with overrides again and again, as `compose` does; what files they choose
    is read and merged once, a tenth of a second's work.
    """

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._merged: dict[tuple[str, ...], tuple[tuple[Source, ...], DictConfig]] = {}

    def compose(self, overrides: Sequence[str]) -> Composed:
        """Raises RecipeError with everything that is wrong with the recipe."""
        folder, name = find(self._recipe)
        refuse_overrides(overrides)
        roots = (folder, recipes_folder())
        given = [item for item in overrides if sets_a_value(item, roots)]
        chosen = tuple(item for item in overrides if item not in given)
        try:
            if chosen not in self._merged:
                read: list[Source] = []
                with hydra_loader(folder) as loader:
                    merged = _merged(loader, folder, name, chosen, read)
                self._merged[chosen] = tuple(read), merged
            sources, merged = self._merged[chosen]
            config = copy.deepcopy(merged)
            set_values(config, given)
            values = container(config, sources, overrides)
        except COMPOSITION_ERRORS:  # told by what has Hydra at hand
            return compose(self._recipe, overrides)
        return from_config(values, name, sources, tuple(overrides))


def _merged(
    loader: Any, folder: Path, name: str, overrides: Sequence[str], sources: list[Source]
) -> DictConfig:
    """A recipe's files and overrides as one config; adds the files to `sources`.

    Raises RecipeError, or one of COMPOSITION_ERRORS.
    """
    given = hydra_overrides(name, overrides)
    refuse_resolvers_in_defaults(folder, name)
    sources += _sources(loader, name, given, folder)
    refuse_code(sources)
    refuse_misread(sources)
    refuse_base_behind(sources, folder / f"{name}.yaml")
    return hydra_compose(name, given)


def container(config: DictConfig, sources: Sequence[Source], overrides: Sequence[str]) -> Any:
    """A composed config as plain values. Raises RecipeError, or an error of OmegaConf."""
    values = OmegaConf.to_container(config, resolve=False)
    _refuse_resolvers(values, sources, overrides)
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


def from_config(
    values: Any, name: str, sources: tuple[Source, ...], overrides: tuple[str, ...]
) -> Composed:
    """Validate composed values. A recipe that names itself nothing is called `name`."""
    values = {key: value for key, value in dict(values).items() if key != "hydra"}
    given_name = bool(values.get("name"))
    values["name"] = values.get("name") or name
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = [
            (path, _told(path, message, values, named=given_name))
            for path, message in validation_problems(error, Recipe, values)
        ]
        if any("did you mean 'pipeline'?" in message for _, message in problems):
            problems = [(path, message) for path, message in problems if path != "pipeline"]
        raise RecipeError([locate(p, m, sources, overrides) for p, m in problems]) from error
    return Composed(recipe, values, sources, overrides)


def _told(path: str, message: str, values: Mapping[str, Any], *, named: bool) -> str:
    """What is wrong at the top of a recipe, in words that are about recipes."""
    pipeline = values.get("pipeline")
    stages = pipeline if isinstance(pipeline, list) else []
    if path == "pipeline" and not pipeline:
        return "lists no stage; it has their names in order, such as [load, finetune, evaluate]"
    if path.startswith("pipeline.") and "expected a text" in message:
        return "expected the name of a stage, whose settings stand below `stages:`"
    if path == "name" and not named:
        return f"{message}: the file's name, where no `name:` is set"
    if path in stage_kinds() or path in stages:
        return "no such key at the top; a stage's settings stand below `stages:`"
    return message


def _sources(loader: Any, name: str, overrides: list[str], folder: Path) -> list[Source]:
    """The files that are merged, in their order."""
    defaults = loader.compute_defaults_list(name, overrides, RunMode.RUN).defaults
    found = []
    for entry in defaults:
        if entry.config_path is None:
            continue
        for root in (folder, recipes_folder()):
            path = root / f"{entry.config_path}.yaml"
            if path.is_file():
                found.append(Source(path, entry.package or ""))
                break
    return found


def _refuse_resolvers(
    values: Any, sources: Sequence[Source], overrides: Sequence[str], path: str = ""
) -> None:
    """A recipe is data: `${a.b}` may point at another key, `${oc.env:HOME}` may not run."""
    if isinstance(values, dict):
        for key, value in values.items():
            _refuse_resolvers(value, sources, overrides, f"{path}.{key}" if path else str(key))
    elif isinstance(values, list):
        for index, value in enumerate(values):
            _refuse_resolvers(value, sources, overrides, f"{path}.{index}")
    elif isinstance(values, str) and runs_something(values):
        message = f"{values} is not allowed: a recipe runs nothing and reads no environment"
        raise RecipeError([locate(path, message, sources, overrides)])
