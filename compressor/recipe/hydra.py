"""Use Hydra: load folders of recipes, apply overrides, and explain its errors in plain words."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
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
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from compressor.core.errors import Problem, RecipeError, nearest
from compressor.core.files import find_recipes_folder
from compressor.core.printing import shorten
from compressor.recipe.files import HYDRA_SETTINGS, Source, has_resolver, locate_problem

_SETS_A_KEY = re.compile(r"(?!hydra\.)\w+(\.\w+)+=")
_FORBIDDEN_SETTINGS = frozenset(HydraConf.__dataclass_fields__) - HYDRA_SETTINGS


def allow_new_keys(overrides: Iterable[str]) -> list[str]:
    """Let overrides set fields that the recipe does not mention: typed stages know what exists."""
    return [f"++{item}" if _SETS_A_KEY.match(item) else item for item in overrides]


@lru_cache(maxsize=100_000)
def parse_override(override: str) -> Override | None:
    """Parse an override in Hydra's grammar; give None where it has an error, as composing says."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:
        return None


def refuse_overrides(overrides: Sequence[str]) -> None:
    """Raise RecipeError for an override without a key, or by which Hydra would run code."""
    for item in overrides:
        override = parse_override(item)
        if override is None:
            continue
        key = str(override.key_or_group)
        if not key:
            raise RecipeError(f"cannot read the override {item!r}: expected key=value")
        first, *rest = re.split(r"[./]", key)
        runs = "_target_" in item or has_resolver(item)
        if first == "hydra" and rest and (runs or rest[0] in _FORBIDDEN_SETTINGS):
            raise RecipeError(
                f"{item!r} is not allowed: Hydra runs nothing here but a sweep; of its settings "
                "there are hydra/launcher=… and those of the launcher, hydra.launcher.…=…"
            )


def complete_overrides(name: str, overrides: Sequence[str]) -> list[str]:
    """Add to a user's overrides where checked-in groups are, and the recipe's name."""
    # `pkg://` would import the folder; this only reads it.
    path = quote_text(f"{RecipeFolder.scheme()}://{find_recipes_folder()}")
    added = [f"hydra.searchpath=[{path}]", f"++hydra.job.name={quote_text(name)}"]
    return [*allow_new_keys(overrides), *added]


def sets_a_value(override: str, roots: Sequence[Path]) -> bool:
    """Tell whether an override sets or deletes a value, and chooses no files (below `roots`)."""
    parsed = parse_override(override)
    if parsed is None or parsed.is_sweep_override() or parsed.package is not None:
        return False
    key = str(parsed.key_or_group)
    if "/" in key or key.partition(".")[0] == "hydra":
        return False
    groups = (RecipeFolder("", f"{RecipeFolder.scheme()}://{root}") for root in roots)
    return not any(folder.is_group(key) for folder in groups)


def set_values(config: DictConfig, overrides: Sequence[str]) -> None:
    """Apply overrides that set values, as Hydra does. Raises one of COMPOSITION_ERRORS."""
    parsed = map(parse_override, allow_new_keys(overrides))
    ConfigLoaderImpl._apply_overrides_to_config([item for item in parsed if item], config)


def quote_text(text: str) -> str:
    """Write a string in Hydra's override grammar, whatever is in it."""
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

_OF_THE_FILE = {
    RecursionError: ("", "too many levels: of `defaults` that extend each other, or of values"),
    AssertionError: ("defaults", "an entry that is neither a recipe's name nor `group: option`"),
    UnicodeDecodeError: ("", "not UTF-8 text"),
}


class RecipeFolder(FileConfigSource):
    """A folder of recipes. Of the folders in it only those with options to choose are groups:
    `outputs`, which runs make beside the recipe, is none.
    """

    _loaded: ClassVar[dict[tuple[str, int, int, str], ConfigResult]] = {}

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def available(self) -> bool:
        return Path(self.path).is_dir()

    def load_config(self, config_path: str) -> ConfigResult:
        """Parse a file, and again only when it has changed: a sweep composes it for each point."""
        file = Path(self.path, self._normalize_file_name(config_path))
        if not file.is_file():
            return super().load_config(config_path)
        about = file.stat()
        key = (str(file), about.st_mtime_ns, about.st_size, self.provider)
        if key not in self._loaded:
            try:
                loaded = super().load_config(config_path)
            except (AttributeError, KeyError):  # PyYAML's own, of `!!bool x` and `!!timestamp x`
                message = "a value does not fit the YAML tag before it, such as !!bool; remove it"
                raise ValueError(message) from None
            # To Hydra a byte order mark is a part of the first line, such as `# @package _global_`.
            loaded.header = self._get_header_dict(file.read_text(encoding="utf-8-sig"))
            self._loaded[key] = loaded
        return copy.deepcopy(self._loaded[key])

    def is_group(self, config_path: str) -> bool:
        return any(Path(self.path, config_path).glob("*.yaml"))


@contextmanager
def start_hydra(folder: Path) -> Iterator[ConfigLoader]:
    """Start Hydra with the recipes of one folder. There is one Hydra in a process at a time."""
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


def explain_composition_error(
    error: Exception, folder: Path, name: str, overrides: Sequence[str], sources: Sequence[Source]
) -> Problem:
    """Say what a person needs to know of an error of Hydra, OmegaConf or YAML."""
    file = folder / f"{name}.yaml"
    for kind, (path, message) in _OF_THE_FILE.items():
        if isinstance(error, kind):
            return Problem(path, message, file)
    while not isinstance(error, yaml.MarkedYAMLError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, yaml.MarkedYAMLError):
        return _explain_yaml_error(error, file)
    if isinstance(error, OverrideParseException):
        override = error.override.removeprefix("++")  # which `allow_new_keys` puts there
        expected = "expected key=value, where a value with signs such as ~ or = is quoted"
        return Problem("", f"cannot read the override {override!r}: {expected}: 'key=\"~/x\"'")
    text = str(error)
    if setting := re.search(r"Key '[^']*' .*\s+full_key: (hydra[./]\S+)", text):
        message = _explain_setting(setting[1], getattr(error, "parent_node", None))
        return locate_problem(setting[1], message, [Source(file, "")], overrides)
    if "must be a DictConfig" in text:
        return Problem("", "expected keys and values at the top, not a list", file)
    if "Cannot merge" in text and (problem := _find_list_for_keys(sources, overrides)):
        return problem
    if isinstance(error, MissingConfigException):
        return _explain_missing_config(error, folder, file)
    if struct := re.search(r"Key '([^']*)' is not in struct\s+full_key: (\S+)", text):
        with start_hydra(folder):
            config = hydra_compose(name, complete_overrides(name, []))
        hint = _hint_key(struct[1], struct[2], config)
        return Problem(struct[2], f"no such key in this recipe; {hint}")
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = "must be set" if isinstance(error, MissingMandatoryValue) else text.splitlines()[0]
        return locate_problem(str(error.full_key), text, sources, overrides)
    return Problem("", shorten(" ".join(text.split())), file)


def _hint_key(key: str, path: str, config: DictConfig) -> str:
    """Say what a key may mean that an override sets, and the recipe does not have."""
    dotted = path.replace("/", ".")
    if path in OmegaConf.load(find_recipes_folder() / "base.yaml"):
        return "`/base`, which has it, is not among the `defaults`: put it first"
    if dotted != path and OmegaConf.select(config, dotted) is not None:
        return f"did you mean {dotted!r}?"
    if dotted == key:
        values = OmegaConf.to_container(config, resolve=False)
        if places := list(_find_paths(values, key)):
            return f"did you mean {' or '.join(places[:3])}{' …' if len(places) > 3 else ''}?"
    parent = path.rpartition(".")[0]
    node = OmegaConf.select(config, parent) if parent else config
    return nearest(key, map(str, node) if OmegaConf.is_dict(node) else ())


def _find_paths(node: Any, key: str, above: str = "") -> Iterator[str]:
    """Yield the dotted paths at which `key` stands below a node."""
    for name, value in node.items() if isinstance(node, dict) else ():
        path = f"{above}.{name}" if above else str(name)
        yield from [path] if name == key else []
        yield from _find_paths(value, key, path)


def _find_list_for_keys(sources: Sequence[Source], overrides: Sequence[str]) -> Problem | None:
    """Find a list where another file has keys and values, which OmegaConf cannot merge."""
    kinds: dict[str, str] = {}
    for source in sources:
        for path, kind in _list_collections(source.tree, ".".join(source.above)):
            if (expected := kinds.setdefault(path, kind)) != kind:
                message = f"expected {expected}, got {kind}"
                return locate_problem(path, message, sources, overrides)
    return None


def _list_collections(node: yaml.Node | None, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path of each mapping and list of a file, with which of the two it is, in words."""
    if isinstance(node, yaml.SequenceNode):
        yield path, "a list"
    elif isinstance(node, yaml.MappingNode):
        yield path, "keys and values"
        for key, value in node.value:
            yield from _list_collections(value, f"{path}.{key.value}" if path else str(key.value))


def _explain_setting(path: str, siblings: Any) -> str:
    """Say what is wrong with a setting of Hydra's that is not among its `siblings`, where known."""
    parent, _, name = path.rpartition(".")
    if "/" in path:
        return f"no such choice; {nearest(path, ['hydra/launcher'])}"
    known = {"hydra": HYDRA_SETTINGS, "hydra.sweeper": {"params"}}.get(parent, set())
    if OmegaConf.is_dict(siblings):
        known = {str(key) for key in siblings if key != "_target_"}
        if parent == "hydra.launcher" and not known:
            return "the default launcher has no settings: choose one: hydra/launcher=processes"
    return f"no such setting {name!r}; {nearest(name, known)}" if known else "no such setting"


def _explain_yaml_error(error: yaml.MarkedYAMLError, file: Path) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = shorten(f"not valid YAML: {_cure_yaml(error)}")
    if mark is None:
        return Problem("", message, file)
    is_file = bool(mark.name) and Path(mark.name).is_file()
    return Problem("", message, Path(mark.name) if is_file else file, mark.line + 1)


_YAML_CURES = {
    "'\\t'": "a tab; YAML is indented with spaces alone",
    "but found another document": "a second document begins here; a recipe is one, without `---`",
    "mapping values are not allowed here": "a key that cannot stand here; quote a text that has "
    "': ' in it, or give the line before its ':'",
    "could not find expected ':'": "the line before this is no `key: value`; it lacks its ':'",
}


def _cure_yaml(error: yaml.MarkedYAMLError) -> str:
    """Say what is wrong, and what to look for: YAML notices many a mistake some lines after it."""
    problem, context = error.problem or error.context or "", error.context or ""
    line = error.context_mark.line + 1 if error.context_mark is not None else 0
    if "quoted scalar" in context and line:
        return f"the quote that opens in line {line} is not closed"
    for words, cure in _YAML_CURES.items():
        if words in problem:
            return cure
    if line and (flow := re.search(r"flow (sequence|mapping)", context)):
        opening, closing = "[]" if flow[1] == "sequence" else "{}"
        return f"the {opening!r} of line {line} is not closed by {closing!r} before this"
    if problem.startswith("expected <block end>"):
        return f"{problem}; is this line indented as those of the same list or mapping are?"
    return problem


def _explain_missing_config(error: MissingConfigException, folder: Path, file: Path) -> Problem:
    """Name the group's option or the parent recipe that is not there, and the nearest one."""
    group, _, option = (error.missing_cfg_file or "").lstrip("/").rpartition("/")
    what = f"{group}={option}" if group else option
    roots = {folder, find_recipes_folder()}
    options = {path.stem for root in roots for path in (root / group).glob("*.yaml")} - {"base"}
    message = f"no {what!r}; {nearest(option, options) if options else f'no group {group!r}'}"
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if option and option in line:
            return Problem("defaults", message, file, number)
    return Problem("", message)
