"""What every page promises: numbers a person can read, and texts that are texts."""

from __future__ import annotations

import pytest

from compressor.core.numbers import format_duration, format_values
from compressor.reports.html.render import _read_plotly, render


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("bytes", [6033344, 1575360, None], ["6.033 MB", "1.575 MB", ""]),
        ("bytes", [307870000, 61500], ["307.9 MB", "0.1 MB"]),
        ("resident_bytes", [512], ["512 B"]),
        ("parameters", [76961152, 64370000], ["76.96 M", "64.37 M"]),
        ("nonzero_ratio", [1.0, 0.30544], ["1.0000", "0.3054"]),
        ("rougeLsum", [0.9086469, 0.0002], ["0.9086", "0.0002"]),
        ("latency_p50_ms", [63.6123, 7.1], ["63.61", "7.10"]),
        ("count", [200, 1200], ["200", "1,200"]),
        ("loss", [0.00031234], ["0.000312"]),
        ("loss", [float("nan"), 2.5], ["nan", "2.500"]),
    ],
)
def test_a_column_has_one_unit_and_one_precision(name: str, values, expected) -> None:
    """The largest value chooses both, so that a column can be read down."""
    assert format_values(name, values) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(4.23, "4.2 s"), (59.99, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_are_read_at_a_glance(seconds: float, expected: str) -> None:
    """Two units at most."""
    assert format_duration(seconds) == expected


def test_plotly_ends_no_script_early() -> None:
    """Plotly's script stands inside the page: it may hold no tag that would end it, or hide it."""
    from plotly.offline import get_plotlyjs

    script = get_plotlyjs()
    assert _read_plotly() == script
    assert "</script" not in script.lower() and "<!--" not in script
    policy = render("reports/html/base.html", {}).split('Content-Security-Policy" content="')[1]
    assert policy.startswith("default-src 'none';") and "http" not in policy.split('"')[0]
