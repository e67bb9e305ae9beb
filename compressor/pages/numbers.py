"""Numbers as a person reads them: one unit and one number of decimals for a whole column."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_BYTES = re.compile(r"(^|[_.])bytes(_|$)")
_COUNTS = re.compile(r"(^|[_.])(parameters|nonzero)$")
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(name: str, values: Sequence[float | None]) -> list[str]:
    """The values of the metric `name` as texts; a missing one is empty.

    Bytes are in kB, MB or GB (powers of 1000), parameters in thousands, millions or billions,
    and all others plain, with decimals that suit the largest.
    """
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)),
                  default=0.0)  # fmt: skip
    unit, scale = "", 1.0
    if _BYTES.search(name) or _COUNTS.search(name):
        scale, unit = next(
            ((scale, unit) for scale, unit in _SCALES if largest >= scale), (1.0, "")
        )
        unit = f" {unit}B" if _BYTES.search(name) else unit and f" {unit}"
    decimals = _decimals(largest / scale, whole=scale == 1.0 and all(map(_is_whole, values)))
    return ["" if value is None else f"{value / scale:,.{decimals}f}{unit}" for value in values]


def _is_whole(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value == int(value))


def _decimals(largest: float, *, whole: bool) -> int:
    if whole and largest > 1:  # of ratios that are all 0 or 1, the next one is not
        return 0
    if largest == 0:
        return 4
    magnitude = max(math.floor(math.log10(largest)), -9)
    return max(4, 2 - magnitude) if largest < 2 else max(1, 3 - magnitude)


def duration(seconds: float) -> str:
    """Such as `4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: int) -> str:
    """Such as `12 B`, `3.4 kB`, `1.25 GB`."""
    return f"{count} B" if count < 1000 else shown("bytes", [count])[0]
