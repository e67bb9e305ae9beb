"""The points of a sweep: what each sets, and what its folder is called. Nothing runs here."""

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
    """Whether an override has several values: `a=1,2`, `a=range(1,4)`, `a=choice(x,y)` …"""
    found = parse_override(override)
    return found is not None and found.is_sweep_override()


def spanned(overrides: Sequence[str]) -> list[Point]:
    """Every combination of the values, the last key's changing first, each once.

    Raises RecipeError for a key whose values cannot be counted (an interval is for a search), that
    has none, or that is set a second time, since points would not be what their names say.
    """
    keys: list[str | None] = []
    values: list[list[str]] = []
    for override in overrides:
        found = parse_override(override)
        several = found is not None and found.is_sweep_override()
        keys.append(_key(found) if found is not None and several else None)
        values.append(_values(found) if found is not None and several else [override])
    _refuse_unclear(overrides, keys, values)
    if (count := prod(map(len, values))) > MOST:
        raise RecipeError(f"a sweep of {count:,} points; expected at most {MOST:,}: take a search")
    combinations = dict.fromkeys(product(*values))
    given = [
        {key: text.partition("=")[2] for key, text in zip(keys, each, strict=True) if key}
        for each in combinations
    ]
    return named(zip(combinations, given, strict=True))


def _key(override: Override) -> str:
    """What an override sets: a key, or a group and where in the recipe its option lands."""
    element: str = override.get_key_element()
    return element.lstrip("+~")


def _refuse_unclear(
    overrides: Sequence[str], keys: Sequence[str | None], values: Sequence[Sequence[str]]
) -> None:
    """Raise RecipeError for a sweep over nothing, and for one over a key that is set elsewhere."""
    plain = [_key(found) if (found := parse_override(each)) else each for each in overrides]
    for override, key, name, some in zip(overrides, keys, plain, values, strict=True):
        if not some:
            raise RecipeError(f"{override!r} has no value")
        if key is not None and plain.count(name) > 1:
            others = [o for o, p in zip(overrides, plain, strict=True) if p == name]
            raise RecipeError(f"{name}: is set twice, by {' and by '.join(map(repr, others))}")


def _values(override: Override) -> list[str]:
    """`key=value` for each value of a sweep."""
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


def named(points: Iterable[tuple[Sequence[str], Mapping[str, str]]]) -> list[Point]:
    """Points of (overrides, key → value of what is swept), each with a name of its own."""
    every = [(tuple(overrides), dict(values)) for overrides, values in points]
    seen: dict[str, set[str]] = {}
    for _, values in every:
        for key, value in values.items():
            seen.setdefault(key, set()).add(value)
    varying = [key for key, found in seen.items() if len(found) > 1]
    short = shortened(varying)
    result: dict[str, Point] = {}
    for overrides, values in every:
        differs = {key: _unquoted(values[key]) for key in varying if key in values}
        text = ",".join(f"{short[key]}={value}" for key, value in differs.items())
        name = folder_name(text, overrides)
        if name in result:
            name = folder_name(text, overrides, unique=True)
        result[name] = Point(name, overrides, differs)
    return list(result.values())


def telling(points: Sequence[Point]) -> list[int]:
    """The places of the points, those first that have a value which none before them has: where a
    value is wrong, it is found in as many points as there are values, not combinations of them.
    """
    seen: set[tuple[str, str]] = set()
    new: list[int] = []
    rest: list[int] = []
    for place, point in enumerate(points):
        (rest if seen.issuperset(point.differs.items()) else new).append(place)
        seen.update(point.differs.items())
    return new + rest


def folder_name(text: str, overrides: Sequence[str], *, unique: bool = False) -> str:
    """`text` as a folder's name; with a digest of `overrides` where that alone might not tell."""
    clean = re.sub(r"[^\w.=,+-]+", "_", text, flags=re.ASCII).lstrip(".") or "point"
    if len(clean) <= LONGEST_NAME and not unique:
        return clean
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:8]
    return f"{clean[: LONGEST_NAME - 9]}-{digest}"


def shortened(keys: Sequence[str]) -> dict[str, str]:
    """Each key → its shortest end that no other has, such as `lm_head`."""
    parts = {key: re.split(r"[./]", key) for key in keys}

    def end(key: str, length: int) -> str:
        return ".".join(parts[key][-length:])

    found = {}
    for key in keys:
        lengths = range(1, len(parts[key]) + 1)
        others = [other for other in keys if other != key]
        alone = (n for n in lengths if all(end(key, n) != end(o, n) for o in others))
        found[key] = end(key, next(alone, len(parts[key])))
    return found


def _unquoted(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if quoted else value
