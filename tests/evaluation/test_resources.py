"""Energy counters: what is added up, what is not, and where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.evaluation.resources import Counters


def domain(root: Path, folder: str, name: str, joules: int) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "energy_uj").write_text(f"{joules * 10**6}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{10**9}\n")
    return root / folder / "energy_uj"


@pytest.mark.parametrize(
    ("domains", "joules"),
    [
        # Two packages took 2 and 3 J; cores are within the first, DRAM is apart.
        ([("rapl:0", "package-0", 5, 7), ("rapl:1", "package-1", 1, 4),
          ("rapl:0:0", "core", 1, 900), ("rapl:0:1", "dram", 1, 9)], 5.0),
        # Two interfaces to one processor, which took 2 J.
        ([("rapl:0", "package-0", 1, 3), ("rapl-mmio:0", "package-0", 1, 3)], 2.0),
        # From 999 J to the end at 1,000 J, and 2 J more.
        ([("rapl:0", "package-0", 999, 2)], 3.0),
    ],
)  # fmt: skip
def test_the_joules_of_packages_are_added_up(tmp_path: Path, domains, joules) -> None:
    files = [domain(tmp_path, folder, name, before) for folder, name, before, _ in domains]
    counters = Counters(tmp_path)
    before = counters.read()
    for file, (*_, after) in zip(files, domains, strict=True):
        file.write_text(f"{after * 10**6}")
    assert counters.joules(before, counters.read()) == joules


def test_a_machine_that_tells_nothing_gives_none(tmp_path: Path) -> None:
    """No counters at all, or one that is not to be read."""
    assert Counters(tmp_path / "none").read() is None
    file = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    counters = Counters(tmp_path)
    file.unlink()
    assert counters.read() is None
    assert counters.joules(None, None) is None
