"""What points a sweep has, what they are called, and what they share."""

from __future__ import annotations

import io

import pytest

from compressor.core import machine
from compressor.core.console import Console
from compressor.core.errors import RecipeError
from compressor.engine.store.timings import StageTimings
from compressor.runs.sweeps.grid import plan_grid
from compressor.runs.sweeps.points import (
    LONGEST_NAME,
    Point,
    expand_product,
    shorten_keys,
    validation_order,
)
from compressor.runs.sweeps.shared_stages import PlannedPoint, SharedStages, Step, print_tree
from compressor.runs.sweeps.state import PointStatus, choose_objectives

HEAD = "stages.prune.amounts.lm_head"


def names(*overrides: str) -> list[str]:
    return [point.name for point in expand_product(overrides)]


def test_every_combination_once_named_by_what_differs() -> None:
    """What is the same in all points is in no name; a key is as short as it can be."""
    assert names("seed=3", f"{HEAD}=0.1,0.3", "training.learning_rate=range(1,3)") == [
        "lm_head=0.1,learning_rate=1",
        "lm_head=0.1,learning_rate=2",
        "lm_head=0.3,learning_rate=1",
        "lm_head=0.3,learning_rate=2",
    ]
    (first, *_) = expand_product(["seed=3", f"{HEAD}=0.1,0.3"])
    assert first == Point("lm_head=0.1", ("seed=3", f"{HEAD}=0.1"), {HEAD: "0.1"})
    assert names("seed=3") == ["point"]
    assert names("seed=3,3") == ["point"]
    assert names("model=tiny,t5_small") == ["model=tiny", "model=t5_small"]
    assert names("~a,b", "seed=1,2") == ["seed=1", "seed=2"]
    points = expand_product(["+model@first=a,b", "+model@second=a,b"])
    assert [point.name for point in points] == [
        "model_first=a,model_second=a",
        "model_first=a,model_second=b",
        "model_first=b,model_second=a",
        "model_first=b,model_second=b",
    ]
    assert points[1].differs == {"model@first": "a", "model@second": "b"}


def test_keys_are_shortened_to_what_no_other_ends_with() -> None:
    """Two groups of the same part keep what tells them apart."""
    keys = [f"stages.prune.amounts.{part}.feed_forward" for part in ("encoder", "decoder")]
    short = ["encoder.feed_forward", "decoder.feed_forward", "lm_head"]
    assert list(shorten_keys([*keys, HEAD]).values()) == short
    assert shorten_keys(["a.seed", "seed"]) == {"a.seed": "a.seed", "seed": "seed"}


def test_a_name_is_one_folder_whatever_the_values_are() -> None:
    """No separator, no climbing, no more characters than a file system takes, no two alike."""
    assert names("outputs='../up','/etc/x'") == ["outputs=.._up", "outputs=_etc_x"]
    assert names("label='a b','a/b'")[0] == "label=a_b"
    assert len(set(names("label='a b','a/b'"))) == 2
    long = names(f"label={'x' * 300},{'x' * 299}y")
    assert len(set(long)) == 2
    assert all(len(name) <= LONGEST_NAME for name in long)
    assert not any("/" in name or name.startswith(".") for name in names("a=.,..,...,'/'"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{HEAD}=interval(0, 1)"], "is an interval, for a search"),
        (["model=glob(*)"], "model=glob.*a pattern is not expanded"),
        (["seed=range(3,3)"], r"'seed=range\(3,3\)' has no value"),
        (["seed=range(1,2,0)"], "zero"),
        (["seed=range(1,20000000)"], "20,000"),  # it took minutes
        (["a=range(0,300)", "b=range(0,300)"], "20,000"),
        # The last value counted, under names with the first ones.
        (["seed=1,2", "seed=3"], "seed: is set twice, by 'seed=1,2' and by 'seed=3'"),
        (["++seed=3", "seed=1,2"], r"seed: is set twice, by '\+\+seed=3' and by 'seed=1,2'"),
        (["seed=1,2", "seed=3,4"], "seed: is set twice"),
    ],
)
def test_what_has_no_points_or_too_many_is_refused(overrides: list[str], message: str) -> None:
    """In a sentence that names the override."""
    with pytest.raises(RecipeError, match=message):
        expand_product(overrides)


def test_a_wrong_value_of_a_large_sweep_is_told_before_all_points_are_composed(recipe) -> None:
    """Regression: 14,850 points were composed, for half an hour, and 50 of 150 values told."""
    wrong = [f"{HEAD}=range(0.0,3,0.02)", "seed=range(1,100)"]
    with pytest.raises(RecipeError) as refused:
        plan_grid(str(recipe()), wrong, reachable=False)
    *told, rest = map(str, refused.value.problems)
    assert ["got 1.02;" in told[0], len(told)] == [True, 3]
    assert rest == "14,698 points were not looked at: 3 are wrong"
    points = expand_product(["a=1,2,3", "b=1,2,3,4"])
    looked = [points[place].name for place in validation_order(points)]
    assert looked[:6] == ["a=1,b=1", "a=1,b=2", "a=1,b=3", "a=1,b=4", "a=2,b=1", "a=3,b=1"]
    assert sorted(looked) == sorted(point.name for point in points)


def test_points_of_one_size_in_bytes_are_compared_by_what_is_not_zero() -> None:
    """Pruned weights take the same bytes: the front is then over the non-zero ratio."""

    def list_compared(*sizes: float) -> list[str]:
        points = [
            PointStatus(str(n), {}, "done", metrics={"rougeLsum": 0.5, "bytes": size})
            for n, size in enumerate(sizes)
        ]
        return [name for name, _ in choose_objectives(points)]

    assert list_compared(7, 7, 7) == ["rougeLsum", "micro_f1", "nonzero_ratio", "latency_p50_ms"]
    assert list_compared(7, 8, 7) == ["rougeLsum", "micro_f1", "bytes", "latency_p50_ms"]
    assert list_compared(7) == ["rougeLsum", "micro_f1", "bytes", "latency_p50_ms"]


def plan_point(name: str, *keys: str, cached: str = "") -> PlannedPoint:
    steps = tuple(Step(key[0], "kind", key, key in cached.split()) for key in keys)
    return PlannedPoint(Point(name, (), {}), steps)


def test_the_time_of_a_sweep_is_what_its_distinct_stages_cost() -> None:
    """By hand: a (10 s) is shared, b1 to b3 (4 s each) are not, c is in the store.

    One at a time: 10 + 3 · 4. Two: the second waits for a, ends at 14 as the first does, and the
    third runs after it. Three: all end at 14.
    """
    shared = SharedStages([plan_point(f"p{i}", "c", "a", f"b{i}", cached="c") for i in (1, 2, 3)])
    timings = StageTimings({"c": 99.0}, {("kind", "a"): 10.0, ("kind", "b"): 4.0})
    assert (shared.naive, shared.distinct) == (9, 5)
    assert [step.key for step in shared.to_run] == ["a", "b1", "b2", "b3"]
    seconds = [shared.estimate_seconds(timings, at_once) for at_once in (1, 2, 3, 8)]
    assert seconds == [22, 18, 14, 14]


def test_a_plan_names_each_launcher_that_can_help(monkeypatch) -> None:
    """Regression: where there are as many points as cores, `processes` was missing."""
    monkeypatch.setattr(machine, "count_cores", lambda: 2)
    known = StageTimings({}, {("kind", "a"): 10.0, ("kind", "b"): 4.0})
    for count, rows in ((1, ["1"]), (2, ["1", "2", "2"]), (3, ["1", "2", "3"])):
        shared = SharedStages([plan_point(f"p{i}", "a", f"b{i}") for i in range(count)])
        console = Console(file=io.StringIO(), width=200)
        print_tree(shared, known, console)
        lines = console.file.getvalue().splitlines()
        assert [line.split("│")[1].strip() for line in lines if line.startswith("│ ")] == rows
