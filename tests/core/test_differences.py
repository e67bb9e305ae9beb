"""Where two nested values differ."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.core.differences import (
    MISSING,
    Difference,
    find_differences,
    find_differing_leaves,
)


def test_it_names_the_innermost_keys_in_order() -> None:
    """A changed, a removed and an added key, each with its path and both values; a list is one."""
    before = {"seed": 0, "stages": {"prune": {"amounts": {"lm_head": 0.3}}, "old": {"epochs": 1}}}
    after = {"seed": 0, "stages": {"prune": {"amounts": {"lm_head": 0.5}}, "new": None}}
    orders = ["load", "prune"], ["load", "shrink", "prune"]
    assert find_differences(before | {"pipeline": orders[0]}, after | {"pipeline": orders[1]}) == [
        Difference("stages.prune.amounts.lm_head", 0.3, 0.5),
        Difference("stages.old", {"epochs": 1}, MISSING),
        Difference("stages.new", MISSING, None),
        Difference("pipeline", *orders),
    ]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1.0, True), (1, True, False), ([1, [2]], (1, [2.0]), True), ([1, True], [1, 1], False),
        ("ab", ["a", "b"], False), (None, 0, False), ([{"a": 0}], [{"a": False}], False),
    ],
)  # fmt: skip
def test_what_is_the_same_value(one: Any, other: Any, equal: bool) -> None:
    """Numbers are compared as numbers, and truth values only with each other."""
    assert (not find_differences({"key": one}, {"key": other})) == equal


def test_an_empty_mapping_counts_as_the_keys_of_another() -> None:
    """`quantize: {}` beside `{weights: int4}` is one key; a list is one value, or many."""
    one = {"stages": {"quantize": {}}, "a": 1, "b": [1, 2]}
    other = {"stages": {"quantize": {"weights": "int4"}}, "a": True, "b": [1, 3]}
    rows = {"stages.quantize.weights": (MISSING, "int4"), "a": (1, True)}
    assert find_differing_leaves([one, other]) == rows | {"b": ([1, 2], [1, 3])}
    assert find_differing_leaves([one, other], in_lists=True) == rows | {"b.1": (2, 3)}
