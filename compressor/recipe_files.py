"""Recipes as files: which there are, where each key was written, and what no file may say."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from compressor.errors import Problem, RecipeError, nearest
from compressor.files import expand_home, recipes_folder
from compressor.yaml_limits import misread, text_of


@lru_cache(maxsize=256)
def _tree(file: Path, changed: int, size: int) -> yaml.Node | None:
    """A file is parsed again only when it has changed: a sweep reads it for each point."""
    try:
        text = text_of(file)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise RecipeError([Problem("", str(error), file)]) from error
    loaded: yaml.Node | None = yaml.compose(text)
    return loaded


def tree(file: Path) -> yaml.Node | None:
    """The YAML nodes of a recipe's file. Raises RecipeError for one that is too large, or no file.

    Every file of a recipe comes through here before anything else reads it.
    """
    about = file.stat()
    return _tree(file, about.st_mtime_ns, about.st_size)


@dataclass(frozen=True)
class Source:
    """One file that went into a composed recipe, and the package that its keys landed in."""

    file: Path
    package: str

    @cached_property
    def tree(self) -> yaml.Node | None:
        """The YAML nodes with their line numbers."""
        return tree(self.file)

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
    if best is None or best[0] <= path.count("."):  # in no file, or only what is above it
        for override in overrides:
            if override.lstrip("+~").startswith(f"{path}."):
                return Problem(path, f"{message} (set on the command line: {override})")
    if best is None or best[2].file == recipes_folder() / "base.yaml":  # which a recipe fills
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
    path = expand_home(recipe)
    root = recipes_folder()
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_dir():
            raise RecipeError(f"{recipe!r} is a folder, not a recipe file")
        if not path.is_file():
            raise RecipeError(f"no recipe file {recipe!r} in {Path.cwd()}{_siblings(path)}")
        if path.suffix != ".yaml":
            raise RecipeError(f"{recipe}: a recipe's file name ends in .yaml")
        resolved = path.resolve()
        if resolved.is_relative_to(root.resolve()):
            return root, resolved.relative_to(root.resolve()).with_suffix("").as_posix()
        return resolved.parent, resolved.stem
    if (root / f"{recipe}.yaml").is_file() and recipe in recipe_names():
        return root, recipe
    if path.is_dir():
        raise RecipeError(f"{recipe!r} is a folder, not a recipe file")
    own = path.with_name(f"{path.name}.yaml")
    hint = f"did you mean '{own}'?" if own.is_file() else nearest(recipe, recipe_names())
    raise RecipeError(
        f"no recipe {recipe!r}; {hint} (a recipe of your own is given as a path that ends in .yaml)"
    )


def _siblings(path: Path) -> str:
    there = [item.name for item in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"; {nearest(path.name, there)}" if there else ""


HYDRA_SETTINGS = frozenset({"sweeper", "launcher", "mode"})
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
            if full == ["hydra"]:  # Hydra itself fails at a null
                problems.append(Problem("hydra", "expected keys and values", source.file, line))
            if full[:1] != ["hydra"] or len(full) < 2:
                continue
            overrides = full[1:3] == ["sweeper", "params"] and len(full) > 3
            own = overrides and full[3].lstrip("+~").startswith("hydra")
            if overrides and len(full) > 4:
                message = "expected a text with the values, such as '1,2'"
                problems.append(Problem(".".join(full[:4]), message, source.file, line))
            elif full[1] == "launcher" and not _is_plain(full[2:], value):
                message = (
                    "is not allowed in a recipe: it could run a command; on the command line it is "
                    f"yours to give: {'.'.join(full)}=…"
                )
                problems.append(Problem(".".join(full), message, source.file, line))
            elif full[1] not in HYDRA_SETTINGS or "_target_" in full or own or "${" in value:
                message = (
                    "is not allowed: a recipe runs nothing; under `hydra` it may set "
                    f"{', '.join(sorted(HYDRA_SETTINGS))}, to plain values"
                )
                problems.append(Problem(".".join(full), message, source.file, line))
                break
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))


_LAUNCHER_TEXTS = frozenset(
    (
        *("partition", "qos", "comment", "constraint", "exclude", "gres", "account", "name"),
        *("mem_per_gpu", "mem_per_cpu", "prefer"),
    )
)
"""A launcher's settings that are texts and no more. Others are commands, which SLURM's jobs and
Ray's workers run, or folders that are written to.
"""


_NO_TEXT = re.compile(r"[-+]?[\d._]+(e[-+]?\d+)?|true|false|null|~?", re.IGNORECASE)


def _is_plain(keys: Sequence[str], value: str) -> bool:
    """Whether a launcher's setting is a number, a yes or no, or a text that nothing runs."""
    if "_target_" in keys or "${" in value:  # which are told otherwise
        return True
    is_text = bool(keys) and keys[-1] in _LAUNCHER_TEXTS
    return bool(re.fullmatch(r"[^\n\r`$]*", value) if is_text else _NO_TEXT.fullmatch(value))


def refuse_misread(sources: Sequence[Source]) -> None:
    """Raise RecipeError where YAML would read a number as another one than is written."""
    problems = [
        Problem("", message, source.file, line)
        for source in sources
        for message, line in misread(source.tree)
    ]
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))


def refuse_base_behind(sources: Sequence[Source], own: Path) -> None:
    """Raise RecipeError where a recipe's keys come before `base`, which then empties its pipeline:
    where `_self_` is not the last of its `defaults`.
    """
    files = [source.file.resolve() for source in sources]
    base, own = (recipes_folder() / "base.yaml").resolve(), own.resolve()
    if base in files and own in files and files.index(own) < files.index(base):
        message = "`_self_` stands before what sets this file's keys anew; put it last"
        raise RecipeError([locate("defaults", message, [Source(own, "")], ())])


def refuse_resolvers_in_defaults(folder: Path, name: str, seen: tuple[str, ...] = ()) -> None:
    """Raise RecipeError where a file's `defaults`, or those of a file beside it, run a resolver,
    or lead back to the file itself.

    Hydra resolves them while it looks for the files, before anything else can be checked; and goes
    round in a circle for 8 seconds.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        return
    found = Source(path, "").tree
    for keys, value, line in _scalars(found) if found is not None else ():
        if keys[:1] != ("defaults",):
            continue
        for text in (value, *keys):
            if runs_something(text):
                message = f"{text} is not allowed: a recipe runs nothing and reads no environment"
                raise RecipeError([Problem("defaults", message, path, line)])
        other = _meant(name, keys[1:], value)
        if other in (*seen, name):
            message = "the recipe is among its own defaults"
            raise RecipeError([Problem("defaults", message, path, line)])
        if other is not None:
            refuse_resolvers_in_defaults(folder, other, (*seen, name))


def _meant(name: str, keys: Sequence[str], value: str) -> str | None:
    """The file, without its ending, that an entry of `defaults` in the file `name` means.

    `keys`: of the entry, from its place in the list. None where it means no file of its own.
    """
    group, *_ = [*(key for key in keys if not key.isdigit()), ""]
    words = group.split()
    if value == "_self_" or "override" in words[:-1]:
        return None
    group = words[-1].partition("@")[0] if words else ""
    entry = "/".join(filter(None, (group, value.partition("@")[0])))
    above = "" if entry.startswith("/") else posixpath.dirname(name)
    return posixpath.normpath(posixpath.join(above, entry.lstrip("/"))).lstrip("/")


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


def runs_something(text: str) -> bool:
    return "${" in _PLAIN.sub("", text)
