"""From a recipe's name and overrides to a validated `Recipe`. Stages are planned elsewhere.

Hydra composes; this module finds the recipe, turns every error of Hydra, YAML and pydantic into a
`Problem` with file, line and key path, and refuses what could run code or read the environment.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.checked_in import recipes_folder
from compressor.data.sources import Data
from compressor.errors import Problem, RecipeError, nearest
from compressor.launching import Launch
from compressor.objective import Objective
from compressor.search import Search

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*$"
STAGE_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class Recipe(BaseModel):
    """A composed recipe. `stages` stay mappings here: planning makes them typed, one by one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME, description="Names the folder of its runs.")
    description: str = Field("", description="What it is for, in a line or two.")
    seed: int = Field(0, ge=0, description="Of every random choice that a stage makes.")
    outputs: str = Field("outputs", description="Folder of store, runs and sweeps.")
    pipeline: list[str] = Field(min_length=1, description="Names of stages, in their order.")
    skip: list[str] = Field([], description="Names or kinds of stages left out of the pipeline.")
    stages: dict[str, dict[str, Any] | None] = Field(description="The settings of each stage.")
    model: dict[str, Any] = Field({}, description="Defaults of `load` stages (a `model/` group).")
    data: Data
    training: dict[str, Any] = Field({}, description="Defaults of stages that train.")
    launch: Launch = Field(default_factory=Launch)
    objective: Objective | None = Field(None, description="What makes a point of a sweep better.")
    search: Search | None = Field(None, description="How `run -m` looks for the best point.")


@lru_cache(maxsize=256)
def _tree(file: Path, changed: int, size: int) -> yaml.Node | None:
    """A file is parsed again only when it has changed: a sweep reads it for each point."""
    loaded: yaml.Node | None = yaml.compose(file.read_text(encoding="utf-8"))
    return loaded


@dataclass(frozen=True)
class Source:
    """One file that went into a composed recipe, and the package that its keys landed in."""

    file: Path
    package: str

    @cached_property
    def tree(self) -> yaml.Node | None:
        """The YAML nodes with their line numbers."""
        about = self.file.stat()
        return _tree(self.file, about.st_mtime_ns, about.st_size)

    def line(self, path: Sequence[str]) -> tuple[int, int] | None:
        """(how many parts of `path` this file has, line of the last of them), or None."""
        package = [part for part in self.package.split(".") if part and part != "_global_"]
        if list(path[: len(package)]) != package or self.tree is None:
            return None
        node, depth, line = self.tree, len(package), 1
        for part in path[len(package) :]:
            found = _child(node, part)
            if found is None:
                break
            line, node = found
            depth += 1
        reached = depth > len(package) or (package and len(path) == len(package))
        return (depth, line) if reached else None


def _child(node: yaml.Node, part: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        value = node.value[int(part)]
        return value.start_mark.line + 1, value
    return None


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


def locate(path: str, message: str, sources: Sequence[Source], overrides: Sequence[str]) -> Problem:
    """A problem with the place that last set `path`, or the longest part of it that is set."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if path == key or (path.startswith(f"{key}.") and key not in {"model", "data", "training"}):
            return Problem(path, f"{message} (set on the command line: {override})")
    best: tuple[int, int, Source] | None = None
    for source in sources:
        found = source.line(path.split("."))
        if found is not None and (best is None or found[0] >= best[0]):
            best = (*found, source)
    if best is None:
        return Problem(path, message, sources[-1].file if sources else None)
    return Problem(path, message, best[2].file, best[1])


def recipe_names() -> list[str]:
    """The names of the checked-in recipes; groups (`model/`, `data/` …) are not among them."""
    root = recipes_folder()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    groups = ("model/", "data/", "training/", "hydra/", "accelerate/")
    return sorted(name for name in names if not name.startswith(groups) and name != "base")


def find(recipe: str) -> tuple[Path, str]:
    """(config folder, config name) of a checked-in name or of a path to a user's own file."""
    path = Path(recipe).expanduser()
    root = recipes_folder()
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            if path.is_dir():
                raise RecipeError(f"{recipe!r} is a folder, not a recipe file")
            raise RecipeError(f"no recipe file {recipe!r} in {Path.cwd()}{_siblings(path)}")
        if path.suffix != ".yaml":
            raise RecipeError(f"{recipe}: a recipe's file name ends in .yaml")
        resolved = path.resolve()
        if resolved.is_relative_to(root.resolve()):
            return root, resolved.relative_to(root.resolve()).with_suffix("").as_posix()
        return resolved.parent, resolved.stem
    if (root / f"{recipe}.yaml").is_file() and recipe in recipe_names():
        return root, recipe
    raise RecipeError(
        f"no recipe {recipe!r}; {nearest(recipe, recipe_names())} "
        "(a recipe of your own is given as a path that ends in .yaml)"
    )


def _siblings(path: Path) -> str:
    there = [item.name for item in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"; {nearest(path.name, there)}" if there else ""


_SETS_A_KEY = re.compile(r"(?!hydra\.)\w+(\.\w+)+=")


def with_prefixes(overrides: Sequence[str]) -> list[str]:
    """A user's overrides for Hydra. A field that the recipe does not mention can be set as well as
    one that it does: whether it exists is for the typed stages to say, which know the nearest name.
    """
    return [f"++{item}" if _SETS_A_KEY.match(item) else item for item in overrides]


def hydra_overrides(name: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that Hydra gets: the user's own, and where checked-in groups are found."""
    # `pkg://` would import the folder; this only reads it.
    searchpath, job = quoted(f"{RecipeFolder.scheme()}://{recipes_folder()}"), quoted(name)
    return [
        *with_prefixes(overrides),
        f"hydra.searchpath=[{searchpath}]",
        f"++hydra.job.name={job}",
    ]


def quoted(text: str) -> str:
    """A string in Hydra's override grammar, whatever is in it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)
    return f"'{escaped}'"


COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    ValueError,  # a group set to null; a file that is not UTF-8
    RecursionError,  # a recipe among its own defaults
)


class RecipeFolder(FileConfigSource):
    """A folder of recipes. Of the folders in it only those with options to choose are groups.

    To Hydra each folder is one, and `outputs=elsewhere` would choose an option of the group
    `outputs` where runs have made a folder of that name beside the recipe.
    """

    _loaded: ClassVar[dict[tuple[str, int, int, str], ConfigResult]] = {}

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def load_config(self, config_path: str) -> ConfigResult:
        """A file is parsed again only when it has changed: a sweep composes it for each point."""
        file = Path(self.path, self._normalize_file_name(config_path))
        try:
            about = file.stat()
        except OSError:
            return super().load_config(config_path)
        key = (str(file), about.st_mtime_ns, about.st_size, self.provider)
        if key not in self._loaded:
            self._loaded[key] = super().load_config(config_path)
        return copy.deepcopy(self._loaded[key])

    def is_group(self, config_path: str) -> bool:
        return any(Path(self.path, config_path).glob("*.yaml"))


@contextmanager
def hydra_loader(folder: Path) -> Iterator[ConfigLoader]:
    """Hydra, with the recipes of one folder. There is one Hydra in a process at a time."""
    SourcesRegistry.instance().register(RecipeFolder)
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    path = create_config_search_path(f"{RecipeFolder.scheme()}://{folder.absolute()}")
    Hydra.create_main_hydra2(task_name="compressor", config_search_path=path)
    try:
        with warnings.catch_warnings():
            # Hydra warns of a `defaults` without `_self_`; the recipe's own keys then come last.
            warnings.simplefilter("ignore", UserWarning)
            yield GlobalHydra.instance().config_loader()
    finally:
        GlobalHydra.instance().clear()


def compose(recipe: str, overrides: Sequence[str] = ()) -> Composed:
    """Compose and validate a recipe. Raises RecipeError with everything that is wrong with it."""
    folder, name = find(recipe)
    given = hydra_overrides(name, overrides)
    with hydra_loader(folder) as loader:
        sources: list[Source] = []
        try:
            refuse_resolvers_in_defaults(folder, name, frozenset())
            sources = _sources(loader, name, given, folder)
            refuse_code(sources)
            values = container(hydra_compose(name, given), sources, overrides)
        except COMPOSITION_ERRORS as error:
            problem = compose_problem(error, folder, name, overrides, sources)
            raise RecipeError([problem]) from error
    return from_config(values, name, tuple(sources), tuple(overrides))


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
    values["name"] = values.get("name") or name
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        problems = validation_problems(error, Recipe, values)
        raise RecipeError([locate(p, m, sources, overrides) for p, m in problems]) from error
    if bad := [name for name in recipe.stages if not STAGE_NAME.match(name)]:
        message = "a stage's name has letters, digits and _ only, and begins with no digit"
        places = [locate(f"stages.{name}", message, sources, overrides) for name in bad]
        raise RecipeError(places)
    if ".." in recipe.name:
        raise RecipeError([locate("name", "must not climb out of outputs/", sources, overrides)])
    return Composed(recipe, values, sources, overrides)


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


_HYDRA_SETTINGS = frozenset({"sweeper", "launcher", "mode"})
"""What a recipe may say to Hydra: how a sweep goes. The rest can import code or read secrets."""


def refuse_code(sources: Sequence[Source]) -> None:
    """Raise RecipeError where a recipe's `hydra:` section has what could make Hydra run code."""
    problems = []
    for source in sources:
        if source.file.is_relative_to(recipes_folder()) or source.tree is None:
            continue
        package = [part for part in source.package.split(".") if part not in {"", "_global_"}]
        for path, value, line in _scalars(source.tree):
            full = [*package, *(part for part in path if part != "<<")]
            if full[:1] != ["hydra"] or len(full) < 2:
                continue
            overrides = full[1:3] == ["sweeper", "params"] and len(full) > 3
            own = overrides and full[3].lstrip("+~").startswith("hydra")
            if overrides and len(full) > 4:
                message = "expected a text with the values, such as '1,2'"
                problems.append(Problem(".".join(full[:4]), message, source.file, line))
            elif full[1] not in _HYDRA_SETTINGS or "_target_" in full or own or "${" in value:
                message = (
                    "is not allowed: a recipe runs nothing; under `hydra` it may set "
                    f"{', '.join(sorted(_HYDRA_SETTINGS))}, to plain values"
                )
                problems.append(Problem(".".join(full), message, source.file, line))
                break
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))


def refuse_resolvers_in_defaults(folder: Path, name: str, seen: frozenset[str]) -> None:
    """Raise RecipeError where a file's `defaults`, or those of a file beside it, run a resolver.

    Hydra resolves them while it looks for the files, before anything else can be checked.
    """
    path = folder / f"{name}.yaml"
    if name in seen or not path.is_file():
        return
    tree = Source(path, "").tree
    for keys, value, line in _scalars(tree) if tree is not None else ():
        if keys[:1] != ("defaults",):
            continue
        for text in (value, *keys):
            if _runs_something(text):
                message = f"{text} is not allowed: a recipe runs nothing and reads no environment"
                raise RecipeError([Problem("defaults", message, path, line)])
        for other in (value, "/".join((*(k for k in keys[1:] if not k.isdigit()), value))):
            refuse_resolvers_in_defaults(folder, other.lstrip("/"), seen | {name})


def _scalars(
    node: yaml.Node, above: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """(path of keys and indices, value, line) of every scalar of a YAML file, and of empty ends."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*above, str(key.value)))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _scalars(value, (*above, str(index)))
    else:
        yield above, str(node.value), node.start_mark.line + 1


_PLAIN = re.compile(r"\$\{[\w.\[\]]+\}")
"""`${a.b}`: the value of another key. Any other interpolation runs a resolver."""


def _runs_something(text: str) -> bool:
    return "${" in _PLAIN.sub("", text)


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
    elif isinstance(values, str) and _runs_something(values):
        message = f"{values} is not allowed: a recipe runs nothing and reads no environment"
        raise RecipeError([locate(path, message, sources, overrides)])


def compose_problem(
    error: Exception,
    folder: Path,
    name: str,
    overrides: Sequence[str],
    sources: Sequence[Source],
) -> Problem:
    """What a person needs of Hydra's, OmegaConf's or YAML's error."""
    if isinstance(error, RecursionError):
        return Problem("defaults", "the recipe is among its own defaults", folder / f"{name}.yaml")
    if isinstance(error, UnicodeDecodeError):
        return Problem("", "not UTF-8 text", folder / f"{name}.yaml")
    cause = error.__cause__
    while cause is not None and not isinstance(error, yaml.MarkedYAMLError):
        error, cause = (cause, cause.__cause__) if isinstance(cause, Exception) else (error, None)
    if isinstance(error, yaml.MarkedYAMLError):
        return _yaml_problem(error, folder, name)
    if isinstance(error, OverrideParseException):
        given = error.override.removeprefix("++")  # which `with_prefixes` puts there
        expected = "expected key=value, where a value with signs such as ~ or = is quoted"
        return Problem("", f"cannot read the override {given!r}: {expected}: 'key=\"~/x\"'")
    text = str(error)
    if setting := re.search(r"Key '[^']*' .*\s+full_key: (hydra[./]\S+)", text):
        message = _missing_setting(setting[1], getattr(error, "parent_node", None))
        return locate(setting[1], message, [Source(folder / f"{name}.yaml", "")], overrides)
    if "must be a DictConfig" in text:
        return Problem(
            "", "expected keys and values at the top, not a list", folder / f"{name}.yaml"
        )
    if isinstance(error, MissingConfigException):
        return _missing_config(error, folder, name)
    if struct := re.search(r"Key '([^']*)' is not in struct\s+full_key: (\S+)", text):
        key, full = struct[1], struct[2]
        valid = _valid_keys(folder, name, full.rpartition(".")[0])
        return Problem(full, f"no such key in this recipe; {nearest(key, valid)}")
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = "must be set" if isinstance(error, MissingMandatoryValue) else text.splitlines()[0]
        return locate(str(error.full_key), text, sources, overrides)
    if isinstance(error, ConfigCompositionException | HydraException):
        return Problem("", " ".join(text.split()), folder / f"{name}.yaml")
    return Problem("", " ".join(text.split()), folder / f"{name}.yaml")


def _missing_setting(path: str, beside: Any) -> str:
    """What to say of a setting of Hydra's that is not among those `beside` it, where known."""
    parent, _, name = path.rpartition(".")
    if "/" in path:
        return f"no such choice; {nearest(path, ['hydra/launcher'])}"
    known = {"hydra": _HYDRA_SETTINGS, "hydra.sweeper": {"params"}}.get(parent, set())
    if OmegaConf.is_dict(beside):
        known = {str(key) for key in beside if key != "_target_"}
        if parent == "hydra.launcher" and not known:
            return "the default launcher has no settings: choose one: hydra/launcher=processes"
    return f"no such setting {name!r}; {nearest(name, known)}" if known else "no such setting"


def _yaml_problem(error: yaml.MarkedYAMLError, folder: Path, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = f"not valid YAML: {error.problem or error.context}"
    file: Path | None = folder / f"{name}.yaml"
    if mark is not None and mark.name and Path(mark.name).is_file():
        file = Path(mark.name)
    return Problem("", message, file, mark.line + 1 if mark is not None else None)


def _missing_config(error: MissingConfigException, folder: Path, name: str) -> Problem:
    """A group's option or a parent recipe that is not there."""
    missing = error.missing_cfg_file or ""
    group, _, option = missing.lstrip("/").rpartition("/")
    roots = {folder, recipes_folder()}
    options = {path.stem for root in roots for path in (root / group).glob("*.yaml")} - {"base"}
    what = f"{group}={option}" if group else option
    hint = nearest(option, options) if options else f"no group {group!r}"
    file = folder / f"{name}.yaml"
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if option and option in line:
            return Problem("defaults", f"no {what!r}; {hint}", file, number)
    return Problem("", f"no {what!r}; {hint}")


def _valid_keys(folder: Path, name: str, parent: str) -> list[str]:
    """The keys of `parent` in the recipe as it is without overrides."""
    config = hydra_compose(name, hydra_overrides(name, []))
    node = OmegaConf.select(config, parent) if parent else config
    return [str(key) for key in node] if OmegaConf.is_dict(node) else []


def validation_problems(
    error: ValidationError, model: type[BaseModel], values: Any
) -> list[tuple[str, str]]:
    """(key path, message) of each of pydantic's errors, in a recipe's words."""
    problems = []
    for item in error.errors(include_url=False):
        location = _real_location(item["loc"], values)
        path, kind = ".".join(map(str, location)), item["type"]
        if kind == "extra_forbidden":
            owner = _field_names(model, item["loc"][:-1])
            problems.append((path, f"no such key; {nearest(str(item['loc'][-1]), owner)}"))
        elif kind == "missing":
            problems.append((path, "is missing, and has no default"))
        elif kind.startswith("union_tag"):
            expected = item.get("ctx", {}).get("expected_tags", "")
            tag = str(item.get("ctx", {}).get("tag", ""))
            names = re.findall(r"'([^']+)'", str(expected))
            hint = nearest(tag, names) if names else "expected a number or a mapping"
            problems.append((path, f"{tag!r} is not valid; {hint}" if tag else hint))
        else:
            message = item["msg"].removeprefix("Value error, ")
            shown = repr(item["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "…"
            problems.append((path, f"{message[0].lower()}{message[1:]}, got {shown}"))
    return list(dict.fromkeys(problems))


def _real_location(location: Sequence[str | int], values: Any) -> list[str | int]:
    """A location without the union tags that pydantic puts between real keys."""
    real: list[str | int] = []
    node, untagged = values, None
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(node, Mapping) and node.get("source") == part and untagged is not node:
            untagged = node  # the tag of a union of data sources, which may be a key of it too
            continue
        if isinstance(node, Mapping) and part in node:
            node = node[part]
        elif isinstance(node, Sequence) and not isinstance(node, str) and isinstance(part, int):
            node = node[part] if part < len(node) else None
        elif not (last and isinstance(node, Mapping)):
            continue
        real.append(part)
    return real


def _field_names(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The fields that are valid at a location below `model`."""
    schema: Any = model.model_json_schema()
    definitions = schema.get("$defs", {})

    def open_reference(node: Any) -> Any:
        while "$ref" in node:
            node = definitions[node["$ref"].rpartition("/")[2]]
        return node

    node = schema
    for part in location:
        node = open_reference(node)
        if part in node.get("properties", {}):
            node = node["properties"][part]
        elif mapping := node.get("discriminator", {}).get("mapping", {}):
            node = {"$ref": mapping[part]} if part in mapping else node
        if options := [option for option in node.get("anyOf", []) if "$ref" in option]:
            node = options[0]  # a union, or a part that may be left out
    return list(open_reference(node).get("properties", {}))


_SECRET_KEY = re.compile(r"(_token$|^token$|secret|password|api_?key|credential)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")


def redacted(value: Any, key: str = "") -> Any:
    """A value as it may be written to a file: what looks like a secret is replaced."""
    if isinstance(value, dict):
        return {name: redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [redacted(item, key) for item in value]
    if isinstance(value, str):
        return "<redacted>" if _SECRET_KEY.search(key) else _SECRET_VALUE.sub("<redacted>", value)
    return value
