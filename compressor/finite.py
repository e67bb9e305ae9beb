"""What is NaN or infinite: found, and told by its place. How it came there is known to others.

No weight of a model in the store is, no metric, and no number in a JSON file. torch is imported by
those who have tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from compressor.errors import StageError

if TYPE_CHECKING:
    from torch import Tensor


def finite(value: Any) -> Any:
    """A nested value with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def json_text(value: Any) -> str:
    """Indented JSON, with null for each number that is not finite, which JSON does not have."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


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
