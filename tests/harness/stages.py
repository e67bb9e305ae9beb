"""Run, or plan, one stage without a recipe around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from compressor.core.progress import Progress
from compressor.data.bills import Bills
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage
from compressor.training.launch_config import Launch

BILLS = Bills(source="bills")


def stage_context(folder: Path, data: Any = BILLS, name: str = "") -> Context:
    """Give a stage a folder of its own to write in."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = Progress(Console(quiet=True), quiet=True)
    return Context(folder, folder / "resume", data, 0, Launch(), quiet, name=name)


def run_stage(
    stage: Stage, checkpoint: Checkpoint, folder: Path, data: Any = BILLS
) -> tuple[Checkpoint, dict[str, Any]]:
    """Run a stage on a saved model: what it gives, as it is saved and loaded again, and metrics."""
    checkpoint.save(folder / "before")
    context = stage_context(folder / "stage", data)
    result = stage.run(Inputs(folder / "before"), context)
    assert result is not None
    result.save(folder / "after")
    return Checkpoint.load(folder / "after"), context.metrics


def preview(
    stage: Stage, facts: Facts | None, data: Any = BILLS
) -> tuple[Facts | None, list[tuple[str, str]]]:
    """Plan a stage: the facts after it, and (path, message) of what it reports."""
    problems: list[tuple[str, str]] = []

    def report(path: str, message: str) -> None:
        problems.append((path, message))

    planning = Planning(facts, data, Launch(), Path("outputs"), report, report)
    return stage.preview(planning), problems
