"""Recipes that are wrong in small ways, for tests: `hypothesis` strategies over plain values."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from hypothesis import strategies as st

from compressor.stages.base import stage_class, stage_kinds

KEYS = sorted(
    {name for kind in stage_kinds() for name in stage_class(kind).model_fields}
    | {"stage", "encoder", "train", "heads", "nonzero_ratio", "1", "a.b", "epoch", "", "source"}
)
WORDS = """3 0.5 true null 2:4 4:4 1:8 unstructured int8 bfloat16 tuned load prune evaluate.rouge1
a;b ../up a..b x/y files bills multi_label summarization gp magnitude sparsegpt validation"""
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-5, 400), st.floats(-2, 3, allow_nan=False)),
        *(st.sampled_from([0, 1, 2.0, 0.5, 16, 1e3, -1]), st.sampled_from([*WORDS.split(), ""])),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
    ),
    max_leaves=5,
)
Place = tuple[str | int, ...]


def list_places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Yield the path of every value inside `value`."""
    items = value.items() if isinstance(value, Mapping) else ()
    for key, inner in enumerate(value) if isinstance(value, list) else items:
        yield (*above, key)
        yield from list_places(inner, (*above, key))


@st.composite
def change_values(draw: st.DrawFn, values: Mapping[str, Any]) -> dict[str, Any]:
    """Change one to three things somewhere in a copy of a recipe's values."""
    recipe = copy.deepcopy(dict(values))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        *above, last = draw(st.sampled_from(list(list_places(recipe)) or [("stages",)]))
        owner: Any = reduce(getitem, above, recipe)
        how = draw(st.sampled_from(["drop", "rename", "value", "near", "near", "add"]))
        if how == "near" and last in (owner if isinstance(owner, dict) else range(len(owner))):
            value = owner[last]
            number = [value * 100, value + 0.5, -value] if isinstance(value, int | float) else []
            owner[last] = draw(st.sampled_from([None, str(value), [value], {}, True, *number]))
        elif how == "drop" and isinstance(owner, dict):
            owner.pop(last, None)
        elif how == "rename" and isinstance(owner, dict) and last in owner:
            owner[draw(st.sampled_from([f"{last}s", *KEYS]))] = owner.pop(last)
        else:
            key = draw(st.sampled_from(KEYS)) if how == "add" and isinstance(owner, dict) else last
            owner[key] = draw(VALUES)
    return recipe


def as_json(values: Any) -> Any:
    """Give values as JSON has them: what an editor checks."""
    return json.loads(json.dumps(values))
