"""The points of a sweep: what each sets, and what its folder is called. Runs nothing."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from math import prod

from hydra.core.override_parser.types import Override, ValueType

from compressor.core.errors import RecipeError
from compressor.recipe.hydra import parse_override

MOST = 20_000
"""Points of a sweep: each has a folder."""
LONGEST_NAME = 100
"""Characters of a folder's name; a file system allows 255 bytes."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    name: str
    """Of its folder: what makes it different, such as `lm_head=0.3,epochs=2`."""
    overrides: tuple[str, ...]
    """All that Hydra gets for it, in the order of the command."""
    differs: Mapping[str, str]
    """The keys that are not the same in every point, and this one's values."""


def is_sweep(override: str) -> bool:
    """Return whether an override has several values: `a=1,2`, `a=range(1,4)`, `a=choice(x,y)` …"""
    tree = parse_override(override)
    return tree is not None and tree.is_sweep_override()


def expand_product(overrides: Sequence[str]) -> list[Point]:
    """List every combination of the values once, the last key's values changing first.

    Raises RecipeError for a key whose values cannot be counted (an interval is for a search), that
    has none, or that is set a second time, since points would not be what their names say.
    """
    parsed = [parse_override(text) for text in overrides]
    swept = [None if o is None or not o.is_sweep_override() else o for o in parsed]
    values = [
        [text] if override is None else _list_values(override)
        for text, override in zip(overrides, swept, strict=True)
    ]
    names, keys = (list(map(_read_key, some)) for some in (parsed, swept))
    for text, key, texts in zip(overrides, keys, values, strict=True):
        if not texts:
            raise RecipeError(f"{text!r} has no value")
        if key is not None and names.count(key) > 1:
            others = [repr(o) for o, name in zip(overrides, names, strict=True) if name == key]
            raise RecipeError(f"{key}: is set twice, by {' and by '.join(others)}")
    if (count := prod(map(len, values))) > MOST:
        raise RecipeError(f"a sweep of {count:,} points; expected at most {MOST:,}: take a search")
    return name_points(
        (texts, {k: text.partition("=")[2] for k, text in zip(keys, texts, strict=True) if k})
        for texts in dict.fromkeys(product(*values))
    )


def _read_key(override: Override | None) -> str | None:
    """Read what an override sets: a key, or a group and where in the recipe its option lands."""
    return None if override is None else str(override.get_key_element()).lstrip("+~")


def _list_values(override: Override) -> list[str]:
    """List `key=value` for each value of a sweep."""
    text = override.input_line
    if not override.is_discrete_sweep():
        raise RecipeError(
            f"{text!r} is an interval, for a search: give the recipe a `search`, such as "
            "`search: {trials: 30}`, and an `objective`"
        )
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        raise RecipeError(f"{text!r}: name each value; a pattern is not expanded")
    try:
        values = list(islice(override.sweep_string_iterator(), MOST + 1))
    except ValueError as error:  # of range(1,2,0)
        raise RecipeError(f"{text!r}: {error}") from error
    if len(values) > MOST:
        raise RecipeError(f"{text!r} has more than {MOST:,} values")
    return [f"{override.get_key_element()}={value}" for value in values]


def name_points(points: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> list[Point]:
    """Name points of (overrides, key → value of what is swept) by what differs between them."""
    every = [(tuple(overrides), values) for overrides, values in points]
    keys = dict.fromkeys(key for _, values in every for key in values)
    varying = [key for key in keys if len({values.get(key) for _, values in every}) > 1]
    short = shorten_keys(varying)
    result: dict[str, Point] = {}
    for overrides, values in every:
        differs = {key: _unquote(values[key]) for key in varying if key in values}
        text = ",".join(f"{short[key]}={value}" for key, value in differs.items())
        name = make_folder_name(text, overrides)
        if name in result:
            name = make_folder_name(text, overrides, unique=True)
        result[name] = Point(name, overrides, differs)
    return list(result.values())


def validation_order(points: Sequence[Point]) -> list[int]:
    """Order the points' indices so that each value, which may be wrong, comes early."""
    tried: set[tuple[str, str]] = set()
    new: list[int] = []
    rest: list[int] = []
    for index, point in enumerate(points):
        (rest if tried.issuperset(point.differs.items()) else new).append(index)
        tried.update(point.differs.items())
    return new + rest


def make_folder_name(text: str, overrides: Sequence[str], *, unique: bool = False) -> str:
    """Make a folder's name of `text`, with a digest of `overrides` where that might not tell."""
    clean = re.sub(r"[^\w.=,+-]+", "_", text, flags=re.ASCII).lstrip(".") or "point"
    if len(clean) <= LONGEST_NAME and not unique:
        return clean
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return f"{clean[: LONGEST_NAME - 9]}-{digest}"


def shorten_keys(keys: Sequence[str]) -> dict[str, str]:
    """Map each key to its shortest end that no other has, such as `lm_head`."""
    parts = {key: re.split(r"[./]", key) for key in keys}

    def end(key: str, length: int) -> str:
        return ".".join(parts[key][-length:])

    short = {}
    for key in keys:
        others = [other for other in keys if other != key]
        lengths = range(1, len(parts[key]) + 1)
        unique = (n for n in lengths if all(end(key, n) != end(o, n) for o in others))
        short[key] = end(key, next(unique, len(parts[key])))
    return short


def _unquote(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
