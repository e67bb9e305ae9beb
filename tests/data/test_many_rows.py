"""Tables too long for lists are read as short ones are, and checked as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import StageError
from compressor.data import rows as module
from compressor.data.files import Format, open_table
from compressor.data.rows import Column, Rows
from compressor.data.sources import Files


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load rows of dicts from a file, as a long table or a short one."""

    def load_rows(made: list[Any], *, long: bool, **more: Any) -> Rows:
        monkeypatch.setattr(module, "LISTED", 3 if long else 10**9)
        monkeypatch.setattr(module, "_PIECE", 4)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        settings = {"source": "files", "files": {"train": str(path)}, "empty": "keep", **more}
        return Files.model_validate(settings).load("train")

    return load_rows


MADE = [{"text": f"text {i} ü\n", "summary": f"summary {i}" * (i % 3)} for i in range(11)]
LABELLED = [{"text": f"text {i}", "label": ("a", "b")[i % 2]} for i in range(11)]
SEVERAL = [{"text": f"t{n}", "summary": [f"s{n}", "other"][: 1 + n % 2]} for n in range(11)]


@pytest.mark.parametrize(
    ("made", "more"),
    [
        (MADE, {}), (MADE, {"holdout": {"validation": 0.2}}), (MADE, {"rows": {"train": 7}}),
        (SEVERAL, {}), (LABELLED, {"task": "single_label", "labels": ["a", "b"]}),
    ],
)  # fmt: skip
def test_a_long_table_gives_the_rows_of_a_short_one(load: Any, made: Any, more: Any) -> None:
    """All, a part that was shuffled, and the first few: in order, by slices and one by one; several
    references, and labels.
    """
    short, long = load(made, long=False, **more), load(made, long=True, **more)
    assert isinstance(long.texts, Column) and isinstance(short.texts, list)
    for mine, theirs in ((long.texts, short.texts), (long.references, short.references)):
        assert len(mine) == len(theirs)
        assert list(mine) == theirs
        assert [mine[place] for place in range(len(mine))] == theirs
        assert (mine[2:5], mine[5:99], mine[-1:]) == (theirs[2:5], theirs[5:99], theirs[-1:])
    assert list(long.summaries) == short.summaries
    assert long.labels == short.labels
    assert long.first(5) == short.first(5)
    assert list(long.take([3, 0]).references) == list(short.take([3, 0]).references)


@pytest.mark.parametrize("row", [0, 5, 10])
def test_a_long_table_tells_of_the_row_without_a_text(load: Any, row: int) -> None:
    """By its number and column, as a short one does, wherever it is."""
    wrong: list[Any] = [{**made, "summary": "s"} for made in MADE]
    wrong[row]["summary"] = None
    with pytest.raises(StageError, match=rf"1 row has no text or .* \(row {row}, column 'summary'"):
        load(wrong, long=True, empty="error")
    with pytest.raises(StageError, match=r"row 0, column 'summary': int 1, not text"):
        load([{**made, "summary": 1} for made in MADE], long=True)


def test_a_json_array_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """An array of 5 GB was read and parsed whole, for each plan; what follows may be anything."""
    path = tmp_path / "rows.json"
    first = {"text": "[{" * 40_000, "summary": 'a "quoted" ] one'}
    path.write_text("\n [\n" + json.dumps(first) + ",\n" + "x" * 10_000_000)
    assert next(open_table(path, Format(), ["text", "summary"]).rows) == first
    path.write_text(json.dumps([first] * 50, indent=1))
    assert list(open_table(path, Format(), ["text", "summary"]).rows) == [first] * 50
    path.write_text('[{"text": ')
    with pytest.raises(StageError, match="row 0: Expecting value"):
        next(open_table(path, Format(), ["text", "summary"]).rows)
