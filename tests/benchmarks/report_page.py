"""What a run's report costs: to make, and to open. 40 stages, 3,000 rows, three models. No models.

    make bench NAME=report_page

A run's folder made by hand, in the formats that a run writes; sources of 1,000 characters. The page
is made in a process of its own (imports included), then opened in Debian's chromium: the time from
navigation until the text is painted, and until the charts of the first screen are drawn, and what
of it the page's main thread computed, which other work on the machine does not lengthen. Medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from compressor.core import machine
from tests.benchmarks.report import write
from tests.conftest import CHROMIUM_FLAGS
from tests.reports.handmade import make_run, random_texts
from tests.reports.run_page.test_page import large_run

ROUNDS = 5
MAKE = "import sys; from pathlib import Path; from compressor.reports.write import write_reports; "
MAKE += "write_reports(Path(sys.argv[1]), 'done')"


def main() -> None:
    """Measure, write `outputs/bench/report_page.json`."""
    with tempfile.TemporaryDirectory() as place:
        big = Path(place) / "large"
        source = [text[:1000] for text in random_texts(3000, 1, 240)]
        make_run(big, large_run(), source=source, recipe={"stages": {}})
        small = make_run(Path(place) / "small", rows=200)
        result: dict[str, Any] = {"machine": machine.describe_machine(), "rounds": ROUNDS}
        for name, folder in (("large", big), ("small", small)):
            seconds = [_make(folder) for _ in range(ROUNDS)]
            result[name] = {
                "bytes": (folder / "report.html").stat().st_size,
                "seconds_to_make": statistics.median(each[0] for each in seconds),
                "cpu_seconds_to_make": statistics.median(each[1] for each in seconds),
                **_open(folder / "report.html"),
            }
    write("report_page", result)


def _make(folder: Path) -> tuple[float, float]:
    """Seconds, and seconds of the processor, of a process that makes both files."""
    started, before = time.perf_counter(), os.times()
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
    after = os.times()
    cpu = after.children_user + after.children_system
    return time.perf_counter() - started, cpu - before.children_user - before.children_system


def _open(page: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    painted, drawn, busy = [], [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=CHROMIUM_FLAGS
        )
        for _ in range(ROUNDS):
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            session = tab.context.new_cdp_session(tab)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            started = time.perf_counter()
            tab.goto(page.as_uri(), wait_until="commit")
            tab.wait_for_selector("#waterfall[data-drawn]", state="attached")
            drawn.append(time.perf_counter() - started)
            paint = tab.evaluate(
                "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            )
            painted.append(paint / 1000)
            found = session.send("Performance.getMetrics")["metrics"]
            busy += [each["value"] for each in found if each["name"] == "TaskDuration"]
            tab.close()
        browser.close()
    return {
        "seconds_to_text": statistics.median(painted),
        "seconds_to_charts": statistics.median(drawn),
        "cpu_seconds_of_main_thread": statistics.median(busy),
    }


if __name__ == "__main__":
    main()
