"""10,000 wrong recipes and commands: each is refused soon and in a sentence, or does its work.

`FAULTS=1` tries them all, in parts; `make test` one in fifty. Each part draws its own.
"""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.conftest import RECIPE
from tests.faults import LONG, fuzzed, trials
from tests.faults.commands import Told, told
from tests.recipe.recipe_values import changed

SECONDS = 2.0
"""Of this process on a core: a busy machine takes longer, and no more of those."""
LINE = 2_000
"""Characters of a message that a person can still read."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]")
"""What a terminal would act on; a line break and a tab are none of these."""


def judge(found: Told) -> None:
    """Assert what is promised of every command, whatever it was given."""
    assert found.code in (0, 1, 2)
    assert "Traceback" not in found.err + found.out
    if found.code:
        assert found.seconds < SECONDS, f"{found.seconds:.2f} s"
        # `watch` says how a run ended, which is no error of the command.
        said = found.err if found.code == 2 else found.err or found.out
        assert "error: " in found.err or said == found.out != "", said
        assert max(map(len, said.splitlines())) < LINE, said[:LINE]
    assert not _CONTROL.search(found.err + found.out), repr(found.err + found.out)
    assert not Path("struck").exists(), "a recipe has run something"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and with what odd names of the commands stand for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("mine.yaml").write_text(RECIPE, encoding="utf-8")
    for name in ("run", "empty", "broken"):
        Path(name).mkdir()
    for name in ("metrics.json", "recipe.yaml", "events.jsonl", "sweep.json"):
        Path("broken", name).write_bytes(b'{"a": [\xff')
    Path("broken.csv").write_bytes(b'prediction,reference\n"a\xff\n')
    Path("empty.csv").touch()
    Path("loop").symlink_to("loop")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder.yaml").mkdir()
    monkeypatch.setattr(sys, "stdin", io.StringIO("A text.\n"))
    return tmp_path


Case = Callable[[Any], Told]


def of_text(content: bytes) -> Told:
    """Plan a recipe of these bytes."""
    Path("mine.yaml").write_bytes(content)
    return told("plan", "mine.yaml")


def of_pair(pair: tuple[bytes, bytes]) -> Told:
    """Plan a recipe that may extend another beside it."""
    Path("other.yaml").write_bytes(pair[1])
    return of_text(pair[0])


def of_overrides(given: list[str]) -> Told:
    """Plan with these, as a sweep where the last one says so."""
    many = ["-m"] if len("".join(given)) % 3 == 0 else []
    return told("plan", "mine.yaml", *many, *given)


def of_command(given: list[str]) -> Told:
    """Any command."""
    return told(*given)


SMALL: dict[str, Any] = fuzzed.VALUES | {"pipeline": ["load", "finetune", "prune", "evaluate"]}
AREAS: dict[str, tuple[str, st.SearchStrategy[Any], Case, int]] = {
    "text": ("YAML text, bytes and tags", fuzzed.texts(), of_text, 2500),
    "tree": ("values and keys", fuzzed.trees(), of_text, 1500),
    "defaults": ("`defaults`", fuzzed.defaults(), of_pair, 1000),
    "overrides": ("overrides and sweeps", fuzzed.overrides(), of_overrides, 3000),
    "command": ("commands and arguments", fuzzed.commands(), of_command, 2000),
}
PARTS = [
    (name, part, 250 if LONG else about[3] // 50)
    for name, about in AREAS.items()
    for part in range(trials(about[3] // 250, 1))
]


@pytest.mark.parametrize(("area", "part", "count"), PARTS)
def test_no_recipe_and_no_command_shows_a_traceback(
    area: str, part: int, count: int, place: Path, tell: Any
) -> None:
    """Exit code 0, 1 or 2, a sentence that a person can read, within 2 s of processor time."""
    title, strategy, case, _ = AREAS[area]
    codes: Counter[int] = Counter()

    @seed(part)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(value: Any) -> None:
        found = case(value)
        judge(found)
        codes[found.code] += 1

    for first in ([], ["-m", "+search.trials=a,b"]):  # what is imported once is in nobody's time
        told("plan", "mine.yaml", *first)
    each()
    assert codes[2] > 0, "none was wrong: nothing was tried"
    assert codes[0] > 0 or not LONG, "all were wrong: nothing was tried"
    for code in sorted(codes):
        outcome = "exit 0: it is none" if code == 0 else f"exit {code}: one sentence, within 2 s"
        tell("recipes", f"fuzzed: {title}", outcome, codes[code])


LIMITS = [
    "launch.num_processes=1",
    "training.max_steps=2",
    "data.rows={train:16,validation:4,test:2}",
]
"""So that what planning accepts is small, whatever was changed."""


def test_what_planning_accepts_runs_or_says_why_not(place: Path, tell: Any) -> None:
    """A run of it ends with 0, or with a reason that was foreseen: no traceback's file."""
    wanted = trials(20, 2)
    codes: Counter[int] = Counter()

    @seed(0)
    @settings(
        max_examples=wanted * 40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(SMALL))
    def each(values: dict[str, Any]) -> None:
        if codes.total() >= wanted or values == SMALL:
            return
        Path("mine.yaml").write_bytes(fuzzed.dumped(values))
        if told("plan", "mine.yaml", *LIMITS).code == 0:
            found = told("run", "mine.yaml", *LIMITS)
            assert found.code in (0, 1), found.err
            assert "Traceback" not in found.err + found.out
            assert "error.txt" not in found.err, found.err
            codes[found.code] += 1

    each()
    assert codes.total() == wanted and codes[0] > 0
    for code, times in codes.items():
        outcome = "exit 0" if code == 0 else "exit 1: one sentence, which was foreseen"
        tell("recipes", "fuzzed, accepted by planning, and run", outcome, times)
