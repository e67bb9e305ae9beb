"""What is NaN or infinite: found, and told by its place. How it came there is known to others.

No weight of a model in the store is, no metric, and no number in a JSON file. torch is imported by
those who have tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor


def replace_nonfinite(value: Any) -> Any:
    """A nested value with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [replace_nonfinite(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """Indented JSON, with null for each number that is not finite, which JSON does not have."""
    return json.dumps(replace_nonfinite(value), indent=2, allow_nan=False)


def not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of each number in a nested value that is not finite."""
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in items:
            yield from not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def require_finite_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise StageError that names the first metric that is not finite."""
    for path, value in not_finite(metrics):
        raise StageError(
            f"its metric {path} is {value}, which is no result: something that it computed with "
            "is too large, or was divided by 0"
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
        raise StageError(
            f"{what}{name} is {kind} in {wrong:,} of {tensor.numel():,} entries; {cure}"
        )


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
