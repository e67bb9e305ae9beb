"""Render pages that a person opens in a browser: one file each, with all that it needs inside it.

A template extends `reports/html/base.html`, which brings style, light and dark, sorting, and
Plotly's script. A page asks for nothing over a network: its own policy (CSP) forbids it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from compressor.core.numbers import replace_nonfinite

_PACKAGE = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class PageColumn:
    """A column of a page's table, a cell for each row."""

    key: str
    heading: str
    title: str
    cells: Sequence[str]
    values: Sequence[Any]
    """What sorting goes by; "" comes last."""
    number: bool = True
    rare: bool = False
    """Shown on demand."""


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill a template of this package, such as `runs/sweeps/page.html`, with `values`, all escaped.

    Adds `written`, the time. Half of a surrogate pair, as in a file name, becomes a question mark.
    """
    written = datetime.now().astimezone()
    text = _make_environment().get_template(template).render(values, written=written)
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _make_environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        asset=_read_asset, plotly=_read_plotly, json_for_script=json_for_script
    )
    return environment


def json_for_script(value: Any) -> Markup:
    """Write a value as JSON that can stand in a script element: no text in it ends the element."""
    text = json.dumps(
        replace_nonfinite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)  # noqa: S704  # nothing in it is markup


def _read_asset(name: str) -> Markup:
    """Read a style or script file of this package."""
    return Markup((_PACKAGE / name).read_text(encoding="utf-8"))  # noqa: S704  # our own file


@cache
def _read_plotly() -> Markup:
    """Read Plotly's script from its Python package, 4.8 MB. The package is not imported."""
    spec = find_spec("plotly")
    assert spec is not None and spec.origin is not None, "a dependency of ours"
    script = Path(spec.origin).parent / "package_data" / "plotly.min.js"
    return Markup(script.read_text(encoding="utf-8"))  # noqa: S704  # ends no script: tested
