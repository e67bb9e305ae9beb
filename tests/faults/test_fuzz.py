"""Recipes and commands that are wrong anyhow: refused in a sentence, or they do their work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import RECIPE
from tests.faults import trials
from tests.harness.command import compressor
from tests.recipe.recipe_values import change_values

VALUES: dict[str, Any] = yaml.safe_load(RECIPE)
WORDS = """
\t \0 \x1b \ufeff \u2028 : - ? * & ! | > % @ ' " [ ] { } , # ~ = $ é \U0001f600 ${ ${seed} ??? <<:
!!int --- ... null .inf .nan 1e400 010 2026-01-01 [red] ../x /etc x,y range(1,4) choice(1,2) glob(*)
${oc.env:HOME} ${nowhere} &a *a a=b \\ int(x)
"""
KEYS = """
seed name outputs skip pipeline stages stages.prune stages.finetune.epochs stages.prune.amounts
stages.load.source model model.config data.rows.train data.source data.files.train training launch
training.learning_rate launch.num_processes search hydra hydra/launcher hydra.run.dir a.b a/b data@x
"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
"""What a terminal would act on; a line break and a tab are none of these."""
LINE = 2_000
"""Characters of a message that a person can still read."""


@st.composite
def wrong_texts(draw: st.DrawFn) -> bytes:
    """A recipe's text with something wedged in, cut out or put elsewhere."""
    text = RECIPE
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted((draw(st.integers(0, len(text))), draw(st.integers(0, len(text)))))
        how = draw(st.sampled_from(["wedge", "cut", "move"]))
        if how == "wedge":
            text = text[:first] + draw(st.sampled_from(WORDS.split())) + text[first:]
        elif how == "cut":
            text = text[:first] + text[min(last, first + 40) :]
        else:
            text = text[:first] + text[last:] + text[first:last]
    return text.encode()


one_override = st.tuples(
    st.sampled_from(["", "", "", "+", "++", "~", "--"]),
    st.sampled_from(KEYS.split()),
    st.sampled_from(["=", "=", "=", "", "=="]),
    st.sampled_from([*WORDS.split(), "3", "[load]", "tiny"]),
).map("".join)
overrides = st.lists(one_override, min_size=1, max_size=3)
AREAS: dict[str, st.SearchStrategy[tuple[bytes, Sequence[str]]]] = {
    "values of a recipe": change_values(VALUES).map(
        lambda values: (yaml.safe_dump(values).encode(), ["plan", "mine.yaml"])
    ),
    "text of a recipe": wrong_texts().map(lambda text: (text, ["plan", "mine.yaml"])),
    "overrides": overrides.map(lambda given: (RECIPE.encode(), ["plan", "mine.yaml", *given])),
}


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


@pytest.mark.parametrize("area", AREAS)
def test_what_is_wrong_is_refused_in_a_sentence(area: str, tmp_path: Path) -> None:
    """Exit code 0, 1 or 2, no traceback, a line that a person can read, nothing for a terminal."""
    for content, arguments in draw_examples(AREAS[area], trials(300, 5)):
        (tmp_path / "mine.yaml").write_bytes(content)
        done = compressor(*arguments, cwd=tmp_path, seconds=60)
        told, what = done.err + done.out, (content, arguments)
        assert done.code in (0, 1, 2), (what, done)
        assert not done.code or told, what
        assert max(map(len, done.err.splitlines()), default=0) < LINE, (what, done.err)
        assert not CONTROL.search(told), (what, told)


def test_what_planning_accepts_runs_or_says_why_not(tmp_path: Path) -> None:
    """A run of it ends with 0, or with a reason that was foreseen: no traceback's file."""
    limits = ("launch.num_processes=1", "training.max_steps=2",
              "data.rows={train: 16, validation: 4, test: 2}")  # fmt: skip
    wanted, codes = trials(20, 1), Counter[int]()
    for values in draw_examples(change_values(VALUES), wanted * 40):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        if values == VALUES or compressor("plan", "mine.yaml", *limits, cwd=tmp_path).code != 0:
            continue
        done = compressor("run", "mine.yaml", *limits, cwd=tmp_path)
        assert done.code in (0, 1) and "error.txt" not in done.err, (values, done.err)
        codes[done.code] += 1
        if codes.total() == wanted:
            break
    assert codes.total() == wanted and (codes[0] > 0 or wanted == 1)
