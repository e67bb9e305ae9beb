"""Recipes that are wrong in small ways, for tests: `hypothesis` strategies over plain values."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from hypothesis import strategies as st

from compressor.stages.base import stage_class, stage_kinds

KEYS = sorted(
    {name for kind in stage_kinds() for name in stage_class(kind).model_fields}
    | {"stage", "self_attention", "encoder", "train", "test", "heads", "nonzero_ratio", "1", "a.b"}
    | {"epoch", "", "maximize", "trials", "source", "rows", "task"}
)
WORDS = """3 0.5 true null 2:4 0:4 4:4 1:8 unstructured int8 int4 bfloat16 tuned load prune
finetune evaluate.rougeLsum a;b ../up a..b x/y files hub bills messages multi_label single_label
summarization gp magnitude taylor sparsegpt validation hidden"""
TEXTS = st.sampled_from([*WORDS.split(), "", "x\n"])
NUMBERS = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, -1, 0.0, 1.0, 2.0, 3.0, -2.0, 0.1, 0.5, 0.3, 1.5, 8, 16, 1e3, 1e-3]
    ),
    st.integers(-5, 400),
    st.floats(-2, 3, allow_nan=False),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside `value`."""
    inside = value.items() if isinstance(value, Mapping) else ()
    inside = enumerate(value) if isinstance(value, list) else inside
    for key, each in inside:
        yield (*path, key)
        yield from places(each, (*path, key))


def like(value: Any) -> st.SearchStrategy[Any]:
    """Values that one might write by mistake for `value`, or that mean the same."""
    near: list[Any] = [None, str(value), [value], {}, [], True, False]
    if isinstance(value, int | float):
        near += [float(value), -value, value + 0.5, value * 100, value / 7, int(value), 0, 1, 2]
    if isinstance(value, list):
        near += [value + value, value[:1], value[::-1]]
    return st.one_of(st.sampled_from(near), VALUES)


@st.composite
def changed(draw: st.DrawFn, values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's values with one to three changes, each somewhere in it."""
    found = copy.deepcopy(dict(values))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        path = draw(st.sampled_from(list(places(found)) or [("stages",)]))
        owner: Any = found
        for part in path[:-1]:
            owner = owner[part]
        last: Any = path[-1]
        how = draw(st.sampled_from(["drop", "rename", "value", "near", "near", "add"]))
        if how == "drop" and last in (owner if isinstance(owner, dict) else ()):
            del owner[last]
        elif how == "rename" and isinstance(owner, dict):
            owner[draw(st.sampled_from([f"{last}s", *KEYS]))] = owner.pop(last)
        elif how == "add" and isinstance(owner, dict):
            owner[draw(st.sampled_from(KEYS))] = draw(VALUES)
        elif how == "near":
            owner[last] = draw(like(owner[last]))
        else:
            owner[last] = draw(VALUES)
    return found


def as_json(values: Any) -> Any:
    """Values as JSON has them: what an editor checks."""
    return json.loads(json.dumps(values))
