"""Recipes that are wrong anyhow: refused in a sentence, or they do their work."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import RECIPE
from tests.faults import trials
from tests.harness.command import compressor
from tests.recipe.recipe_values import change_values

VALUES: dict[str, Any] = yaml.safe_load(RECIPE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
"""What a terminal would act on; a line break and a tab are none of these."""
LINE = 2_000
"""Characters of a message that a person can still read."""


def draw_examples(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """So many, the same each time."""
    drawn: list[Any] = []

    @seed(0)
    @settings(
        max_examples=count, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    return drawn


def test_a_wrong_recipe_is_refused_in_a_sentence_or_runs(tmp_path: Path) -> None:
    """Exit code 0, 1 or 2, no traceback, a line that a person can read, nothing for a terminal.
    What planning accepts runs, or ends with a reason that was foreseen.
    """
    limits = ("launch.num_processes=1", "training.max_steps=2",
              "data.rows={train: 16, validation: 4, test: 2}")  # fmt: skip
    codes = Counter[int]()
    for values in draw_examples(change_values(VALUES), trials(800, 20)):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        done = compressor("plan", "mine.yaml", *limits, cwd=tmp_path, seconds=60)
        told = done.err + done.out
        assert done.code in (0, 1, 2), (values, done)
        assert not done.code or told, values
        assert max(map(len, done.err.splitlines()), default=0) < LINE, (values, done.err)
        assert not CONTROL.search(told), (values, told)
        if done.code == 0 and values != VALUES and codes.total() < trials(20, 1):
            done = compressor("run", "mine.yaml", *limits, cwd=tmp_path)
            assert done.code in (0, 1) and "error.txt" not in done.err, (values, done.err)
            codes[done.code] += 1
    assert codes.total() == trials(20, 1)
