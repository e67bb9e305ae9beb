"""A run of two stages, made once: what the engine, its store and `gc` are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.once import run_once
from tests.harness.recipes import RECIPE

TWO_STAGES = RECIPE.replace("[load, finetune, prune, recover, evaluate]", "[load, prune]")


@pytest.fixture(scope="session")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.yaml` and the outputs of one run of it."""
    return run_once(tmp_path_factory, "pruned", TWO_STAGES).cwd
