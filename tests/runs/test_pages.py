"""The pages of a run, a comparison and a sweep in a real browser: what a person sees and does.

They need Playwright and Debian's chromium (`make test-browser`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
from tests.harness.pages import EVIL, Text, check_themes
from tests.reports.handmade import (
    full_run,
    labelled_run,
    large_run,
    make_run,
    random_texts,
    read_json,
)
from tests.runs.sweeps.test_page import AIMS, done_point, make_search, make_sweep

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


@pytest.mark.parametrize("name", CHARTS)
def test_every_text_is_a_text(name: str, tmp_path: Path) -> None:
    """Names, values, errors and commands may hold markup, and half of a surrogate pair: a reader of
    HTML, without any script, sees them as they are.
    """
    for folder, evil in (("plain", False), ("evil", True)):
        (tmp_path / folder).mkdir()
        write_handmade(name, tmp_path / folder, evil=evil)
    plain, page = (
        Text((tmp_path / folder / name).read_text("utf-8")) for folder in ("plain", "evil")
    )
    assert page.words.count("<script>document.title='broken'</script>") >= 4
    scripts = ([tag for tag, _ in text.tags].count("script") for text in (page, plain))
    assert len(set(scripts)) == 1 and "rougeLsum" in plain.words


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


@pytest.fixture
def open_sweep(open_page: Open, tmp_path: Path) -> Open:
    """Write a sweep's page and open it."""

    def opened(sweep: Sweep) -> Any:
        write_sweep(tmp_path / SWEEP, sweep)
        return open_page(SWEEP)

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


# --- what all three promise -----------------------------------------------------------------------


@pytest.mark.parametrize(("name", "chart"), [(REPORT, "losses"), (COMPARED, "models"),
                                             (SWEEP, "chart")])  # fmt: skip
def test_every_chart_has_marks_in_light_and_dark(open_page: Open, name: str, chart: str) -> None:
    """Drawn when it is scrolled to, and not empty."""
    page = open_page(name)
    for drawn in CHARTS[name]:
        assert page.locator(f"#{drawn}").locator(MARKS).count() >= 1, drawn
    check_themes(page, f"#{chart} .xtick text")


@pytest.mark.parametrize(
    ("name", "table", "key"),
    [(REPORT, "stages", "bytes"), (COMPARED, "sizes", "before"), (SWEEP, "points", "metric:bytes")],
)
def test_headings_sort_numbers_as_numbers(open_page: Open, name: str, table, key) -> None:
    """Ascending, descending, back; empty cells last both ways; by keyboard; told to a reader."""
    page = open_page(name)
    heading = page.locator(f"#{table} th[data-key='{key}']")
    before = list_cells(page, table, key)
    filled = sorted(filter(None, before), key=float)
    empty = [""] * (len(before) - len(filled))
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert list_cells(page, table, key) == filled + empty
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert list_cells(page, table, key) == filled[::-1] + empty
    heading.locator("button").press("Space")
    assert heading.get_attribute("aria-sort") is None and list_cells(page, table, key) == before


@pytest.mark.parametrize(
    ("name", "choice", "value"),
    [(REPORT, "#losses-choice", "1"), (COMPARED, "#metric", "loss"), (SWEEP, "#axis-y", "gen_len")],
)
def test_a_persons_choice_stays(open_page: Open, name: str, choice: str, value: str) -> None:
    """Over a reload."""
    page = open_page(name)
    assert page.input_value(choice) != value
    page.select_option(choice, value)
    page.wait_for_timeout(300)
    page.reload()
    draw(page, CHARTS[name][0])
    assert page.input_value(choice) == value


@pytest.mark.parametrize("name", CHARTS)
def test_markup_in_data_stays_text(open_page: Open, name: str) -> None:
    """In tables, ticks, labels, hover texts, summaries and sources; nothing of it runs."""
    page = open_page(name, evil=True)
    assert page.title() != "broken" and page.locator("img").count() == 0
    assert "<script>document.title='broken'</script>" in page.text_content("main")
    if name == SWEEP:
        page.select_option("#axis-x", BAD)
    drawn = page.locator("main svg text").all_text_contents()
    assert any(text.startswith("<img src=x></script>") for text in drawn)
    if name == REPORT:
        page.click("#texts details summary")
        assert "<img src=x></script><script>" in page.inner_text("#texts details p")
    else:
        tip = "#tip" if name == SWEEP else ".hoverlayer .hovertext"
        mark = page.locator(f"#{CHARTS[name][-1]} {POINTS}").first
        assert "<img src=x></script><script>" in hover(page, mark, tip)
    assert page.locator("img").count() == 0


@pytest.mark.parametrize("name", CHARTS)
def test_a_phone_needs_no_sideways_scroll(open_page: Open, name: str) -> None:
    """At 360 px tables scroll in their boxes, and every chart is as wide as the screen allows."""
    page = open_page(name, width=360, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for svg in page.locator("main .main-svg").all():
        box = svg.bounding_box()
        assert box is None or box["x"] + box["width"] <= 360
    if name == SWEEP:  # a touch shows a point and offers its run
        page.locator("#chart").scroll_into_view_if_needed()
        page.touchscreen.tap(*find_mark(page, 4))
        page.wait_for_selector("#tip:visible")
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
        assert page.get_by_role("link", name="Open this run").get_attribute("href") == "4/"


# --- a run ----------------------------------------------------------------------------------------


def test_the_charts_of_a_run(open_page: Open, open_file: Open, tmp_path: Path) -> None:
    """Panels beside each other; zeros of the model, losses of the training that a person chooses,
    also on a logarithmic axis; hovering tells the numbers.
    """
    page = open_page(REPORT)
    first, second, _ = (panel.bounding_box() for panel in page.locator("#waterfall .plot").all())
    assert first["x"] + first["width"] <= second["x"]
    drawn = page.locator("#waterfall .main-svg:first-child").first.bounding_box()
    assert drawn["width"] <= first["width"] + 1
    assert page.locator("#lengths .scatterlayer .point").count() == 3 * 3 * 2
    zeros = "document.querySelector('#sparsity .plot').data[0].z[0][0]"
    assert page.input_value("#sparsity-choice") == "2"  # load, base, prune: the last pruned one
    assert page.evaluate(zeros) == pytest.approx(0.6)
    box = draw(page, "sparsity").locator(".heatmaplayer image").bounding_box()
    page.mouse.move(box["x"] + 10, box["y"] + 10)
    page.wait_for_selector("#sparsity .hoverlayer .hovertext")
    text = page.locator("#sparsity .hoverlayer").text_content()
    assert "encoder.self_attention, layer 0" in text and "60.00%" in text
    assert "600 of 1,000" in text
    page.select_option("#sparsity-choice", label="load")
    page.check("#losses-log")
    page.select_option("#losses-choice", label="recover")
    page.wait_for_timeout(300)
    assert page.evaluate(zeros) == 0
    losses = "document.querySelector('#losses .plot')"
    assert page.evaluate(f"{losses}.layout.yaxis.type") == "log"
    assert page.evaluate(f"{losses}.data.length") == 2
    labels = make_run(tmp_path / "labels", labelled_run(), rows=0, recipe={"stages": {}})
    write_text(labels / REPORT, render_page(Results.read(labels)))
    assert draw(open_file(labels / REPORT), "labels").locator(POINTS).count() == 4


def test_the_most_regressed_summaries_come_first(open_page: Open, tmp_path: Path) -> None:
    """In the order that Python would sort them in; twenty at a time; what was lost is shown; a
    filter looks into sources, too, whatever the case.
    """
    sources = [*random_texts(44, 1), "A Needle in the hay."]
    folder = make_run(tmp_path, source=sources)
    write_text(folder / REPORT, render_page(Results.read(folder)))
    page = open_page(REPORT)
    kept = [
        read_json(path)["rougeLsum"] for path in sorted(folder.glob("stages/*/row_scores.json"))
    ]
    lost = [round(after - before, 4) for before, after in zip(kept[0], kept[2], strict=True)]
    expected = [f"row {n}" for n in sorted(range(45), key=lambda n: lost[n])]
    rows = page.locator("#texts article > p.muted")
    assert rows.all_text_contents() == expected[:20]
    assert page.locator("#texts .lost").first.text_content() == f"−{-min(lost):.4f}"
    assert page.inner_text("#texts-where") == "1 – 20 of 45"
    page.click("#texts-after")
    page.click("#texts-after")
    assert rows.all_text_contents() == expected[40:]
    assert page.locator("#texts-after").is_disabled()
    page.select_option("#texts-model", label="prune")
    assert rows.count() == 20 and rows.all_text_contents() != expected[:20]
    page.select_option("#texts-model", "all")
    assert page.locator("#texts article").first.locator(".side").count() == 4
    page.fill("#texts-filter", "needle")
    assert rows.count() == 1 and page.locator("#texts-pages").is_hidden()
    page.click("#texts details summary")
    assert page.inner_text("#texts details p") == "A Needle in the hay."
    page.fill("#texts-filter", "no such words")
    assert page.inner_text("#texts .empty") == "No row has that."


def test_words_that_differ_are_marked(open_page: Open, tmp_path: Path) -> None:
    """A word diff by hand: "a big red cat sat" against "a red dog sat down"."""
    folder = make_run(tmp_path, rows=1)
    for name, text in {"base": "a big red cat sat", "quantize": "a red dog sat down"}.items():
        (path,) = folder.glob(f"stages/*-evaluate@{name}/predictions.csv")
        lines = path.read_text().splitlines()
        cells = lines[2].split(",")
        path.write_text("\n".join([*lines[:2], ",".join([*cells[:4], text, *cells[5:]])]) + "\n")
    write_text(folder / REPORT, render_page(Results.read(folder)))
    page = open_page(REPORT)
    assert page.locator("#texts mark.gone").all_text_contents() == ["big", "cat"]
    assert page.locator("#texts mark.new").all_text_contents() == ["dog", "down"]
    sides = page.locator("#texts .side p").all_text_contents()
    assert sides[1:] == ["a big red cat sat", "a red dog sat down"]


def test_a_large_run_opens_soon_and_prints_every_chart(open_file: Open, tmp_path: Path) -> None:
    """40 stages and 3,000 predictions: text, and the charts of the first screen, within a bound.

    A generous one, for machines with other work: tests/benchmarks/report_page.py measures.
    """
    source = [text[:1000] for text in random_texts(3000, 1, 240)]
    folder = make_run(tmp_path, large_run(), source=source, recipe={"stages": {}})
    write_text(folder / REPORT, render_page(Results.read(folder)))
    started = time.monotonic()
    page = open_file(folder / REPORT)
    page.wait_for_selector("#waterfall[data-drawn]", state="attached", timeout=30_000)
    assert page.locator("#texts article").count() == 20
    assert time.monotonic() - started < 20
    assert page.locator("#stages tbody tr").count() == 40
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for chart in ("losses", "sparsity", "lengths"):  # which were never scrolled to
        page.wait_for_selector(f"#{chart}[data-drawn]", state="attached")
    assert page.pdf()[:5] == b"%PDF-"


# --- a comparison ---------------------------------------------------------------------------------


def test_the_charts_of_a_comparison(open_page: Open) -> None:
    """A mark for each pair with its interval, which hovering tells; of a measure that is not tested
    the marks are hollow.
    """
    page = open_page(COMPARED)
    pairs, models = (page.locator(f"#{chart} {POINTS}") for chart in CHARTS[COMPARED])
    intervals = page.locator("#differences .errorbars path.xerror")
    assert (pairs.count(), models.count(), intervals.count()) == (3, 6, 3)
    told = hover(page, pairs.first)
    assert "base" in told and "rougeLsum" in told and "95 %" in told and "p " in told
    assert page.locator("#scores tr.headline").count() == 4
    symbol = "differencesChart.data[0].marker.symbol"
    assert page.evaluate(symbol) == "square"
    page.select_option("#metric", "loss")
    page.wait_for_selector("#models[data-drawn='loss']", state="attached")
    assert page.evaluate(symbol) == "square-open" and intervals.count() == 0
    assert "not tested" in hover(page, pairs.first)
    assert page.text_content("#models .ytitle") == "loss"


# --- a sweep --------------------------------------------------------------------------------------


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
