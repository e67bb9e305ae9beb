"""Find recipes, tell where each of their keys was written, and refuse what no file may say."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from compressor.core.errors import Problem, RecipeError, nearest
from compressor.core.files import expand_home, find_recipes_folder

HYDRA_SETTINGS = frozenset({"sweeper", "launcher", "mode"})
"""What a recipe may set of Hydra's: how a sweep goes. The rest can import code or read secrets."""
RUNS_NOTHING = "is not allowed: a recipe runs nothing and reads no environment"
_GROUPS = ("model", "data", "training")
_LAUNCHER_TEXTS = frozenset((
    "partition", "qos", "comment", "constraint", "exclude", "gres", "account", "name",
    "mem_per_gpu", "mem_per_cpu", "prefer",
))  # fmt: skip
"""A launcher's settings that are texts and no more. Others are commands, which SLURM's jobs and
Ray's workers run, or folders that are written to.
"""
_NO_TEXT = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?|true|false|null|~?", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")
"""`${a.b}`: the value of another key. Any other interpolation runs a resolver."""
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """One file that went into a composed recipe, and the package that its keys landed in."""

    file: Path
    package: str

    @property
    def above(self) -> Keys:
        """The keys of the recipe below which the file's own are."""
        return tuple(part for part in self.package.split(".") if part not in ("", "_global_"))

    @cached_property
    def tree(self) -> yaml.Node | None:
        """The YAML nodes with their line numbers."""
        about = self.file.stat()
        return _parse_file(self.file, about.st_mtime_ns, about.st_size)

    def list_scalars(self) -> list[tuple[Keys, yaml.ScalarNode]]:
        """List each scalar of the file, with the recipe's keys that lead to it."""
        return list(_walk_scalars(self.tree, self.above))

    def find_line(self, path: Sequence[str]) -> tuple[int, int] | None:
        """Give (how many parts of `path` this file has, line of the last of them), or None."""
        above = self.above
        if tuple(path[: len(above)]) != above or self.tree is None:
            return None
        node, depth, line = self.tree, len(above), 1
        for part in path[len(above) :]:
            children = {key: (number, child) for key, number, child in _list_children(node)}
            if part not in children:
                break
            line, node = children[part]
            depth += 1
        reached = depth > len(above) or (above and len(path) == len(above))
        return (depth, line) if reached else None


@lru_cache(maxsize=256)
def _parse_file(file: Path, changed: int, size: int) -> yaml.Node | None:
    """Parse a file, and again only when it has changed: a sweep reads it for each point."""
    node: yaml.Node | None = yaml.compose(file.read_text(encoding="utf-8-sig"))
    return node


def _list_children(node: yaml.Node | None) -> Iterator[tuple[str, int, yaml.Node]]:
    """Yield key or place, line, and node of what a mapping or a list has."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield str(key.value), key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield str(index), value.start_mark.line + 1, value


def _walk_scalars(node: yaml.Node | None, above: Keys) -> Iterator[tuple[Keys, yaml.ScalarNode]]:
    if isinstance(node, yaml.ScalarNode):
        yield above, node
    for key, _, child in _list_children(node):
        yield from _walk_scalars(child, (*above, key))


def locate_problem(
    path: str, message: str, sources: Sequence[Source], overrides: Sequence[str]
) -> Problem:
    """Name the place that last set `path`, or the longest part of it that is set."""

    def on_the_command_line(override: str) -> Problem:
        return Problem(path, f"{message} (set on the command line: {override})")

    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].replace("/", ".")
        if path == key or (path.startswith(f"{key}.") and key not in _GROUPS):
            return on_the_command_line(override)
    parts = path.split(".")
    places = [
        (place[0], index, place[1])
        for index, source in enumerate(sources)
        if (place := source.find_line(parts)) is not None
    ]
    depth, index, line = max(places, default=(0, -1, 0))
    if depth < len(parts):  # in no file, or only what is above it
        for override in overrides:
            if override.lstrip("+~").startswith(f"{path}."):
                return on_the_command_line(override)
    if (
        not places or sources[index].file == find_recipes_folder() / "base.yaml"
    ):  # which a recipe fills
        return Problem(path, message, sources[-1].file if sources else None)
    return Problem(path, message, sources[index].file, line)


def list_recipes() -> list[str]:
    """List the checked-in recipes; groups (`model/`, `data/` …) are not among them."""
    root = find_recipes_folder()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    groups = ("model/", "data/", "training/", "hydra/", "accelerate/")
    return sorted(name for name in names if not name.startswith(groups) and name != "base")


def find_recipe(recipe: str) -> tuple[Path, str]:
    """Give (config folder, config name) of a checked-in name or of a file's path."""
    path, root = expand_home(recipe), find_recipes_folder()
    is_name = path.suffix not in {".yaml", ".yml"} and not path.is_file()
    if is_name and recipe in list_recipes():
        return root, recipe
    if path.is_dir():
        raise RecipeError(f"{recipe!r} is a folder, not a recipe file")
    if is_name:
        file = path.with_name(f"{path.name}.yaml")
        hint = f"did you mean '{file}'?" if file.is_file() else nearest(recipe, list_recipes())
        cure = "(a recipe of your own is given as a path that ends in .yaml)"
        raise RecipeError(f"no recipe {recipe!r}; {hint} {cure}")
    if not path.is_file():
        names = [item.name for item in path.parent.glob("*.yaml")]
        hint = f"; {nearest(path.name, names)}" if names else ""
        raise RecipeError(f"no recipe file {recipe!r} in {Path.cwd()}{hint}")
    if path.suffix != ".yaml":
        raise RecipeError(f"{recipe}: a recipe's file name ends in .yaml")
    resolved = path.resolve()
    if resolved.is_relative_to(root.resolve()):
        return root, resolved.relative_to(root.resolve()).with_suffix("").as_posix()
    return resolved.parent, resolved.stem


def has_resolver(text: str) -> bool:
    """Tell whether a text has an interpolation that would run something, such as `${oc.env:X}`."""
    return "${" in _REFERENCE.sub("", text)


def refuse_code(sources: Sequence[Source]) -> None:
    """Raise RecipeError where a recipe's `hydra:` section has what could make Hydra run code."""
    problems = []
    for source in sources:
        if source.file.is_relative_to(find_recipes_folder()):
            continue
        for path, node in source.list_scalars():
            keys = [key for key in path if key != "<<"]
            if keys[:1] == ["hydra"] and (message := _judge_setting(keys, str(node.value))):
                place = ".".join(keys[:4])
                problems.append(Problem(place, message, source.file, node.start_mark.line + 1))
    _raise_problems(problems)


def _judge_setting(keys: Sequence[str], value: str) -> str | None:
    """Explain why a recipe may not set this key of `hydra`; give None where it may."""
    if len(keys) == 1:
        return "expected keys and values"  # Hydra itself fails at a null
    param = keys[3].lstrip("+~") if keys[1:3] == ["sweeper", "params"] and keys[3:] else ""
    is_setting = keys[1] in HYDRA_SETTINGS and "_target_" not in keys
    if not is_setting or param.startswith("hydra") or "${" in value:
        return (
            "is not allowed: a recipe runs nothing; under `hydra` it may set "
            f"{', '.join(sorted(HYDRA_SETTINGS))}, to plain values"
        )
    if param and len(keys) > 4:
        return "expected a text with the values, such as '1,2'"
    is_text = keys[-1] in _LAUNCHER_TEXTS
    is_plain = re.fullmatch(r"[^\n\r`$]*", value) if is_text else _NO_TEXT.fullmatch(value)
    if keys[1] == "launcher" and not is_plain:
        return (
            "is not allowed in a recipe: it could run a command; on the command line it is yours "
            f"to give: {'.'.join(keys)}=…"
        )
    return None


def refuse_octal_numbers(sources: Iterable[Source]) -> None:
    """Raise RecipeError for numbers that YAML 1.1 reads in base 8, which nobody means by them."""
    problems = []
    for source in sources:
        for _, node in source.list_scalars():
            digits = str(node.value).replace("_", "")
            is_octal = node.tag == "tag:yaml.org,2002:int" and _OCTAL.fullmatch(digits)
            if is_octal and node.style is None and (value := int(digits, 8)):
                decimal = f"{'-' if value < 0 else ''}{digits.lstrip('+-0')}"
                message = (
                    f"{node.value} is {value} to YAML, which reads a number that begins with 0 in "
                    f"base 8; write {decimal}, or {node.value!r} for a text"
                )
                problems.append(Problem("", message, source.file, node.start_mark.line + 1))
    _raise_problems(problems)


def _raise_problems(problems: Sequence[Problem]) -> None:
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))


def refuse_keys_before_base(sources: Sequence[Source], file: Path) -> None:
    """Raise RecipeError where `base` comes after a recipe's own keys: `_self_` is not the last."""
    files = [source.file.resolve() for source in sources]
    base, file = (find_recipes_folder() / "base.yaml").resolve(), file.resolve()
    if base in files and file in files and files.index(file) < files.index(base):
        message = "`_self_` stands before what sets this file's keys anew; put it last"
        raise RecipeError([locate_problem("defaults", message, [Source(file, "")], ())])


def refuse_bad_defaults(folder: Path, name: str, above: tuple[str, ...] = ()) -> None:
    """Raise RecipeError where a file's `defaults` run a resolver or lead back to the file itself.

    Hydra resolves them before anything else can be checked, and goes round for 8 seconds.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        return
    for keys, node in Source(path, "").list_scalars():
        if keys[:1] != ("defaults",):
            continue
        line, value = node.start_mark.line + 1, str(node.value)
        for text in (value, *keys):
            if has_resolver(text):
                raise RecipeError([Problem("defaults", f"{text} {RUNS_NOTHING}", path, line)])
        parent = _name_parent(name, keys[1:], value)
        if parent in (*above, name):
            message = "the recipe is among its own defaults"
            raise RecipeError([Problem("defaults", message, path, line)])
        if parent is not None:
            refuse_bad_defaults(folder, parent, (*above, name))


def _name_parent(name: str, keys: Sequence[str], value: str) -> str | None:
    """Name the file, without its ending, that an entry of a file's `defaults` extends, if any."""
    group, *_ = [*(key for key in keys if not key.isdigit()), ""]
    words = group.split()
    if value == "_self_" or "override" in words[:-1]:
        return None
    group = words[-1].partition("@")[0] if words else ""
    entry = "/".join(filter(None, (group, value.partition("@")[0])))
    above = "" if entry.startswith("/") else posixpath.dirname(name)
    return posixpath.normpath(posixpath.join(above, entry.lstrip("/"))).lstrip("/")
