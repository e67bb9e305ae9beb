"""`sweep.html` in a real browser: axes, marks and rows, and what comes while it is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.runs.sweeps.page import write_page as write_sweep
from compressor.runs.sweeps.state import Sweep
from tests.runs.conftest import POINTS, SWEEP, Open, find_mark, list_cells
from tests.runs.sweeps.handmade import done_point, make_search, make_sweep


@pytest.fixture
def open_sweep(open_page: Open, tmp_path: Path) -> Open:
    """Write a sweep's page and open it."""

    def opened(sweep: Sweep) -> Any:
        write_sweep(tmp_path / SWEEP, sweep)
        return open_page(SWEEP)

    return opened


def list_front(page: Any) -> list[str]:
    texts: list[str] = page.eval_on_selector_all(
        "#points tbody:has(.mark[title]:not([title='']))", "bodies => bodies.map((b) => b.id)"
    )
    return texts


def wait_until(page: Any, true: Callable[[], bool]) -> None:
    """Wait until something is true: the page's policy forbids Playwright's own way to."""
    for _ in range(100):
        if true():
            return
        page.wait_for_timeout(200)
    raise TimeoutError


def test_a_mark_for_each_done_point(open_sweep: Open) -> None:
    """Failed, running and waiting points are in the table alone, a long error behind a button; one
    point is a chart, too; of done points that lack what an axis shows it is told how many.
    """
    sweep = make_sweep()
    page = open_sweep(replace(sweep, points=sweep.points[:1]))
    assert page.locator(f"#chart {POINTS}").count() == 1 and list_front(page) == ["point-0"]
    page = open_sweep(replace(sweep, points=[replace(sweep.points[0], metrics={"bytes": 1.0}),
                                             *sweep.points[1:4]]))  # fmt: skip
    assert page.locator(f"#chart {POINTS}").count() == 3
    assert "1 of 4 done points lack bytes or rougeLsum" in page.inner_text("#chart-notes")
    page = open_sweep(sweep)
    assert page.locator(f"#chart {POINTS}").count() == 9
    assert page.locator("#points tbody").count() == 12
    assert page.evaluate("[axes.x, axes.y, axes.size]") == ["bytes", "rougeLsum", "latency_p50_ms"]
    error = page.locator("#error-7")
    before = error.bounding_box()["height"]
    page.get_by_role("button", name="Show all").click()
    assert error.bounding_box()["height"] > before * 1.5
    assert page.inner_text("#point-7 .state") == "failed"


def test_the_front_is_the_same_in_chart_table_and_python(open_sweep: Open) -> None:
    """The script that follows a person's choice of axes agrees with `find_front`."""
    sweep = make_search(100)
    expected = [f"point-{n}" for n, mark in enumerate(sweep.mark_front()) if mark]
    page = open_sweep(sweep)
    assert 3 < len(expected) < 60
    assert list_front(page) == expected
    assert page.evaluate("drawn[2].length") == len(expected)
    assert page.locator(f"#chart {POINTS}").count() == 94
    assert page.evaluate("chart.data[0].x.length") == len(expected)  # the line is through them all


def test_a_person_chooses_the_axes(open_page: Open) -> None:
    """The front is then of both axes; where neither way is better there is none."""
    page = open_page(SWEEP)
    before = list_front(page)
    page.select_option("#axis-size", "rouge1")
    assert list_front(page) == before
    page.select_option("#axis-x", "latency_p95_ms")
    page.select_option("#axis-y", "texts_per_second")
    assert "latency_p95_ms ↓, texts_per_second ↑" in page.inner_text("#chart-notes")
    assert list_front(page) == ["point-3"]  # the smallest is the quickest
    page.select_option("#axis-y", "gen_len")
    assert "neither more nor less gen_len is better" in page.inner_text("#chart-notes")
    assert list_front(page) == [] and page.locator(f"#chart {POINTS}").count() == 9
    page.click("#axes-reset")
    assert list_front(page) == before


def test_a_mark_and_its_row_light_each_other_and_open_the_run(open_page: Open, tmp_path) -> None:
    """Hover: what differs and every metric, and its row is lit. A pointer on a row, or focus in it,
    rings its mark. Click: the run's report.
    """
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "report.html").write_text("<title>the report</title>")
    page = open_page(SWEEP)
    page.mouse.move(*find_mark(page, 4))
    page.wait_for_selector("#tip:visible")
    tip = " ".join(page.inner_text("#tip").split())
    assert "lm_head 0.1 feed_forward 0.3" in tip and "gen_len 36.50" in tip
    assert "bytes 272.5 MB" in tip  # 307.87 · (1 − 0.4 · 0.1 − 0.25 · 0.3)
    assert page.locator("#points tbody.lit").get_attribute("id") == "point-4"
    for light in (lambda: page.hover("#point-4 td >> nth=0"), lambda: page.focus("#link-4")):
        light()
        assert page.evaluate("chart.data[3].x") == [page.evaluate("points[4].metrics.bytes")]
        page.mouse.move(2, 2)
        page.evaluate("document.activeElement.blur()")
        assert page.evaluate("chart.data[3].x") == []
    page.locator("#chart").scroll_into_view_if_needed()
    page.mouse.click(*find_mark(page, 4))
    page.wait_for_url("**/4/report.html")
    assert page.title() == "the report"


def test_an_open_page_follows_the_sweep(open_sweep: Open, tmp_path: Path) -> None:
    """The first point brings the chart, and another appears by itself; order, axes, place and focus
    stay; then it rests.
    """
    sweep = replace(make_sweep(), running=True)
    points = [replace(point, state="running", metrics={}) for point in sweep.points]
    page = open_sweep(replace(sweep, points=points))
    page.hover("#point-4")
    assert page.locator("#chart").count() == 0
    write_sweep(tmp_path / SWEEP, sweep)
    wait_until(page, lambda: page.locator(f"#chart {POINTS}").count() == 9)
    page.set_viewport_size({"width": 1280, "height": 500})
    assert page.title().startswith("(9/12)")
    page.select_option("#axis-x", "nonzero_ratio")
    page.click("th[data-key='metric:bytes'] button")
    page.evaluate("window.scrollTo(0, 333)")
    page.evaluate("window.same = true")
    page.wait_for_timeout(5000)
    assert page.evaluate("window.same") is True

    points = list(sweep.points)
    points[10] = done_point(10, 0.5, 0.5, 0.31, 1e6)
    write_sweep(tmp_path / SWEEP, replace(sweep, points=points))
    wait_until(page, lambda: page.locator(f"#chart {POINTS}").count() == 10)
    assert page.evaluate("window.same") is None
    assert list_cells(page, "points", "metric:bytes")[0] == "1000000.0"
    assert page.input_value("#axis-x") == "nonzero_ratio"
    assert page.evaluate("scrollY") == 333
    assert page.evaluate("document.activeElement.id") == "sort-metric:bytes"

    write_sweep(tmp_path / SWEEP, replace(sweep, points=points, running=False))
    wait_until(page, lambda: page.title() == "homework/v3 sweep")
    page.wait_for_selector("#chart[data-drawn]")
    peeks: list[str] = []
    page.on("request", lambda request: peeks.append(request.url))
    page.wait_for_timeout(5000)
    assert peeks == []
