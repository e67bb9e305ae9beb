"""Ages and sizes as a person writes them on the command line: `30d`, `20GB`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_BYTES = {"b": 1} | {
    f"{letter}{binary}b": (1024 if binary else 1000) ** power
    for power, letter in enumerate("kmgtp", 1)
    for binary in ("", "i")
}
_LONGEST = 100 * 366 * 86400.0
"""A century: an age above it is a mistake."""
_LARGEST = 10**18
_WRITTEN = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]+)", re.ASCII)


def age(text: str) -> float:
    """Seconds, from a number and a unit: s, m(inutes), h, d, w. Raises ArgumentTypeError."""
    example = "expected a number and s, m, h, d or w, such as 30d"
    return _amount(text, _SECONDS, _LONGEST, example)


def size(text: str) -> int:
    """Bytes, from a number and a unit: B, kB, MB, GB, TB, PB, or KiB, MiB … of 1024."""
    example = "expected a number and a unit, such as 500MB or 20GB"
    return int(_amount(text, _BYTES, _LARGEST, example))


def _amount(text: str, units: Mapping[str, int], most: float, example: str) -> float:
    found = _WRITTEN.fullmatch(text.strip())
    unit = None if found is None else units.get(found[2].lower())
    if found is None or unit is None:
        raise argparse.ArgumentTypeError(f"{text!r}: {example}")
    amount = float(found[1]) * unit
    if amount > most:
        raise argparse.ArgumentTypeError(f"{text!r} is too large")
    return amount
