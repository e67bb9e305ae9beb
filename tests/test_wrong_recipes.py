"""What a newcomer reads after a mistake is enough to mend it: `wrong_recipes.yaml` has the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.errors import RecipeError
from compressor.plan import plan
from compressor.recipe import compose
from compressor.store import Store
from tests.conftest import RECIPE, compressor

LIST = Path(__file__).with_name("wrong_recipes.yaml")
CASES: list[dict[str, Any]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


def told(path: Path, arguments: list[str]) -> list[str]:
    """What planning says is wrong; nothing where all is well."""
    try:
        composed = compose(str(path), arguments)
        plan(composed, Store.of(composed.recipe.outputs))
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's folder, with rows in it."""
    rows = [json.dumps({"text": "A bill to fund parks.", "summary": "Parks."}) for _ in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    number = json.dumps({"text": "A bill.", "summary": 7})
    (tmp_path / "numbers.jsonl").write_text(f"{rows[0]}\n{number}\n", encoding="utf-8")
    (tmp_path / "blank.csv").write_text("text,summary\na,b\nc,\nd, \n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["mistake"].replace(" ", "-"))
def test_the_message_is_all_that_one_needs(case: dict[str, Any], place: Path) -> None:
    """It says what is wrong, where, and what to write; then the recipe plans."""
    path = place / "mine.yaml"
    wrong = replaced(RECIPE, case.get("wrong", {}))
    path.write_text(wrong, encoding="utf-8")
    messages = told(path, case.get("arguments", []))
    assert messages, "the mistake was not noticed"
    for part in case["told"]:
        assert any(part in message for message in messages), messages
    assert len(messages) == 1, "one mistake, one message"
    path.write_text(replaced(wrong, case.get("mend", {})), encoding="utf-8")
    assert told(path, case.get("mended", [])) == []


def test_there_are_more_than_twenty_and_no_two_are_the_same() -> None:
    """Each names another mistake."""
    assert len({case["mistake"] for case in CASES}) == len(CASES) > 20


def test_several_mistakes_are_told_at_once_by_the_command(place: Path) -> None:
    """As somebody sees it: exit code 2, a line for each, no traceback."""
    wrong = replaced(RECIPE, CASES[0]["wrong"] | CASES[3]["wrong"] | CASES[4]["wrong"])
    (place / "mine.yaml").write_text(wrong, encoding="utf-8")
    done = compressor("run", "mine.yaml", cwd=place)
    assert done.code == 2
    lines = done.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error"] * 3 + ["3 errors"]
    for case in (CASES[0], CASES[3], CASES[4]):
        assert all(any(part in line for line in lines) for part in case["told"])
