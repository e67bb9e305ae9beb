"""Whether two artifacts of one stage, made by different processes, are the same. Runs nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.store import MANIFEST

if TYPE_CHECKING:
    from torch import Tensor

HARDLY = 0.1
"""A tensor whose entries changed less than this, relative to all entries' mean, hardly did."""
_KEYS = ("gap", "change", "entries")
_NUMBER = re.compile(r"-?\d+\.?\d*(?:[eE][+-]?\d+)?|NaN|-?Infinity|nan|-?inf")
_TIMES = re.compile(r"second|resumed|changes_of_processes|_ms$|latency|_bytes$")
"""Metrics that differ from one time to the next."""


@dataclass(frozen=True)
class Tolerance:
    """What sums in another order may change."""

    numbers: float
    """A loss or a score, relative to the larger one, or to 1 where both are smaller."""
    updates: float
    """The norm of the difference of what a training changed / the norm of the change, of all
    tensors together; ten times as much of each that changed at all."""


ROUNDING = {
    "float32": Tolerance(numbers=1e-4, updates=2e-2),
    "bfloat16": Tolerance(numbers=1e-2, updates=5e-2),
}
"""Of a training in this precision. AdamW divides a gradient by its own size, so that what is only
rounding moves its weight as any other does: updates differ by more than losses do."""


@dataclass(frozen=True)
class Compared:
    """What was found: the files that are the same, and the first thing that is not."""

    files: tuple[str, ...]
    wrong: str = ""


def compare(
    one: Path, two: Path, before: Path | None, metrics: tuple[Any, Any], tolerance: Tolerance
) -> Compared:
    """Compare two folders, file by file, and what their stages measured, without times.

    `before`: the model that the stage took; what it changed in it is what is compared.
    """
    names = [_files(one), _files(two)]
    if names[0] != names[1]:
        odd = min(names[0] ^ names[1])
        return Compared((), f"only one of the two wrote {odd}")
    for name in sorted(names[0]):
        if (
            wrong := _file(one / name, two / name, before and before / name, tolerance)
        ) is not None:
            return Compared((), f"{name}: {wrong}")
    for path, a, b in _differing(*metrics, tolerance.numbers):
        return Compared((), f"{path} is {a!r} in one process and {b!r} in two")
    return Compared(tuple(sorted(names[0])))


def _files(folder: Path) -> set[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files} - {MANIFEST}


def _file(one: Path, two: Path, before: Path | None, tolerance: Tolerance) -> str | None:
    """What differs between two files of the same name; None where nothing does."""
    if one.suffix == ".safetensors":
        return _tensors(one, two, before, tolerance)
    if one.read_bytes() == two.read_bytes():
        return None
    if one.suffix not in {".csv", ".json", ".jsonl", ".txt"}:
        return "the bytes differ"
    texts = [path.read_text(encoding="utf-8") for path in (one, two)]
    if _NUMBER.split(texts[0]) != _NUMBER.split(texts[1]):
        return "the texts differ"
    numbers = (map(float, _NUMBER.findall(text)) for text in texts)
    for a, b in zip(*numbers, strict=True):
        if not _close(a, b, tolerance.numbers):
            return f"{a!r} in one process is {b!r} in two"
    return None


def _tensors(one: Path, two: Path, before: Path | None, tolerance: Tolerance) -> str | None:
    import torch
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(two)
    old = load_file(before) if before is not None and before.is_file() else {}
    if a.keys() != b.keys():
        return f"only one of the two has {min(a.keys() ^ b.keys())}"
    moved: dict[str, _Moved] = {}
    for name, tensor in a.items():
        other = b[name]
        if tensor.dtype != other.dtype or tensor.shape != other.shape:
            return f"{name} has another shape or type"
        if tensor.is_floating_point():
            moved[name] = _Moved.of(tensor, other, old.get(name))
        elif not torch.equal(tensor, other):
            return f"{name} differs"
    return _apart(moved, tolerance.updates)


@dataclass(frozen=True)
class _Moved:
    """What a training changed in a tensor, squared and summed over its entries."""

    gap: float
    """The difference between what two ways of running changed."""
    change: float
    entries: int

    @classmethod
    def of(cls, one: Tensor, two: Tensor, before: Tensor | None) -> _Moved:
        one, two = one.double(), two.double()
        start = before.double() if before is not None and before.shape == one.shape else 0.0
        gap, change = float((one - two).square().sum()), float((one - start).square().sum())
        return cls(gap, change, one.numel())

    @property
    def share(self) -> float:
        """The norm of the difference / the norm of the change; NaN where an entry is."""
        return math.sqrt(self.gap / max(self.change, 1e-30)) if self.gap else 0.0


def _apart(moved: Mapping[str, _Moved], tolerance: float) -> str | None:
    """Which tensors two ways of running changed otherwise: all together, or one by itself.

    One that hardly changed is left to the whole: the gradient of an attention's key bias is zero
    but for rounding, and so is all that can be said of it.
    """
    whole = _Moved(*(sum(getattr(m, key) for m in moved.values()) for key in _KEYS))
    if not whole.share <= tolerance:
        return f"what two processes changed differs by {whole.share:.2g} of the change"
    mean = whole.change / max(1, whole.entries)
    for name, own in moved.items():
        if own.change >= HARDLY**2 * mean * own.entries and not own.share <= 10 * tolerance:
            return f"{name}: what two processes changed differs by {own.share:.2g} of the change"
    return None


def _close(a: float, b: float, tolerance: float) -> bool:
    both_nan = math.isnan(a) and math.isnan(b)
    return both_nan or a == b or abs(a - b) <= tolerance * max(1.0, abs(a), abs(b))


def _differing(
    one: Any, two: Any, tolerance: float, path: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, value) of what differs by more than rounding, times left out."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in dict.fromkeys([*one, *two]):
            if not _TIMES.search(str(key)):
                inner = f"{path}.{key}" if path else str(key)
                yield from _differing(one.get(key), two.get(key), tolerance, inner)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for index, pair in enumerate(zip(one, two, strict=True)):
            yield from _differing(*pair, tolerance, f"{path}.{index}")
    elif isinstance(one, float) and isinstance(two, float):
        if not _close(one, two, tolerance):
            yield path, one, two
    elif one != two:
        yield path, one, two
