"""Make something once for a whole test session, by whichever of its processes asks first."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

from tests.harness.command import Command, compressor

Made = TypeVar("Made")


def session_folder(factory: pytest.TempPathFactory) -> Path:
    """Give the folder that the session's processes share: pytest gives each one below it."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """Give what `make` made in a folder of that name; the other processes wait for it."""
    folder = session_folder(factory) / f"once-{name}"
    made = folder.with_suffix(".pickle")
    with FileLock(folder.with_suffix(".lock")):
        if not made.is_file():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
    loaded: Made = pickle.loads(made.read_bytes())
    return loaded


def run_once(factory: pytest.TempPathFactory, name: str, text: str, *arguments: str) -> Command:
    """Run a recipe, as `mine.yaml`, once. Whoever changes its folder copies it first."""

    def run(folder: Path) -> Command:
        (folder / "mine.yaml").write_text(text)
        done = compressor("run", "mine.yaml", *arguments, cwd=folder)
        assert done.code == 0, done.err
        return done

    return make_once(factory, name, run)
