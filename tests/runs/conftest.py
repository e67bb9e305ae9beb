"""Pages of handmade runs and sweeps, written to a file and opened in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.core.files import write_text
from compressor.engine.past_run import RunRecord
from compressor.reports.compare.compare import compare
from compressor.reports.compare.page import write_page as write_comparison
from compressor.reports.run_page.page import render_page
from compressor.reports.run_page.results import Results
from compressor.runs.sweeps.page import write_page as write_sweep
from compressor.runs.sweeps.state import PointStatus, Sweep
from tests.harness.pages import EVIL
from tests.reports.handmade import (
    full_run,
    make_run,
)
from tests.runs.sweeps.handmade import AIMS, make_sweep

REPORT, COMPARED, SWEEP = "report.html", "compared.html", "sweep.html"
CHARTS = {
    REPORT: ("waterfall", "losses", "sparsity", "lengths", "sensitivity", "cases"),
    COMPARED: ("differences", "models"),
    SWEEP: ("chart",),
}
POINTS = ".scatterlayer path.point"
MARKS = f"{POINTS}, .waterfalllayer .point path, .scatterlayer .js-line, .heatmaplayer image"
BAD = f"<img src=x>{EVIL}"
EVIL_RUN = {
    "source": [BAD, BAD, "half \ud83d pair".encode("utf-8", "replace").decode()],
    "recipe": {"name": BAD, "description": BAD},
    "environment": {"command": ["compressor", BAD], "platform": BAD},
    "asked": {"changed": [{"path": BAD, "before": BAD, "after": {"a": BAD}}]},
}
Open = Callable[..., Any]


def write_handmade(name: str, folder: Path, *, evil: bool = False) -> None:
    """Write a page of runs or points made by hand; `evil`: whose texts are markup."""
    if name == SWEEP:
        points = [
            PointStatus(f"{n}{EVIL.replace('/', '')}", {EVIL: BAD}, "done",
                  metrics={"rougeLsum": 0.1 * n, "bytes": n, BAD: n})
            for n in (1, 2)
        ]  # fmt: skip
        write_sweep(folder / SWEEP, Sweep(EVIL, points, AIMS) if evil else make_sweep())
        return
    records = [made | ({"label": BAD} if evil else {}) for made in full_run()]
    for made in records:
        made["metrics"] |= {"loss": 2.0} if made["stage"] == "evaluate" and name == COMPARED else {}
    how: Any = EVIL_RUN if evil else {}
    run = make_run(folder, records, **how)
    if name == REPORT:
        results = Results.read(run, "failed", f"half \ud83d {BAD}") if evil else Results.read(run)
        write_text(run / REPORT, render_page(results))
    else:  # with other predictions
        other = make_run(folder / "other", [r for r in records if r["name"] != "prune"], **how)
        write_comparison(run / COMPARED, compare([RunRecord.read(run), RunRecord.read(other)]))


def draw(page: Any, chart: str) -> Any:
    """Scroll to a chart and wait until it is drawn."""
    page.locator(f"#{chart}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{chart}[data-drawn]", state="attached", timeout=60_000)
    return page.locator(f"#{chart}")


@pytest.fixture
def open_page(open_file: Open, tmp_path: Path) -> Open:
    """Open a page, which is written first if it is not there, and draw its charts."""

    def opened(name: str, *, evil: bool = False, **options: Any) -> Any:
        if not (tmp_path / name).exists():
            write_handmade(name, tmp_path, evil=evil)
        page = open_file(tmp_path / name, **options)
        for chart in CHARTS[name]:
            if page.locator(f"#{chart}").count():
                draw(page, chart)
        return page

    return opened


def hover(page: Any, mark: Any, tip: str = ".hoverlayer .hovertext") -> str:
    """Move to the middle of a mark; what it tells."""
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f"{tip}:visible")
    return " ".join(page.locator(tip).first.text_content().split())


def list_cells(page: Any, table: str, key: str) -> list[str]:
    """List what a column sorts by, from top to bottom."""
    cells: list[str] = page.evaluate(
        """([table, key]) => {
            const element = document.getElementById(table);
            const at = [...element.tHead.rows[0].cells].findIndex((c) => c.dataset.key === key);
            const cells = [...element.querySelectorAll("tbody tr")].map((row) => row.cells[at]);
            return cells.filter(Boolean).map((c) => c.dataset.value ?? c.textContent.trim());
        }""",
        [table, key],
    )
    return cells


def find_mark(page: Any, number: int) -> tuple[float, float]:
    """Find where the mark of a point is on the screen, in px."""
    box = page.evaluate(
        """number => {
            const marks = chart.querySelectorAll(".scatterlayer path.point");
            const box = marks[[...drawn[1], ...drawn[2]].indexOf(number)].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        number,
    )
    return box[0], box[1]
