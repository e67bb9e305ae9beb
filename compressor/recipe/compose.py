"""Compose a recipe's name and overrides into a validated `Recipe`, by Hydra.

What is wrong, or could run code or read the environment, is a `Problem` with file and line.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from hydra._internal.defaults_list import create_defaults_list
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from compressor.core.errors import Problem, RecipeError
from compressor.core.files import find_recipes_folder
from compressor.core.redaction import redact
from compressor.core.settings import SETTINGS, Integer
from compressor.data.sources import Data
from compressor.recipe.files import (
    RUNS_NOTHING,
    Source,
    find_recipe,
    has_resolver,
    locate_problem,
    refuse_bad_defaults,
    refuse_code,
    refuse_keys_before_base,
    refuse_octal_numbers,
)
from compressor.recipe.hydra import (
    COMPOSITION_ERRORS,
    complete_overrides,
    explain_composition_error,
    refuse_overrides,
    set_values,
    sets_a_value,
    start_hydra,
)
from compressor.recipe.objective import Objective, Search
from compressor.recipe.typed_stages import build_stages
from compressor.recipe.validation import explain_validation_error
from compressor.stages.base import stage_kinds
from compressor.training.launch_config import Launch

_PART = r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*\.?"
NAME = rf"^{_PART}(/{_PART})*$"
"""A folder below `outputs/runs`: no part of it climbs out."""
STAGE_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,99}$"
"""A part of a folder's name, of which file systems allow 255 bytes."""


def _check_name(name: str) -> str:
    if not re.fullmatch(NAME, name):
        raise ValueError(
            "expected letters, digits, '_', '-' and single '.', in parts between single '/'"
        )
    return name


def _check_stage_name(name: str) -> str:
    if not re.fullmatch(STAGE_NAME, name):
        raise ValueError(
            "a stage's name has letters, digits and _ only, 100 at most, and begins with no digit"
        )
    return name


StageName = Annotated[str, AfterValidator(_check_stage_name)]


class Recipe(BaseModel):
    """A composed recipe. `stages` stay mappings here: planning makes them typed, one by one."""

    model_config = SETTINGS

    name: Annotated[str, AfterValidator(_check_name)] = Field(
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
    data: Data = Field(description="Where rows come from, and how they are read (a `data/` group).")
    training: dict[str, Any] = Field({}, description="Defaults of stages that train.")
    launch: Launch = Field(default_factory=Launch)
    objective: Objective | None = Field(None, description="What makes a point of a sweep better.")
    search: Search | None = Field(None, description="How `run -m` looks for the best point.")


@dataclass(frozen=True)
class ComposedRecipe:
    """A recipe together with where each of its keys was written."""

    recipe: Recipe
    values: Mapping[str, Any]
    sources: tuple[Source, ...]
    overrides: tuple[str, ...]

    @cached_property
    def public(self) -> dict[str, Any]:
        """The values without secrets, as files and pages have them."""
        return dict(redact(self.values))

    def is_in_file(self, path: str) -> bool:
        """Tell whether a file of the recipe, rather than the command line alone, has this key."""
        parts = path.split(".")
        places = (source.find_line(parts) for source in self.sources)
        return any(place is not None and place[0] == len(parts) for place in places)

    def locate_problem(self, path: str, message: str) -> Problem:
        """Say where in the files, or on the command line, a problem is."""
        return locate_problem(path, message, self.sources, self.overrides)


def compose(recipe: str, overrides: Sequence[str] = ()) -> ComposedRecipe:
    """Compose and validate a recipe. Raises RecipeError with everything that is wrong with it."""
    return Composer(recipe).compose(overrides)


class Composer:
    """Composes one recipe with overrides; files are merged once, a tenth of a second's work."""

    def __init__(self, recipe: str) -> None:
        self._recipe = recipe
        self._merged: dict[tuple[str, ...], tuple[tuple[Source, ...], DictConfig]] = {}

    def compose(self, overrides: Sequence[str]) -> ComposedRecipe:
        """Compose and validate. Raises RecipeError with everything that is wrong."""
        folder, name = find_recipe(self._recipe)
        refuse_overrides(overrides)
        values = [item for item in overrides if sets_a_value(item, (folder, find_recipes_folder()))]
        choices = tuple(item for item in overrides if item not in values)
        sources: list[Source] = []
        try:
            if choices in self._merged:
                sources += self._merged[choices][0]
            else:
                with start_hydra(folder) as loader:
                    config = _merge_files(loader, folder, name, choices, sources)
                self._merged[choices] = tuple(sources), config
            config = copy.deepcopy(self._merged[choices][1])
            set_values(config, values)
            plain = OmegaConf.to_container(config, resolve=False)
            _refuse_resolvers(plain, sources, overrides)
            resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except COMPOSITION_ERRORS as error:
            problem = explain_composition_error(error, folder, name, overrides, sources)
            raise RecipeError([problem]) from error
        return validate_values(resolved, name, tuple(sources), tuple(overrides))


def _merge_files(
    loader: Any, folder: Path, name: str, overrides: Sequence[str], sources: list[Source]
) -> DictConfig:
    """Merge a recipe's files and overrides into one config; add the files to `sources`.

    As Hydra's `compose` does, which would build the list of files a second time. Raises
    RecipeError, or one of COMPOSITION_ERRORS.
    """
    refuse_bad_defaults(folder, name)
    every = complete_overrides(name, overrides)
    parsed, repository = loader._parse_overrides_and_create_caching_repo(name, every)
    loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=False)
    files = create_defaults_list(repository, name, parsed, prepend_hydra=True, skip_missing=False)
    for entry in files.defaults:
        paths = (root / f"{entry.config_path}.yaml" for root in (folder, find_recipes_folder()))
        if path := next((path for path in paths if entry.config_path and path.is_file()), None):
            sources.append(Source(path, entry.package or ""))
    refuse_code(sources)
    refuse_octal_numbers(sources)
    refuse_keys_before_base(sources, folder / f"{name}.yaml")
    config: DictConfig = loader._compose_config_from_defaults_list(files.defaults, repository)
    OmegaConf.set_struct(config, True)
    loader._apply_overrides_to_config(files.config_overrides, config)
    with open_dict(config):
        del config["hydra"]
    return config


def _refuse_resolvers(
    values: Any, sources: Sequence[Source], overrides: Sequence[str], path: str = ""
) -> None:
    """Refuse `${oc.env:HOME}`: a recipe is data. `${a.b}` may point at another key."""
    if isinstance(values, str) and has_resolver(values):
        raise RecipeError([locate_problem(path, f"{values} {RUNS_NOTHING}", sources, overrides)])
    items = values.items() if isinstance(values, dict) else ()
    for key, value in enumerate(values) if isinstance(values, list) else items:
        _refuse_resolvers(value, sources, overrides, f"{path}.{key}" if path else str(key))


def validate_values(
    values: Any, name: str, sources: tuple[Source, ...], overrides: tuple[str, ...]
) -> ComposedRecipe:
    """Validate composed values. A recipe that names itself nothing is called `name`."""
    values = {key: value for key, value in dict(values).items() if key != "hydra"}
    has_name = bool(values.get("name"))
    values["name"] = values.get("name") or name
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = [
            (path, _reword_message(path, message, values, has_name=has_name))
            for path, message in explain_validation_error(error, Recipe, values)
        ]
        if any("did you mean 'pipeline'?" in message for _, message in problems):
            problems = [(path, message) for path, message in problems if path != "pipeline"]
        problems += _list_stage_problems(values, {path for path, _ in problems})
        located = [locate_problem(p, m, sources, overrides) for p, m in problems]
        raise RecipeError(located) from error
    return ComposedRecipe(recipe, values, sources, overrides)


def _list_stage_problems(values: Mapping[str, Any], wrong: set[str]) -> list[tuple[str, str]]:
    """List (path, message) of what is wrong in the stages and groups of a recipe that is invalid.

    `wrong` are the paths of what was reported of it: such a stage or group is not looked at again.
    """
    problems: list[tuple[str, str]] = []
    reported = wrong | {".".join(path.split(".")[:depth]) for path in wrong for depth in (1, 2)}
    groups = {key: values[key] for key in {"model", "training"} & values.keys() - reported}
    stages = {} if "stages" in wrong else values.get("stages", {})
    stages = {name: stage for name, stage in stages.items() if f"stages.{name}" not in reported}
    recipe = Recipe.model_construct(**groups, stages=stages)
    build_stages(recipe, lambda path, message: problems.append((path, message)))
    return problems


def _reword_message(path: str, message: str, values: Mapping[str, Any], *, has_name: bool) -> str:
    """Say what is wrong at the top of a recipe in words about recipes."""
    pipeline = values.get("pipeline")
    stages = pipeline if isinstance(pipeline, list) else []
    if path == "pipeline" and not pipeline:
        return "lists no stage; it has their names in order, such as [load, finetune, evaluate]"
    if path.startswith("pipeline.") and "expected a text" in message:
        return "expected the name of a stage, whose settings stand below `stages:`"
    if path == "name" and not has_name:
        return f"{message}: the file's name, where no `name:` is set"
    if path in stage_kinds() or path in stages:
        return "no such key at the top; a stage's settings stand below `stages:`"
    return message
