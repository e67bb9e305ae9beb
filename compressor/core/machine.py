"""Describe this machine: its processor, its cores, its GPUs. Imports no torch, which is slow."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_NAME_BYTES = 256
_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""
_FIRST_WITH_BFLOAT16 = 8


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch here can use."""

    name: str
    bfloat16: bool
    """Whether its matrix products can be in bfloat16 (compute capability 8, Ampere, or later)."""


@cache
def processor_name() -> str:
    """Read the processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def count_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def count_threads(processes: int = 1) -> int:
    """Count the threads that each of `processes` processes computes with."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) else max(1, count_cores() // processes)


@cache
def list_gpus() -> tuple[Gpu, ...]:
    """List the GPUs that torch will use, as the driver knows them."""
    if not _torch_has_cuda():
        return ()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    gpus = []
    for index in range(count.value):
        device, major = ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGet(ctypes.byref(device), index)
        driver.cuDeviceGetName(name, _NAME_BYTES, device)
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device)
        gpus.append(Gpu(name.value.decode(errors="replace"), major.value >= _FIRST_WITH_BFLOAT16))
    return tuple(gpus)


def _torch_has_cuda() -> bool:
    """Read from torch's own file whether it was built with CUDA."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    cuda = re.findall(r"^cuda.*", text, re.MULTILINE)
    return bool(cuda) and not cuda[-1].rstrip().endswith("None")


def describe_machine() -> dict[str, str | int]:
    """Describe what a measured time depends on: system, processor, threads, GPU."""
    return {
        "system": platform.system(),
        "processor": processor_name(),
        "threads": count_threads(),
        "device": list_gpus()[0].name if list_gpus() else "cpu",
    }
