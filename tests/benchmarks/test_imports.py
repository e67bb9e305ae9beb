"""The benchmarks are not run by the tests, but each must at least start."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("[a-z]*.py") if "test_" not in p.stem)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_measures(name: str) -> None:
    """`make bench NAME=…` gets past its imports."""
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert name == "common" or callable(module.main)
