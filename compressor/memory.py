"""How much memory this process takes at most: resident, or allocated on a GPU."""

from __future__ import annotations

import ctypes
import gc
import sys
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
        release()
        self._resets = _reset(device)
        self._before = 0 if self._resets else _most(device)

    def bytes(self) -> int | None:
        """None where the system's peak cannot be reset, and was higher before."""
        most = _most(self._device)
        return most if self._resets or most > self._before else None


def release() -> None:
    """Give memory that nothing uses back to the system, where it is glibc's or a GPU's cache."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    torch = sys.modules.get("torch")  # a process without it has nothing of its to give back
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reset(device: str) -> bool:
    """Begin a new peak; whether that was possible."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _most(device: str) -> int:
    """Bytes."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
