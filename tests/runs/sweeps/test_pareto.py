"""The Pareto front, held against its definition read aloud, and which way a metric is better."""

from __future__ import annotations

import random

import pytest

from compressor.recipe.objective import Goal
from compressor.runs.sweeps.state import Direction, PointStatus, Sweep, find_front, guess_direction

BOTH: list[Direction] = ["maximize", "minimize"]


def _by_definition(rows: list[list[float | None]], directions: list[Direction]) -> list[bool]:
    def dominates(one: list[float | None], other: list[float | None]) -> bool:
        if None in one or None in other:
            return False
        pairs = [
            (a, b) if direction == "maximize" else (b, a)
            for a, b, direction in zip(one, other, directions, strict=True)
        ]
        return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)

    return [None not in row and not any(dominates(other, row) for other in rows) for row in rows]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),
        ([[0.4, 10.0]], [True]),
        ([[0.4, 10.0], [0.3, 10.0]], [True, False]),  # as small, and worse
        ([[0.4, 10.0], [0.3, 5.0]], [True, True]),  # each is better in one
        ([[0.4, 10.0], [0.4, 10.0]], [True, True]),  # a tie
        ([[0.4, 10.0], [0.4, 10.0], [0.4, 9.0]], [False, False, True]),
        ([[0.4, None], [0.3, 5.0]], [False, True]),  # what is not known dominates nothing
        ([[float("nan"), 1.0], [0.3, 5.0]], [False, True]),
        ([[None, None]], [False]),
        ([[0.1, float("inf")], [0.0, 5.0]], [True, True]),
    ],
)
def test_front_of_hand_cases(rows: list[list[float | None]], expected: list[bool]) -> None:
    """Quality up, bytes down: who stays. A row of another width is the caller's mistake."""
    assert find_front(rows, BOTH) == expected
    with pytest.raises(ValueError, match="2 values"):
        find_front([[1.0]], BOTH)


@pytest.mark.parametrize(("seed", "most"), [*((seed, 60) for seed in range(20)), (20, 600)])
def test_front_is_what_its_definition_says(seed: int, most: int) -> None:
    """On random rows with many ties and gaps, in up to four objectives of random directions; also
    on more rows than are compared at a time.
    """
    random_ = random.Random(seed)
    directions = [random_.choice(BOTH) for _ in range(random_.randint(1, 4))]
    rows = [
        [None if random_.random() < 0.05 else float(random_.randint(0, 6)) for _ in directions]
        for _ in range(random_.randint(most // 2, most))
    ]
    assert find_front(rows, directions) == _by_definition(rows, directions)


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        *((metric, "maximize") for metric in ("rougeLsum", "rouge1_recall", "micro_f1")),
        *((metric, "maximize") for metric in ("roc_auc", "retention", "texts_per_second")),
        *((metric, "minimize") for metric in ("bytes", "gzip_bytes", "latency_p50_ms")),
        *((metric, "minimize") for metric in ("parameters", "nonzero_ratio", "load_seconds")),
        *((metric, None) for metric in ("gen_len", "count", "threads", "cut_off")),
    ],
)
def test_better_way_of_a_metric(metric: str, direction: Direction | None) -> None:
    """The name tells; a length is better neither way."""
    assert guess_direction(metric) == direction


def test_a_sweep_compares_what_was_measured_of_what_is_done() -> None:
    """An objective that no point has is left out; a point that is not done is not on the front."""
    points = [
        PointStatus("0", {}, "done", metrics={"rougeLsum": 0.4, "bytes": 10}),
        PointStatus("1", {}, "done", metrics={"rougeLsum": 0.3, "bytes": 10}),
        PointStatus("2", {}, "pruned", metrics={"rougeLsum": 0.9, "bytes": 1}),
        PointStatus("3", {}, "done", metrics={"rougeLsum": 0.5}),
    ]
    aims: list[tuple[str, Direction]] = [
        ("rougeLsum", "maximize"),
        ("bytes", "minimize"),
        ("latency_p50_ms", "minimize"),
    ]
    sweep = Sweep("demo", points, aims)
    assert sweep.list_compared() == aims[:2]
    assert sweep.mark_front() == [True, False, False, False]


def test_a_goal_is_the_last_models_number_unless_one_is_named() -> None:
    """Of a report on several models; a metric comes before a size, and a truth is no number."""
    records = [
        {"name": "evaluate@load", "metrics": {"rougeLsum": 0.1, "sound": True}, "bytes": 7},
        {"name": "evaluate@prune", "metrics": {"rougeLsum": 0.2}, "bytes": 5},
        {"name": "other", "metrics": {"rougeLsum": 0.9}, "bytes": 3},
    ]

    def value(path: str) -> float | None:
        return Goal(path, "maximize").find_value(records)

    assert value("evaluate.rougeLsum") == 0.2
    assert value("evaluate@load.rougeLsum") == 0.1
    assert value("evaluate.bytes") == 5.0
    assert value("evaluate@load.sound") is None
    assert value("absent.rougeLsum") is None
