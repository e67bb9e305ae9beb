"""Collects what the campaign tried and what came of it, into one table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.store import write_text
from tests.faults import LONG

TABLE = Path(__file__).parent.parent.parent / "outputs" / "faults.md"
Tell = Callable[..., None]
_ROWS = pytest.StashKey[list[tuple[str, str, int, str]]]()


@pytest.fixture
def tell(record_property: Callable[[str, Any], None]) -> Tell:
    """Give the table a row, or add to it: `tell("kills", "SIGKILL in finetune", "same weights")`.

    Rows of the same area, fault and outcome, of any test, are one; `times` adds up. Call it after
    the assertions: only rows of tests that pass are written.
    """

    def told(area: str, fault: str, outcome: str, times: int = 1) -> None:
        record_property("tried", [area, fault, times, outcome])

    return told


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


class _Table:
    """The table of all workers, written when the campaign ends."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows = config.stash[_ROWS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.rows += [tuple(row) for name, row in report.user_properties if name == "tried"]

    def pytest_sessionfinish(self) -> None:
        if LONG and self.rows:
            TABLE.parent.mkdir(exist_ok=True)
            write_text(TABLE, as_table(self.rows))


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker's reports come to the controller
        session.config.pluginmanager.register(_Table(session.config))


def as_table(rows: list[tuple[str, str, int, str]]) -> str:
    """Markdown, in order of area and fault."""
    times: dict[tuple[str, str, str], int] = defaultdict(int)
    for area, fault, count, outcome in rows:
        times[area, fault, outcome] += count
    lines = ["| | fault | times | what happened |", "|---|---|--:|---|"]
    lines += [
        f"| {area} | {fault} | {count:,} | {outcome} |"
        for (area, fault, outcome), count in sorted(times.items())
    ]
    return "\n".join(lines) + "\n"
