"""Energy counters: what is added up, what is not, and where there are none."""

from __future__ import annotations

from pathlib import Path

from compressor.evaluation.resources import Counters


def domain(root: Path, folder: str, name: str, microjoules: int, most: int = 10**9) -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "name").write_text(f"{name}\n")
    (root / folder / "energy_uj").write_text(f"{microjoules}\n")
    (root / folder / "max_energy_range_uj").write_text(f"{most}\n")
    return root / folder / "energy_uj"


def test_packages_are_added_up_and_their_parts_are_not(tmp_path: Path) -> None:
    """Two packages took 2 and 3 J; cores are within the first, DRAM is apart."""
    first = domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 1_000_000)
    cores = domain(tmp_path, "intel-rapl:0:0", "core", 100)
    counters = Counters(tmp_path)
    before = counters.read()
    first.write_text("7000000")
    second.write_text("4000000")
    cores.write_text("900000000")
    assert counters.joules(before, counters.read()) == 5.0


def test_a_counter_that_is_there_twice_is_counted_once(tmp_path: Path) -> None:
    """Two interfaces to one processor, each of which moved by 2 J."""
    files = [
        domain(tmp_path, folder, "package-0", 1_000_000)
        for folder in ("intel-rapl:0", "intel-rapl-mmio:0")
    ]
    counters = Counters(tmp_path)
    before = counters.read()
    for file in files:
        file.write_text("3000000")
    assert counters.joules(before, counters.read()) == 2.0


def test_a_counter_that_began_anew_is_counted_through(tmp_path: Path) -> None:
    """From 9 J to the end at 10 J, and 2 J more."""
    file = domain(tmp_path, "intel-rapl:0", "package-0", 9_000_000, most=10_000_000)
    counters = Counters(tmp_path)
    before = counters.read()
    file.write_text("2000000")
    assert counters.joules(before, counters.read()) == 3.0


def test_a_machine_that_tells_nothing_gives_none(tmp_path: Path) -> None:
    """No counters at all, or one that is not to be read."""
    assert Counters(tmp_path / "none").read() is None
    file = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    counters = Counters(tmp_path)
    file.unlink()
    assert counters.read() is None
    assert counters.joules(None, None) is None
