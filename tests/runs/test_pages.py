"""The pages of a run, a comparison and a sweep: what a person sees and does in a real browser.

The browser is Playwright's and Debian's chromium (`make test-browser`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.files import write_text
from compressor.reports.run_page.page import render_page
from compressor.reports.run_page.results import Results
from tests.harness.pages import Text, check_themes
from tests.reports.handmade import (
    labelled_run,
    make_run,
    random_texts,
    read_json,
)
from tests.runs.conftest import (
    BAD,
    CHARTS,
    COMPARED,
    MARKS,
    POINTS,
    REPORT,
    SWEEP,
    Open,
    draw,
    find_mark,
    hover,
    list_cells,
    write_handmade,
)


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


def test_print_has_every_chart(open_file: Open, tmp_path: Path) -> None:
    """Printing draws what was never scrolled to."""
    write_handmade(REPORT, tmp_path)
    page = open_file(tmp_path / REPORT)
    draw(page, "waterfall")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for chart in CHARTS[REPORT]:
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
