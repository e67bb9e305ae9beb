"""What a model takes: memory of this process or a GPU, energy, and bytes on disk."""

from __future__ import annotations

import ctypes
import gc
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

_RESET_PEAK = "5"
"""What the kernel takes for "set the peak to what is resident now" (proc(5))."""


class Peak:
    """The most memory between the moment this is made and `bytes()`.

    Resident memory of the process where the device is "cpu", else that of torch's tensors on it.
    Memory that was freed and not yet given back to the system is given back first.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._device = device
        release_memory()
        self._resets = _reset_peak(device)
        self._before = 0 if self._resets else _read_peak(device)

    def bytes(self) -> int | None:
        """Read the peak; None where the system cannot reset it, and it was higher before."""
        most = _read_peak(self._device)
        return most if self._resets or most > self._before else None


def release_memory() -> None:
    """Give memory that nothing uses back to the system, where it is glibc's or a GPU's cache."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    torch = sys.modules.get("torch")  # a process without it has nothing of its to give back
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset_peak(device: str) -> bool:
    """Begin a new peak; tell whether that was possible."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _read_peak(device: str) -> int:
    """Read the peak since the last reset, in bytes."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


ROOT = Path("/sys/class/powercap")


class Counters:
    """The energy counters of all processor packages, DRAM domains left out.

    They count the whole machine: what other programs take is in them. Reading them needs the
    right to, which many systems keep from ordinary users.
    """

    def __init__(self, root: Path = ROOT) -> None:
        # A counter may be there twice (intel-rapl-mmio:0, intel-rapl:0); the last one counts.
        packages = {_name_domain(file.parent): file for file in sorted(root.glob("*/energy_uj"))}
        self._files = [file for name, file in packages.items() if name.startswith("package")]

    def read(self) -> list[int] | None:
        """Read the microjoules of each package since some start; None where none can be read."""
        try:
            return [int(file.read_text()) for file in self._files] or None
        except (OSError, ValueError):
            return None

    def joules(self, before: Sequence[int] | None, after: Sequence[int] | None) -> float | None:
        """Compute the energy between two readings, through a counter's new beginning."""
        if before is None or after is None:
            return None
        total = 0
        for file, first, last in zip(self._files, before, after, strict=True):
            passed = last - first
            if passed < 0:
                passed += int((file.parent / "max_energy_range_uj").read_text())
            total += passed
        return total / 1e6


def _name_domain(folder: Path) -> str:
    """Name a domain: "package-0" is a whole processor; its parts and DRAM have other names."""
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""


WEIGHT_FILES = (".safetensors", ".bin", ".onnx", ".data", ".gguf")

CHUNK = 1 << 22
"""Bytes read at once."""

LEVEL = 1
"""zlib's fastest: a model of 3 billion parameters takes minutes. `gzip -6` is 1 to 3 % smaller."""


def measure_sizes(folder: Path) -> dict[str, int]:
    """Count the bytes of a model's directory: all files, those with weights, these after gzip."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [path for path in files if path.suffix in WEIGHT_FILES]
    return {
        "disk_bytes": sum(path.stat().st_size for path in files),
        "bytes": sum(path.stat().st_size for path in weights),
        "gzip_bytes": sum(map(_measure_gzip, weights)),
    }


def _measure_gzip(path: Path) -> int:
    """Count the bytes of a file after gzip, without writing it."""
    stream, total = zlib.compressobj(LEVEL, wbits=31), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total += len(stream.compress(chunk))
    return total + len(stream.flush())
