"""What to install for an extra."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compressor.core.packages import suggest_install

EXTRAS = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_the_command_names_what_the_extra_brings_and_never_this_package(extra: str) -> None:
    """`pip install compressor[…]` would bring whatever an index has under that name."""
    said = suggest_install(extra)
    assert said.startswith("pip install ")
    named = {canonicalize_name(Requirement(item.strip("'")).name) for item in said.split()[2:]}
    assert named == {canonicalize_name(Requirement(item).name) for item in EXTRAS[extra]}
    assert "compressor" not in named
