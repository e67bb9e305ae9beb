"""What each stage did: steps that add up, whatever was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from compressor.reports.run_page.results import Results
from compressor.reports.run_page.waterfall import waterfalls
from tests.reports.made import made, record, scores, trained, usual


def _waterfalls(folder: Path, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return waterfalls(Results.read(made(folder, records, rows=1)))


def _panel(chain: dict[str, Any], metric: str) -> dict[str, Any]:
    return next(panel for panel in chain["panels"] if panel["metric"] == metric)


def test_a_stage_that_was_not_measured_counts_with_the_next(tmp_path: Path) -> None:
    """Base 0.9, prune 0.09, recover not measured, quantize 0.85: three steps and the result."""
    (chain,) = _waterfalls(tmp_path, usual())
    quality = _panel(chain, "rougeLsum")
    labels = [step["label"] for step in quality["steps"]]
    assert labels == ["base", "prune", "recover + quantize", "result"]
    values = [step["value"] for step in quality["steps"]]
    assert values == pytest.approx([0.9, 0.09 - 0.9, 0.85 - 0.09, 0.85])
    assert [step["total"] for step in quality["steps"]] == [True, False, False, True]
    assert quality["joined"] and sum(values[:-1]) == pytest.approx(values[-1])


def test_bytes_are_known_of_every_stage(tmp_path: Path) -> None:
    """Only quantize made the file smaller; stages that changed nothing are left out."""
    (chain,) = _waterfalls(tmp_path, usual())
    size = _panel(chain, "bytes")
    assert [(s["label"], s["value"]) for s in size["steps"]] == [
        ("load", 4000), ("quantize", -2900), ("result", 1100),
    ]  # fmt: skip
    assert size["unchanged"] and not size["joined"]
    latency = _panel(chain, "latency_p50_ms")
    assert [s["value"] for s in latency["steps"]] == [80.0, -30.0, 50.0]


def test_models_that_part_have_a_waterfall_each(tmp_path: Path) -> None:
    """Two students of one original: two chains; the original's own is a part of both."""
    records = [
        record("original", "finetune", None),
        record("half", "shrink", "original", bytes=2000),
        record("third", "shrink", "original", bytes=1500),
        record("evaluate@original", "evaluate", "original", metrics=scores(0.9)),
        record("evaluate@half", "evaluate", "half", metrics=scores(0.8)),
        record("evaluate@third", "evaluate", "third", metrics=scores(0.7)),
    ]
    found = _waterfalls(tmp_path, records)
    assert [chain["name"] for chain in found] == ["half", "third"]
    assert [s["value"] for s in _panel(found[1], "rougeLsum")["steps"]] == pytest.approx(
        [0.9, -0.2, 0.7]
    )


def test_without_an_evaluation_the_validation_loss_is_the_quality(tmp_path: Path) -> None:
    """A run that only trains: the losses that the trainings left."""
    records = [
        record("load", "load", None),
        record("base", "finetune", "load", metrics=trained() | {"validation_loss": 3.0}),
        record("more", "finetune", "base", metrics=trained() | {"validation_loss": 2.0}),
    ]
    (chain,) = _waterfalls(tmp_path, records)
    steps = _panel(chain, "validation_loss")["steps"]
    assert [s["value"] for s in steps] == [3.0, -1.0, 2.0]


def test_a_loss_that_is_no_number_is_none_of_the_steps(tmp_path: Path) -> None:
    """A training that diverged is not drawn as a loss of zero: it joins the next that has one."""
    records = [
        record("base", "finetune", None, metrics=trained() | {"validation_loss": 3.0}),
        record("wild", "finetune", "base", metrics=trained() | {"validation_loss": math.nan}),
        record("more", "finetune", "wild", metrics=trained() | {"validation_loss": 2.0}),
    ]
    (chain,) = _waterfalls(tmp_path, records)
    steps = _panel(chain, "validation_loss")["steps"]
    assert [(s["label"], s["value"]) for s in steps] == [
        ("base", 3.0), ("wild + more", -1.0), ("result", 2.0),
    ]  # fmt: skip


def test_a_loss_of_hidden_states_is_not_held_to_one_of_labels(tmp_path: Path) -> None:
    """`approximate` leaves the difference of a block's outputs as its validation loss."""
    records = [
        record("base", "finetune", None, metrics=trained() | {"validation_loss": 3.0}),
        record("block", "approximate", "base", metrics=trained() | {"validation_loss": 0.1}),
        record("more", "finetune", "block", metrics=trained() | {"validation_loss": 2.5}),
    ]
    (chain,) = _waterfalls(tmp_path, records)
    steps = _panel(chain, "validation_loss")["steps"]
    assert [(s["label"], s["value"]) for s in steps] == [
        ("base", 3.0), ("block + more", -0.5), ("result", 2.5),
    ]  # fmt: skip
    alone = made(tmp_path / "alone", records[1:2], rows=1)
    assert Results.read(alone).quality is None


def test_nothing_to_compare_is_no_waterfall(tmp_path: Path) -> None:
    """One model, or none: no chart of a single bar."""
    assert _waterfalls(tmp_path, [record("load", "load", None)]) == []
    assert _waterfalls(tmp_path / "none", []) == []
