"""Energy that a processor says it has taken: Linux's powercap counters (RAPL), where readable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

ROOT = Path("/sys/class/powercap")


class Counters:
    """The energy counters of all processor packages, DRAM domains left out.

    They count the whole machine: what other programs take is in them. Reading them needs the
    right to, which many systems keep from ordinary users.
    """

    def __init__(self, root: Path = ROOT) -> None:
        found = sorted(root.glob("*/energy_uj")) if root.is_dir() else []
        # A counter may be there twice (intel-rapl-mmio:0, intel-rapl:0); the last one counts.
        packages = {_name(file.parent): file for file in found}
        self._files = [file for name, file in packages.items() if name.startswith("package")]

    def read(self) -> list[int] | None:
        """Microjoules of each package since some start; None where none can be read."""
        try:
            return [int(file.read_text()) for file in self._files] or None
        except (OSError, ValueError):
            return None

    def joules(self, before: Sequence[int] | None, after: Sequence[int] | None) -> float | None:
        """Energy between two readings, a counter that began anew in between counted through."""
        if before is None or after is None:
            return None
        total = 0
        for file, first, last in zip(self._files, before, after, strict=True):
            passed = last - first
            if passed < 0:
                passed += int((file.parent / "max_energy_range_uj").read_text())
            total += passed
        return total / 1e6


def _name(folder: Path) -> str:
    """What a domain is: "package-0" is a whole processor; its parts and DRAM are others."""
    try:
        return (folder / "name").read_text().strip()
    except OSError:
        return ""
