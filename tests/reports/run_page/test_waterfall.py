"""What each stage did: steps that add up, whatever was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from compressor.reports.run_page.results import Results
from compressor.reports.run_page.waterfall import list_waterfalls
from tests.reports.handmade import evaluation, full_run, make_run, record, training


def _waterfalls(folder: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list_waterfalls(Results.read(make_run(folder, records, rows=1)))


def _panel(chain: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(panel for panel in chain["panels"] if panel["metric"] == metric)


def _steps(chain: dict[str, Any], metric: str) -> list[tuple[str, float]]:
    return [(s["label"], pytest.approx(s["value"])) for s in _panel(chain, metric)["steps"]]


def test_steps_add_up_in_each_metric(tmp_path: Path) -> None:
    """A stage that was not scored counts with the next; of bytes, which every stage has, those that
    changed nothing are left out.
    """
    (chain,) = _waterfalls(tmp_path, full_run())
    assert _steps(chain, "rougeLsum") == [
        ("base", 0.9), ("prune", 0.09 - 0.9), ("recover + quantize", 0.85 - 0.09), ("result", 0.85),
    ]  # fmt: skip
    quality, size = _panel(chain, "rougeLsum"), _panel(chain, "bytes")
    assert quality["joined"]
    assert [step["total"] for step in quality["steps"]] == [True, False, False, True]
    assert _steps(chain, "bytes") == [("load", 4000), ("quantize", -2900), ("result", 1100)]
    assert size["unchanged"] and not size["joined"]
    latencies = _steps(chain, "latency_p50_ms")
    assert [value for _, value in latencies] == [80.0, -30.0, 50.0]


def test_models_that_part_have_a_waterfall_each(tmp_path: Path) -> None:
    """Two students of one original: two chains; the original's own is a part of both."""
    records = [
        record("original", "finetune", None),
        record("half", "shrink", "original", bytes=2000),
        record("third", "shrink", "original", bytes=1500),
        record("evaluate@original", "evaluate", "original", metrics=evaluation(0.9)),
        record("evaluate@half", "evaluate", "half", metrics=evaluation(0.8)),
        record("evaluate@third", "evaluate", "third", metrics=evaluation(0.7)),
    ]
    half, third = _waterfalls(tmp_path, records)
    assert (half["name"], third["name"]) == ("half", "third")
    expected = [("original", 0.9), ("third", -0.2), ("result", 0.7)]
    assert _steps(third, "rougeLsum") == expected


@pytest.mark.parametrize(
    ("middle", "loss", "expected"),
    [
        ("finetune", 2.5, [("base", 3.0), ("middle", -0.5), ("last", -0.5), ("result", 2.0)]),
        # A training that diverged is not drawn as a loss of zero.
        ("finetune", math.nan, [("base", 3.0), ("middle + last", -1.0), ("result", 2.0)]),
        # What `approximate` leaves as its loss is the difference of a block's outputs.
        ("approximate", 0.1, [("base", 3.0), ("middle + last", -1.0), ("result", 2.0)]),
    ],
)
def test_without_an_evaluation_the_validation_loss_is_the_quality(
    tmp_path: Path, middle: str, loss: float, expected: list[tuple[str, float]]
) -> None:
    """A loss that is none of labels, or no number, is none of the steps."""
    records = [
        record("base", "finetune", None, metrics=training() | {"validation_loss": 3.0}),
        record("middle", middle, "base", metrics=training() | {"validation_loss": loss}),
        record("last", "finetune", "middle", metrics=training() | {"validation_loss": 2.0}),
    ]
    (chain,) = _waterfalls(tmp_path, records)
    assert _steps(chain, "validation_loss") == expected
    alone = Results.read(make_run(tmp_path / "alone", records[1:2], rows=1))
    assert (alone.quality is None) == (loss != 2.5)


def test_nothing_to_compare_is_no_waterfall(tmp_path: Path) -> None:
    """One model, or none: no chart of a single bar."""
    assert _waterfalls(tmp_path, [record("load", "load", None)]) == []
    assert _waterfalls(tmp_path / "none", []) == []
