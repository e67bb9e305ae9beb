"""The page of `compare --html`, as a file and in a real browser (`make test-browser`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.pages import EVIL, check_themes
from tests.reports.conftest import Runs, edit_json


@pytest.fixture
def write_evil(copies: Runs) -> Callable[..., Path]:
    """Compare runs whose texts are markup, by number: two of labels, and two of summaries."""
    folders = [copies.labels, copies.fewer_labels, copies.first, copies.changed]
    for folder in folders:

        def edit(records: Any) -> None:
            for record in records:
                if record["name"] in {"recover", "classify"}:
                    record["label"] = f"<b>{EVIL}"

        edit_json(folder / "metrics.json", edit)
        values = yaml.safe_load((folder / "recipe.yaml").read_text())
        (folder / "recipe.yaml").write_text(yaml.safe_dump(values | {"description": EVIL}))

    def write(*numbers: int) -> Path:
        path = copies.folder / "new" / "compared.html"
        answer = copies.call("compare", *(folders[n] for n in numbers), "--html", path)
        assert answer.code == 0, answer.err
        assert answer.out.endswith(f"page: {path}\n")
        return path

    return write


def test_the_page_needs_no_script_to_be_read(write_evil) -> None:
    """Every number is in a table; texts of recipes are escaped, and the policy forbids requests."""
    text = write_evil(0, 1).read_text("utf-8")
    static = text[text.index("<body>") : text.index('<script type="application/json"')]
    assert "<script" not in static and "&lt;script&gt;" in static and "{{9**9}}" in static
    assert "micro_f1" in static and "training.learning_rate" in static
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert text.count("<script") == 6 and text.count("</script>") == 6


# --- a real browser -------------------------------------------------------------------------------


@pytest.fixture
def open_page(open_file: Callable[..., Any]) -> Callable[..., Any]:
    """Open a comparison's page, and wait for its charts."""

    def opened(path: Path, **options: Any) -> Any:
        page = open_file(path, **options)
        page.wait_for_selector("#models[data-drawn]", state="attached")
        return page

    return opened


def _marks(page: Any, chart: str) -> int:
    count: int = page.locator(f"#{chart} .scatterlayer path.point").count()
    return count


def _hover(page: Any, chart: str, number: int) -> str:
    """What a mark tells."""
    mark = page.locator(f"#{chart} .scatterlayer path.point").nth(number)
    mark.scroll_into_view_if_needed()
    box = mark.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(f"#{chart} .hoverlayer .hovertext")
    text: str = page.locator(f"#{chart} .hoverlayer .hovertext").first.text_content()
    return text


def test_charts_tables_and_hover(write_evil, open_page: Callable[..., Any]) -> None:
    """A mark for each model with its interval; hovering tells it; all texts are texts."""
    page = open_page(write_evil(2, 3))
    assert page.title() != "broken" and page.locator("img").count() == 0
    assert (_marks(page, "differences"), _marks(page, "models")) == (2, 4)
    assert page.locator("#differences .errorbars path.xerror").count() == 2
    told = _hover(page, "differences", 0)
    assert "base" in told and "rougeLsum 0.0" in told and "95 %" in told and "p " in told
    assert "<b></script><script>document.title" in _hover(page, "models", 1)
    labels = page.locator("#models .textpoint").all_text_contents()
    assert sum(label.startswith("<b></script>") for label in labels) == 2
    assert EVIL.partition("\u2028")[0] in page.inner_text(".runs")
    assert page.locator("#scores tbody tr").count() == 6
    assert page.locator("#scores tr.headline").count() == 3
    check_themes(page, "#models .xtick text")


def test_another_metric_is_drawn_and_kept(write_evil, open_page: Callable[..., Any]) -> None:
    """Measures of labels that are not tested have hollow marks. A reload keeps the choice."""
    page = open_page(write_evil(0, 1))
    assert page.input_value("#metric") == "micro_f1"
    assert page.evaluate("differencesChart.data[0].marker.symbol") == "square"
    page.select_option("#metric", "roc_auc")
    page.wait_for_selector("#models[data-drawn='roc_auc']", state="attached")
    assert page.evaluate("differencesChart.data[0].marker.symbol") == "square-open"
    assert "not tested" in _hover(page, "differences", 0)
    assert page.locator("#differences .errorbars path.xerror").count() == 0
    page.reload()
    page.wait_for_selector("#models[data-drawn='roc_auc']", state="attached")
    assert page.text_content("#models .ytitle") == "roc_auc"


def test_headings_sort(write_evil, open_page: Callable[..., Any]) -> None:
    """Differences as numbers, both ways; and the three runs have a column each."""
    page = open_page(write_evil(0, 1, 2))
    heading = page.locator("#sizes th[data-key='before']")
    column = "rows => rows.map((row) => Number(row.cells[3].dataset.value))"
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        values = page.eval_on_selector_all("#sizes tbody tr", column)
        assert values == sorted(values, reverse=direction == "descending") and len(values) == 6
    assert page.locator("#recipe thead th").count() == 4
    assert "not paired" in page.inner_text("main")


def test_a_phone_needs_no_sideways_scroll(write_evil, open_page: Callable[..., Any]) -> None:
    """At 390 px tables scroll in their boxes, and charts are as wide as the page."""
    page = open_page(write_evil(2, 3), width=390, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for chart in ("differences", "models"):
        right = f"document.querySelector('#{chart} .main-svg').getBoundingClientRect().right"
        assert page.evaluate(right) <= 390
