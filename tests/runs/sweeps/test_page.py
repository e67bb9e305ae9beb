"""`sweep.html` in a real browser: what a person sees, does, and comes back to.

Tests with `browser` need Playwright and Debian's chromium (`make test-browser`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compressor.runs.sweeps.page import write_page
from compressor.runs.sweeps.state import Direction, PointStatus, Sweep
from tests.harness.pages import EVIL, Text, check_themes

HEAD, FEED = "stages.prune.amounts.lm_head", "stages.prune.amounts.feed_forward"
AIMS: list[tuple[str, Direction]] = [("rougeLsum", "maximize"), ("bytes", "minimize")]
MARKS = "#chart .scatterlayer path.point"


def done_point(number: int, head: float, feed: float, quality: float, size: float) -> PointStatus:
    metrics = {
        "parameters": 76961152,
        "nonzero_ratio": size / 307.87e6,
        "bytes": size,
        "rouge1": quality + 0.06,
        "rougeLsum": quality,
        "gen_len": 36.5,
        "retention": quality / 0.43,
        "latency_p50_ms": size / 5e6,
        "latency_p95_ms": size / 4e6,
        "texts_per_second": 3e10 / size,
    }
    differs = {HEAD: str(head), FEED: str(feed)}
    return PointStatus(str(number), differs, "done", None, None, 4, 9, 75.5, metrics)


def _sweep() -> Sweep:
    """12 points over two keys: 9 done, 1 failed, 1 running, 1 waiting."""
    random_ = random.Random(3)
    points = []
    for number in range(12):
        head, feed = (0.1, 0.3, 0.5, 0.7)[number % 4], (0.1, 0.3, 0.5)[number // 4]
        size = round(307.87e6 * (1 - 0.4 * head - 0.25 * feed))
        quality = 0.42 - 0.16 * head**2 - 0.12 * feed**2 + random_.gauss(0, 0.02)
        points.append(done_point(number, head, feed, quality, size))
    error = "stage recover: the loss is NaN at step 312. " + "A long explanation follows. " * 40
    points[7] = replace(points[7], state="failed", error=error, metrics={})
    points[10] = replace(points[10], state="running", stage="recover", metrics={})
    points[11] = PointStatus("11", points[11].differs)
    return Sweep(
        recipe="homework/v3",
        points=points,
        objectives=AIMS,
        description="T5 pruned to several ratios, then repaired.",
        command=f"compressor run homework/v3 -m {HEAD}=0.1,0.3,0.5,0.7 {FEED}=0.1,0.3,0.5",
        started=datetime(2026, 3, 1, 12, tzinfo=UTC),
        counts=(41, 66),
    )


def _search(count: int) -> Sweep:
    """Random trials, as a search makes them: one in 17 was stopped early."""
    random_ = random.Random(5)
    points = []
    for number in range(count):
        head, feed = round(random_.uniform(0.05, 0.9), 4), round(random_.uniform(0.05, 0.9), 4)
        size = round(307.87e6 * (1 - 0.4 * head - 0.25 * feed))
        quality = 0.42 - 0.16 * head**2 - 0.12 * feed**2 + random_.gauss(0, 0.02)
        point = done_point(number, head, feed, quality, size)
        points.append(replace(point, state="pruned") if number % 17 == 3 else point)
    return Sweep("homework/v3", points, AIMS)


def _read(tmp_path: Path, sweep: Sweep) -> Text:
    write_page(tmp_path / "sweep.html", sweep)
    return Text((tmp_path / "sweep.html").read_text("utf-8"))


# --- what the file says, without a browser --------------------------------------------------------


def test_the_page_says_what_was_asked_and_how_far_it_is(tmp_path: Path) -> None:
    """Title, command, progress and what was shared stand in the page without any script."""
    sweep = _sweep()
    text = _read(tmp_path, replace(sweep, running=True)).words
    assert "9 of 12 points done, 1 failed, 1 running, 1 waiting" in text
    assert "41 distinct stages instead of 66" in text
    assert sweep.command in text and sweep.description in text
    assert sweep.points[7].error is not None and sweep.points[7].error.strip() in text
    text = _read(tmp_path, sweep).words
    assert "9 of 12 points done, 1 failed, 1 not ended, 1 waiting" in text
    assert "1 running" not in text


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "This sweep has no points."),
        ([PointStatus("0", {}, "running", "prune")], "No point is done yet."),
        (
            [PointStatus("0", {}, "failed", error="x")] * 2,
            "Every point failed. The errors are below.",
        ),
        ([PointStatus("0", {}, "done")], "Nothing was measured"),
        ([PointStatus("0", {}, "done", metrics={"bytes": 3})], "Only bytes was measured."),
        (
            [PointStatus("0", {}, "done", metrics={"bytes": 3, "loss": float("nan")})],
            "Only bytes was",
        ),
    ],
)
def test_a_page_without_a_chart_says_why(tmp_path: Path, points, message: str) -> None:
    """No empty axes: a sentence, and no chart's script in the file."""
    page = _read(tmp_path, Sweep("demo", points, AIMS, running=True))
    assert message in page.words
    assert (tmp_path / "sweep.html").stat().st_size < 100_000
    assert not any(attributes.get("id") == "chart" for _, attributes in page.tags)


def test_links_lead_to_a_report_if_there_is_one(tmp_path: Path) -> None:
    """To `report.html` where it is, else to the run's folder; none where nothing has begun."""
    names = ["0", "lm_head=0.3,x:y", "ä b#1?%", "3"]
    (tmp_path / names[2]).mkdir()
    (tmp_path / names[2] / "report.html").write_text("")
    states = ["done", "failed", "done", "waiting"]
    points = [PointStatus(name, {}, state) for name, state in zip(names, states, strict=True)]  # type: ignore[arg-type]
    page = _read(tmp_path, Sweep("demo", points))
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["0/", "lm_head%3D0.3%2Cx%3Ay/", "%C3%A4%20b%231%3F%25/report.html"]


def test_every_text_is_a_text(tmp_path: Path) -> None:
    """Names, values, errors and commands may hold markup: a reader of HTML sees them as they are.

    Half of a surrogate pair, which a file's name can have, stops nothing.
    """
    points = [
        PointStatus(EVIL.replace("/", ""), {EVIL: EVIL}, "failed", error=EVIL),
        PointStatus("ok\udcff", {}, "done", metrics={EVIL: 1.0, "bytes": 2.0}),
    ]
    page = _read(tmp_path, Sweep(EVIL, points, command=EVIL, description=EVIL))
    assert page.plain.count(EVIL) == 7  # title, heading, description, command, key, value, error
    assert "ok?" in page.plain and "387420489" not in page.plain
    assert [tag for tag, _ in page.tags].count("script") == 6


# --- a real browser -------------------------------------------------------------------------------


Open = Callable[..., Any]


@pytest.fixture
def open_page(open_file: Open, tmp_path: Path) -> Open:
    """Write a sweep's page and open it."""

    def opened(sweep: Sweep, **options: Any) -> Any:
        write_page(tmp_path / "sweep.html", sweep)
        page = open_file(tmp_path / "sweep.html", **options)
        if page.locator("#chart").count():
            page.wait_for_selector("#chart[data-drawn]", state="attached")
        return page

    return opened


def _until(page: Any, true: Callable[[], bool]) -> None:
    """Wait until something is true: the page's policy forbids Playwright's own way to."""
    for _ in range(100):
        if true():
            return
        page.wait_for_timeout(200)
    raise TimeoutError


def _column(page: Any, key: str) -> list[str]:
    """The cells of a column, from top to bottom."""
    cells: list[str] = page.evaluate(
        """key => {
            const at = headings.findIndex((heading) => heading.dataset.key === key);
            const bodies = [...document.getElementById("points").tBodies];
            return bodies.map((body) => body.rows[0].cells[at].innerText.trim());
        }""",
        key,
    )
    return cells


def _mark(page: Any, number: int) -> tuple[float, float]:
    """Where the mark of a point is on the screen, in px."""
    box = page.evaluate(
        """number => {
            const marks = chart.querySelectorAll(".scatterlayer path.point");
            const box = marks[[...drawn[1], ...drawn[2]].indexOf(number)].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        number,
    )
    return box[0], box[1]


def _on_front(page: Any) -> list[str]:
    texts: list[str] = page.eval_on_selector_all(
        "#points tbody:has(.mark[title]:not([title='']))", "bodies => bodies.map((b) => b.id)"
    )
    return texts


def test_a_mark_for_each_done_point(open_page: Open) -> None:
    """Failed, running and waiting points are in the table alone; one point is a chart, too."""
    page = open_page(replace(_sweep(), points=_sweep().points[:1]))
    assert page.locator(MARKS).count() == 1
    assert _on_front(page) == ["point-0"]
    page = open_page(_sweep())
    check_themes(page, "#chart .xtick text")
    assert page.locator(MARKS).count() == 9
    assert page.locator("#points tbody").count() == 12
    assert page.evaluate("[axes.x, axes.y, axes.size]") == ["bytes", "rougeLsum", "latency_p50_ms"]


def test_the_front_is_the_same_in_chart_table_and_python(open_page: Open) -> None:
    """The script that follows a person's choice of axes agrees with `find_front`."""
    sweep = _search(100)
    expected = [f"point-{n}" for n, mark in enumerate(sweep.mark_front()) if mark]
    page = open_page(sweep)
    assert 3 < len(expected) < 60
    assert _on_front(page) == expected
    assert page.evaluate("drawn[2].length") == len(expected)
    assert page.locator(MARKS).count() == 94
    assert page.evaluate("chart.data[0].x.length") == len(expected)  # the line is through them all


def test_a_person_chooses_the_axes(open_page: Open) -> None:
    """The front is then of both axes; where neither way is better there is none."""
    page = open_page(_sweep())
    before = _on_front(page)
    page.select_option("#axis-size", "rouge1")
    assert _on_front(page) == before
    page.select_option("#axis-x", "latency_p95_ms")
    page.select_option("#axis-y", "texts_per_second")
    assert "latency_p95_ms ↓, texts_per_second ↑" in page.inner_text("#chart-notes")
    assert _on_front(page) == ["point-3"]  # the smallest is the quickest
    page.select_option("#axis-y", "gen_len")
    assert "neither more nor less gen_len is better" in page.inner_text("#chart-notes")
    assert _on_front(page) == [] and page.locator(MARKS).count() == 9
    page.reload()
    page.wait_for_selector("#chart[data-drawn]")
    assert page.input_value("#axis-y") == "gen_len"
    page.click("#axes-reset")
    assert _on_front(page) == before


def test_a_mark_tells_its_point_and_opens_its_run(open_page: Open, tmp_path: Path) -> None:
    """Hover: what differs and every metric, and its row is lit. Click: the run's report."""
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "report.html").write_text("<title>the report</title>")
    page = open_page(_sweep())
    page.mouse.move(*_mark(page, 4))
    page.wait_for_selector("#tip:visible")
    tip = " ".join(page.inner_text("#tip").split())
    assert "lm_head 0.1 feed_forward 0.3" in tip and "gen_len 36.50" in tip
    assert "bytes 272.5 MB" in tip  # 307.87 · (1 − 0.4 · 0.1 − 0.25 · 0.3)
    assert page.locator("#points tbody.lit").get_attribute("id") == "point-4"
    page.mouse.click(*_mark(page, 4))
    page.wait_for_url("**/4/report.html")
    assert page.title() == "the report"


def test_a_row_rings_its_mark(open_page: Open) -> None:
    """The other way round: a pointer on a row, or focus in it, shows where the point is."""
    page = open_page(_sweep())
    for light in (
        lambda: page.hover("#point-4 td >> nth=0"),
        lambda: page.focus("#link-4"),
    ):
        light()
        assert page.evaluate("chart.data[3].x") == [page.evaluate("points[4].metrics.bytes")]
        page.mouse.move(2, 2)
        page.evaluate("document.activeElement.blur()")
        assert page.evaluate("chart.data[3].x") == []


def test_headings_sort_numbers_as_numbers(open_page: Open) -> None:
    """Ascending, descending, back; empty cells last both ways; by keyboard; told to a reader."""
    page = open_page(_sweep())
    heading = page.locator("th[data-key='metric:bytes']")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    sizes = _column(page, "metric:bytes")
    numbers = [float(size.split()[0]) for size in sizes[:9]]
    assert numbers == sorted(numbers) and sizes[9:] == ["", "", ""]
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    sizes = _column(page, "metric:bytes")
    assert [float(size.split()[0]) for size in sizes[:9]] == numbers[::-1]
    assert sizes[9:] == ["", "", ""]
    heading.locator("button").press("Space")
    assert heading.get_attribute("aria-sort") is None
    page.click("th[data-key='point'] button")
    page.click("th[data-key='point'] button")
    names = [name.split()[-1] for name in _column(page, "point")]
    assert names == [str(number) for number in reversed(range(12))]  # 10 is not after 1


def test_a_long_error_is_cut_and_can_be_read(open_page: Open) -> None:
    """Three lines and a button; a failed point is told by a word, not by colour alone."""
    page = open_page(_sweep())
    error = page.locator("#error-7")
    before = error.bounding_box()["height"]
    page.get_by_role("button", name="Show all").click()
    assert error.bounding_box()["height"] > before * 1.5
    assert page.inner_text("#point-7 .state") == "failed"


def test_markup_in_data_stays_text_in_the_browser(open_page: Open) -> None:
    """In table, tooltip, labels, axes and notes; nothing of it runs."""
    points = [
        PointStatus(f"{n}{EVIL.replace('/', '')}", {EVIL: f"<b>{n}</b>"}, "done",
              metrics={"rougeLsum": 0.1 * n, "bytes": n, f"<img src=x>{EVIL}": n})
        for n in (1, 2)
    ]  # fmt: skip
    page = open_page(Sweep(EVIL, points, AIMS))
    assert page.title() == f"{EVIL} sweep" != "broken"
    page.mouse.move(*_mark(page, 0))
    page.wait_for_selector("#tip:visible")
    assert "<b>1</b>" in page.inner_text("#tip") and "<script>" in page.inner_text("#tip")
    labels = page.eval_on_selector_all("#chart .textpoint", "all => all.map((e) => e.textContent)")
    assert labels == ["<b>1</b>", "<b>2</b>"]
    page.select_option("#axis-x", f"<img src=x>{EVIL}")
    assert page.text_content("#chart .xtitle").startswith("<img src=x></script><script>")
    assert page.locator("img").count() == 0


def test_a_phone_needs_no_sideways_scroll(open_page: Open) -> None:
    """At 360 px the table scrolls in its box; a touch shows a point and offers its run."""
    page = open_page(_sweep(), width=360, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("chart.querySelector('.main-svg').getBoundingClientRect().right") <= 360
    page.locator("#chart").scroll_into_view_if_needed()
    page.touchscreen.tap(*_mark(page, 4))
    page.wait_for_selector("#tip:visible")
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    assert page.get_by_role("link", name="Open this run").get_attribute("href") == "4/"
    assert page.url.endswith("sweep.html")


def test_an_open_page_follows_the_sweep(open_page: Open, tmp_path: Path) -> None:
    """A point that is done appears by itself; order, axes, place and focus stay; then it rests."""
    sweep = replace(_sweep(), running=True)
    page = open_page(sweep)
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
    write_page(tmp_path / "sweep.html", replace(sweep, points=points))
    _until(page, lambda: page.locator(MARKS).count() == 10)
    assert page.evaluate("window.same") is None
    assert _column(page, "metric:bytes")[0] == "1.0 MB"
    assert page.input_value("#axis-x") == "nonzero_ratio"
    assert page.evaluate("scrollY") == 333
    assert page.evaluate("document.activeElement.id") == "sort-metric:bytes"

    write_page(tmp_path / "sweep.html", replace(sweep, points=points, running=False))
    _until(page, lambda: page.title() == "homework/v3 sweep")
    page.wait_for_selector("#chart[data-drawn]")
    peeks: list[str] = []
    page.on("request", lambda request: peeks.append(request.url))
    page.wait_for_timeout(5000)
    assert peeks == []


def test_the_first_point_brings_the_chart(open_page: Open, tmp_path: Path) -> None:
    """A page without a chart works as well: rows light up, headings sort, and it follows."""
    sweep = replace(_sweep(), running=True)
    points = [replace(point, state="running", metrics={}) for point in sweep.points]
    page = open_page(replace(sweep, points=points))
    page.hover("#point-4")
    page.click("th[data-key='point'] button")
    assert page.locator("#chart").count() == 0
    points[0] = sweep.points[0]
    write_page(tmp_path / "sweep.html", replace(sweep, points=points))
    _until(page, lambda: page.locator(MARKS).count() == 1)


def test_a_gap_is_told(open_page: Open) -> None:
    """Done points that lack what an axis shows are not drawn, and the page says how many."""
    points = list(_sweep().points[:4])
    points[0] = replace(points[0], metrics={"bytes": 1.0})
    page = open_page(replace(_sweep(), points=points))
    assert page.locator(MARKS).count() == 3
    assert "1 of 4 done points lack bytes or rougeLsum" in page.inner_text("#chart-notes")
