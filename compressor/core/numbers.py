"""Find numbers that are NaN or infinite, and format numbers for a person. Imports no torch.

No weight of a model in the store is NaN or infinite, no metric, and no number in a JSON file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from compressor.core.differences import flatten
from compressor.core.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a number, which True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def replace_nonfinite(value: Any) -> Any:
    """Replace each number of a nested value that is not finite by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """Format indented JSON, with null for each number that is not finite."""
    return json.dumps(replace_nonfinite(value), indent=2, allow_nan=False)


def require_finite_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise StageError that names the first metric that is not finite."""
    for path, value in flatten(metrics, in_lists=True):
        if isinstance(value, float) and not math.isfinite(value):
            raise StageError(
                f"its metric {path} is {value}, which is no result: something that it computed "
                "with is too large, or was divided by 0"
            )


def require_finite(tensors: Mapping[str, Tensor], what: str, cure: str) -> None:
    """Raise StageError that names the first tensor with an entry that is NaN or infinite.

    `what` they are, such as "the score of "; what a person can do about it is `cure`.
    """
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(torch.isfinite(tensor).all()):
            continue
        wrong = tensor.numel() - int(torch.isfinite(tensor).count_nonzero())
        kind = "NaN" if bool(torch.isnan(tensor).any()) else "infinite"
        count = f"{wrong:,} of {tensor.numel():,} entries"
        raise StageError(f"{what}{name} is {kind} in {count}; {cure}")


_BYTES = re.compile(r"(^|[_.])bytes(_|$)")

_COUNTS = re.compile(r"(^|[_.])(parameters|nonzero)$")

_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_values(name: str, values: Sequence[float | None]) -> list[str]:
    """Format the values of the metric `name`; a missing one is empty.

    Bytes are in kB, MB or GB (powers of 1000), parameters in thousands, millions or billions,
    and all others plain, with decimals that suit the largest.
    """
    numbers = [value for value in values if value is not None]
    largest = max((abs(value) for value in numbers if math.isfinite(value)), default=0.0)
    unit, scale = "", 1.0
    if _BYTES.search(name) or _COUNTS.search(name):
        scale, unit = next((item for item in _SCALES if largest >= item[0]), (1.0, ""))
        unit = f" {unit}B" if _BYTES.search(name) else unit and f" {unit}"
    whole = scale == 1.0 and all(float(value).is_integer() for value in numbers)
    decimals = _count_decimals(largest / scale, whole=whole)
    return ["" if value is None else f"{value / scale:,.{decimals}f}{unit}" for value in values]


def _count_decimals(largest: float, *, whole: bool) -> int:
    if whole and largest > 1:  # of ratios that are all 0 or 1, the next one is not
        return 0
    if largest == 0:
        return 4
    magnitude = max(math.floor(math.log10(largest)), -9)
    return max(4, 2 - magnitude) if largest < 2 else max(1, 3 - magnitude)


def format_duration(seconds: float) -> str:
    """Format a duration, such as `4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: int) -> str:
    """Format a size, such as `12 B`, `3.4 kB`, `1.25 GB`."""
    return f"{count} B" if count < 1000 else format_values("bytes", [count])[0]
