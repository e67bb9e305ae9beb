"""Hydra as it is used here: folders of recipes, overrides, and its errors in plain words."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import (
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from compressor.errors import Problem, RecipeError, nearest
from compressor.files import recipes_folder
from compressor.printed import brief
from compressor.recipe_files import HYDRA_SETTINGS, Source, locate, runs_something, tree
from compressor.yaml_limits import text_of

_SETS_A_KEY = re.compile(r"(?!hydra\.)\w+(\.\w+)+=")


def with_prefixes(overrides: Sequence[str]) -> list[str]:
    """A user's overrides for Hydra. A field that the recipe does not mention can be set as well as
    one that it does: whether it exists is for the typed stages to say, which know the nearest name.
    """
    return [f"++{item}" if _SETS_A_KEY.match(item) else item for item in overrides]


@lru_cache(maxsize=100_000)
def parsed(override: str) -> Override | None:
    """An override in Hydra's grammar; None where it is in none, which composing reports."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


_HYDRAS = frozenset(HydraConf.__dataclass_fields__) - HYDRA_SETTINGS


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Raise RecipeError for an override without a key, and for one that would have Hydra run code
    or read the environment. What Hydra cannot read at all, composing reports.
    """
    for item in overrides:
        if (found := parsed(item)) is None:
            continue
        key = str(found.key_or_group)
        if not key:
            raise RecipeError(f"cannot read the override {item!r}: expected key=value")
        first, *rest = re.split(r"[./]", key)
        if first != "hydra" or not rest:
            continue
        if rest[0] in _HYDRAS or "_target_" in item or runs_something(item):
            raise RecipeError(
                f"{item!r} is not allowed: Hydra runs nothing here but a sweep; of its settings "
                "there are hydra/launcher=… and those of the launcher, hydra.launcher.…=…"
            )


def hydra_overrides(name: str, overrides: Sequence[str]) -> list[str]:
    """The overrides that Hydra gets: the user's own, and where checked-in groups are found."""
    # `pkg://` would import the folder; this only reads it.
    searchpath, job = quoted(f"{RecipeFolder.scheme()}://{recipes_folder()}"), quoted(name)
    return [
        *with_prefixes(overrides),
        f"hydra.searchpath=[{searchpath}]",
        f"++hydra.job.name={job}",
    ]


def sets_a_value(override: str, roots: Sequence[Path]) -> bool:
    """Whether an override leaves the recipe's files as they are, which are below `roots`, and sets
    or deletes something of what they merge into. In doubt: no.
    """
    found = parsed(override)
    if found is None or found.is_sweep_override() or found.package is not None:
        return False
    key = str(found.key_or_group)
    if "/" in key or key.partition(".")[0] == "hydra":
        return False
    groups = (RecipeFolder("", f"{RecipeFolder.scheme()}://{root}") for root in roots)
    return not any(each.is_group(key) for each in groups)


def set_values(config: DictConfig, overrides: Sequence[str]) -> None:
    """Apply overrides that `sets_a_value` has found to be such, as Hydra does after it has merged
    the files. Raises one of COMPOSITION_ERRORS.
    """
    given = [each for item in with_prefixes(overrides) if (each := parsed(item)) is not None]
    ConfigLoaderImpl._apply_overrides_to_config(given, config)


def quoted(text: str) -> str:
    """A string in Hydra's override grammar, whatever is in it."""
    escaped = re.sub(r"(\\*)'", r"\1\1\'", text)
    return f"'{escaped}'"


COMPOSITION_ERRORS = (
    HydraException,
    OmegaConfBaseException,
    yaml.YAMLError,
    OSError,
    AssertionError,  # Hydra's, of an entry of `defaults` that is neither a text nor `group: option`
    ValueError,  # a group set to null; a file that is not UTF-8
    RecursionError,  # a thousand recipes of which each extends the next
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
        tree(file)  # refuses what would be too much for the loader
        key = (str(file), about.st_mtime_ns, about.st_size, self.provider)
        if key not in self._loaded:
            loaded = super().load_config(config_path)
            # To Hydra a byte order mark is a part of the first line, such as `# @package _global_`.
            loaded.header = self._get_header_dict(text_of(file))
            self._loaded[key] = loaded
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


def compose_problem(
    error: Exception,
    folder: Path,
    name: str,
    overrides: Sequence[str],
    sources: Sequence[Source],
) -> Problem:
    """What a person needs of Hydra's, OmegaConf's or YAML's error."""
    if isinstance(error, RecursionError):
        message = "too many levels: of `defaults` that extend each other, or of values"
        return Problem("", message, folder / f"{name}.yaml")
    if isinstance(error, AssertionError):
        message = "an entry that is neither a recipe's name nor `group: option`"
        return Problem("defaults", message, folder / f"{name}.yaml")
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
    if (problem := _list_problem(text, folder / f"{name}.yaml", sources, overrides)) is not None:
        return problem
    if isinstance(error, MissingConfigException):
        return _missing_config(error, folder, name)
    if struct := re.search(r"Key '([^']*)' is not in struct\s+full_key: (\S+)", text):
        return _no_such_key(struct[1], struct[2], hydra_compose(name, hydra_overrides(name, [])))
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = "must be set" if isinstance(error, MissingMandatoryValue) else text.splitlines()[0]
        return locate(str(error.full_key), text, sources, overrides)
    return Problem("", brief(" ".join(text.split())), folder / f"{name}.yaml")


def _no_such_key(key: str, full: str, config: DictConfig) -> Problem:
    """A key of an override that the recipe has not, with where it may be meant."""
    dotted = full.replace("/", ".")
    hint = _longer(key, config) if "." not in full else None
    if dotted != full and OmegaConf.select(config, dotted) is not None:
        hint = f"did you mean {dotted!r}?"
    if full in OmegaConf.load(recipes_folder() / "base.yaml"):
        hint = "`/base`, which has it, is not among the `defaults`: put it first"
    valid = _valid_keys(config, full.rpartition(".")[0])
    return Problem(full, f"no such key in this recipe; {hint or nearest(key, valid)}")


def _list_problem(
    text: str, file: Path, sources: Sequence[Source], overrides: Sequence[str]
) -> Problem | None:
    """A list where keys and values are expected, or the other way round: OmegaConf does not say
    where it is, but another file has the other of the two.
    """
    if "must be a DictConfig" in text:
        return Problem("", "expected keys and values at the top, not a list", file)
    if "Cannot merge" not in text or "ListConfig" not in text:
        return None
    seen: dict[str, str] = {}
    for source in sources:
        above = [part for part in source.package.split(".") if part and part != "_global_"]
        for path, kind in _collections(source.tree, ".".join(above)):
            if seen.setdefault(path, kind) != kind:
                return locate(path, f"expected {seen[path]}, got {kind}", sources, overrides)
    return None


def _collections(node: yaml.Node | None, path: str) -> Iterator[tuple[str, str]]:
    """The path of each mapping and list of a file, with which of the two it is, in words."""
    if isinstance(node, yaml.SequenceNode):
        yield path, "a list"
    elif isinstance(node, yaml.MappingNode):
        yield path, "keys and values"
        for key, value in node.value:
            yield from _collections(value, f"{path}.{key.value}" if path else str(key.value))


def _missing_setting(path: str, beside: Any) -> str:
    """What to say of a setting of Hydra's that is not among those `beside` it, where known."""
    parent, _, name = path.rpartition(".")
    if "/" in path:
        return f"no such choice; {nearest(path, ['hydra/launcher'])}"
    known = {"hydra": HYDRA_SETTINGS, "hydra.sweeper": {"params"}}.get(parent, set())
    if OmegaConf.is_dict(beside):
        known = {str(key) for key in beside if key != "_target_"}
        if parent == "hydra.launcher" and not known:
            return "the default launcher has no settings: choose one: hydra/launcher=processes"
    return f"no such setting {name!r}; {nearest(name, known)}" if known else "no such setting"


def _yaml_problem(error: yaml.MarkedYAMLError, folder: Path, name: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = brief(f"not valid YAML: {_yaml_cure(error)}")
    file: Path | None = folder / f"{name}.yaml"
    if mark is not None and mark.name and Path(mark.name).is_file():
        file = Path(mark.name)
    return Problem("", message, file, mark.line + 1 if mark is not None else None)


def _yaml_cure(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, and what to look for: YAML notices many a mistake some lines after it."""
    problem, begun = error.problem or error.context or "", error.context_mark
    if "'\\t'" in problem:
        return "a tab; YAML is indented with spaces alone"
    flow = re.search(r"flow (sequence|mapping)", error.context or "")
    if "quoted scalar" in (error.context or "") and begun is not None:
        return f"the quote that opens in line {begun.line + 1} is not closed"
    if problem == "but found another document":
        return "a second document begins here; a recipe is one, without `---`"
    if flow is not None and begun is not None:
        opened, closed = "[]" if flow[1] == "sequence" else "{}"
        return f"the {opened!r} of line {begun.line + 1} is not closed by {closed!r} before this"
    if problem == "mapping values are not allowed here":
        cure = "quote a text that has ': ' in it, or give the line before its ':'"
        return f"a key that cannot stand here; {cure}"
    if "could not find expected ':'" in problem:
        return "the line before this is no `key: value`; it lacks its ':'"
    if problem.startswith("expected <block end>"):
        return f"{problem}; is this line indented as those of the same list or mapping are?"
    return problem


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


def _valid_keys(config: DictConfig, parent: str) -> list[str]:
    """The keys of `parent` in a recipe."""
    node = OmegaConf.select(config, parent) if parent else config
    return [str(key) for key in node] if OmegaConf.is_dict(node) else []


def _longer(key: str, config: DictConfig) -> str | None:
    """Where a key that somebody gave alone, such as `epochs`, stands in the recipe, if it does."""
    places = list(_paths(OmegaConf.to_container(config, resolve=False), key))
    if not places:
        return None
    return f"did you mean {' or '.join(places[:3])}{' …' if len(places) > 3 else ''}?"


def _paths(node: Any, key: str, above: str = "") -> Iterator[str]:
    """The dotted paths at which `key` stands below a node."""
    for name, value in node.items() if isinstance(node, dict) else ():
        path = f"{above}.{name}" if above else str(name)
        if path == "hydra":
            continue
        if name == key:
            yield path
        yield from _paths(value, key, path)
