"""Tables too long for lists are read as short ones are, and checked as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from compressor.core.errors import StageError
from compressor.data import rows as module
from compressor.data.files import Format, open_table
from compressor.data.rows import Column, Rows
from compressor.data.sources import Data


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load rows of dicts from a file, as a long table or a short one."""

    def loaded(made: list[Any], name: str, *, long: bool, **more: Any) -> Rows:
        monkeypatch.setattr(module, "LISTED", 3 if long else 10**9)
        monkeypatch.setattr(module, "_PIECE", 4)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        given = {"source": "files", "files": {"train": str(path)}, "empty": "keep", **more}
        data: Any = TypeAdapter(Data).validate_python(given)
        found: Rows = data.load("train")
        return found

    return loaded


MADE = [{"text": f"text {i} ü\n", "summary": f"summary {i}" * (i % 3)} for i in range(11)]


@pytest.mark.parametrize("more", [{}, {"holdout": {"validation": 0.2}}, {"rows": {"train": 7}}])
def test_a_long_table_gives_the_rows_of_a_short_one(load: Any, more: Any) -> None:
    """All, a part that was shuffled, and the first few: in order, by slices and one by one."""
    short, long = (
        load(MADE, "s.jsonl", long=False, **more),
        load(MADE, "l.jsonl", long=True, **more),
    )
    assert isinstance(long.texts, Column)
    assert isinstance(short.texts, list)
    for mine, theirs in ((long.texts, short.texts), (long.summaries, short.summaries)):
        assert len(mine) == len(theirs) >= 7
        assert list(mine) == theirs
        assert [mine[place] for place in range(len(mine))] == theirs
        assert (mine[2:5], mine[5:99], mine[-1]) == (theirs[2:5], theirs[5:99], theirs[-1])
    assert long.first(5) == short.first(5)


@pytest.mark.parametrize("row", [0, 5, 10])
def test_a_long_table_tells_of_the_row_without_a_text(load: Any, row: int) -> None:
    """By its number and column, as a short one does, wherever it is."""
    wrong = [{**each, "summary": "s"} for each in MADE]
    wrong[row]["summary"] = None  # type: ignore[assignment]
    with pytest.raises(StageError, match=rf"1 row has no text or .* \(row {row}, column 'summary'"):
        load(wrong, "wrong.jsonl", long=True, empty="error")
    numbers = [{**each, "summary": 1} for each in MADE]
    with pytest.raises(StageError, match=r"row 0, column 'summary': int 1, not text"):
        load(numbers, "numbers.jsonl", long=True)


def test_labels_of_a_long_table_are_those_of_a_short_one(load: Any) -> None:
    """Texts are read when asked for, labels at once."""
    made = [{"text": f"t {i}", "label": ("a", "b")[i % 2]} for i in range(11)]
    about = {"task": "single_label", "labels": ["a", "b"]}
    short = load(made, "s.jsonl", long=False, **about)
    long = load(made, "l.jsonl", long=True, **about)
    assert long.labels == short.labels == [[i % 2] for i in range(11)]
    assert list(long.texts) == short.texts


def test_a_json_array_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """An array of 5 GB was read and parsed whole, for each plan; what follows may be anything."""
    path = tmp_path / "rows.json"
    first = {"text": "[{" * 40_000, "summary": 'a "quoted" ] one'}

    def rows() -> Any:
        return open_table(path, Format(), ["text", "summary"]).rows

    path.write_text("\n [\n" + json.dumps(first) + ",\n" + "x" * 10_000_000)
    assert next(rows()) == first
    path.write_text("[ ]")
    assert list(rows()) == []
    path.write_text(json.dumps([first] * 50, indent=1))
    assert list(rows()) == [first] * 50
    path.write_text('[{"text": ')
    with pytest.raises(StageError, match="row 0: Expecting value"):
        next(rows())
