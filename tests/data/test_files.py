"""Files as people have them: a model learns what a cell says, or planning names the cell."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from compressor.core.errors import StageError
from compressor.data import files
from compressor.data import rows as module
from compressor.data.files import Format, open_table
from compressor.data.rows import Column
from compressor.data.sources import Files
from tests.data.tables import load, pairs, plan, refusal, source, write_rows

PAIRS = [("annual report", "2024-01-01"), ("energy bill", "007"), ("a state; an act", "NA")]
QUOTED = "".join(f'"{a}","{b}"\r\n' for a, b in [("text", "summary"), *PAIRS]).encode()


@pytest.fixture
def list_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int], None]:
    """Set how many rows are kept as lists; more are in a cache of the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return partial(monkeypatch.setattr, module, "LISTED")


@pytest.mark.parametrize("rows", [3, 12])
def test_a_replaced_file_of_the_same_time_gives_its_own_rows(
    tmp_path: Path, list_only: Any, rows: int
) -> None:
    """Same path, size and modification time, as a zip leaves it; few rows, and many."""
    list_only(5)
    path, keys = tmp_path / "rows.jsonl", []
    for version in ("old", "new"):
        made = [{"text": f"{version} {row}", "summary": version} for row in range(rows)]
        other = write_rows(tmp_path / "made", made)
        os.utime(other, (315532800, 315532800))
        other.replace(path)
        keys.append(source(path).content_key("train"))
        assert list(load(path).texts) == [row["text"] for row in made]
    assert keys[0] != keys[1]


def test_rows_that_change_while_they_are_read_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the rows of one file would be under another's key."""
    path = tmp_path / "rows.csv"
    path.write_bytes(QUOTED)
    read = Files._collect

    def change(*given: Any) -> Any:
        collected = read(*given)
        path.write_text("text,summary\nother,rows\n")
        return collected

    monkeypatch.setattr(Files, "_collect", change)
    with pytest.raises(StageError, match="has changed while it was read"):
        source(path).load("train")


def test_the_same_bytes_read_otherwise_have_another_key(tmp_path: Path) -> None:
    """Only what changes the rows counts: a name, a folder or a setting of other formats do not."""
    table, other, tabs = (tmp_path / name for name in ("rows.csv", "OTHER.CSV", "rows.tsv"))
    for path in (table, other, tabs):
        path.write_bytes(QUOTED)
    given: list[tuple[Path, dict[str, Any]]] = [
        (table, {}), (tabs, {}), (table, {"separator": ";"}), (table, {"header": False}),
        (table, {"encoding": "cp1252"}), (table, {"quote": None}), (table, {"empty": "drop"}),
    ]  # fmt: skip
    keys = [json.dumps(source(path, **more).content_key("train")) for path, more in given]
    assert len(set(keys)) == len(given)
    assert json.dumps(source(other, empty="keep").content_key("train")) == keys[0]
    assert json.dumps(source(table, separator=",").content_key("train")) == keys[0]


TABS, NUMBERED = {"separator": "tab", "quote": None}, {"header": False, "text": 1, "summary": 2}
NAMED, CP1252 = {"header": ["id", "text", "summary"]}, {"encoding": "cp1252"}
BARE = b"1,a text,a summary\n2,another,other\n"
CAFE = "text,summary\nCafé,Größe\n"


@pytest.mark.parametrize(
    ("name", "content", "settings", "expected"),
    [
        ("rows.csv", QUOTED, {}, PAIRS),
        ("ROWS.CSV", QUOTED, {}, PAIRS),
        ("rows.tsv", QUOTED.replace(b",", b"\t"), {}, PAIRS),
        ("rows.csv", QUOTED.replace(b",", b"\t"), {"separator": "tab"}, PAIRS),
        ("rows.tsv", QUOTED.replace(b",", b"|"), {"separator": "|"}, PAIRS),
        ("rows.csv", QUOTED.decode().encode("utf-16"), {"encoding": "utf-16"}, PAIRS),
        ("rows.csv", CAFE.encode("utf-8-sig"), {}, [("Café", "Größe")]),
        ("rows.csv", CAFE.encode("cp1252"), CP1252, [("Café", "Größe")]),
        ("rows.csv", BARE, NUMBERED, [("a text", "a summary"), ("another", "other")]),
        ("rows.csv", BARE, NAMED, [("a text", "a summary"), ("another", "other")]),
        ("rows.csv", b'text\tsummary\n"So" it is\tb "c"\n', TABS, [('"So" it is', 'b "c"')]),
    ],
)
def test_cells_are_texts_as_they_stand(tmp_path, name, content, settings, expected) -> None:
    """Dates, numbers with zeros before them and NA, whatever stands between them. A byte order mark
    is no cell; the first line is a row too, where it names no columns.
    """
    (tmp_path / name).write_bytes(content)
    assert pairs(load(tmp_path / name, **settings)) == expected


ONE_LABEL = {"task": "single_label", "labels": ["1", "2"]}
OK = '{"text": "a", "summary": "b"}\n'
REFUSED: list[tuple[str | bytes, dict[str, Any], str]] = [
    (CAFE.encode("cp1252"), {}, "data.encoding=cp1252"),
    (CAFE.encode("utf-16"), {}, "data.encoding=utf-16"),
    (CAFE, {"encoding": "cp12520"}, "encoding: no encoding 'cp12520'"),
    (BARE, NUMBERED | {"summary": 3}, "no column '3'"),
    ("text,b\n", {}, "no column 'summary'"),
    ("text;summary\na;b\n", {}, "\"data.separator=';'\" divides its columns"),
    ('"text"\t"summary"\n"a"\t"b"\n', {}, "\"data.separator='tab'\""),
    ("text;summary\na;1,5\n", {}, "\"data.separator=';'\" divides its columns"),
    ('"text";"summary"\na;b\n"c";"d, e"\n', {}, "\"data.separator=';'\" divides its columns"),
    ("text,summary\na,b\nc,d,e\n", {}, "line 3 has more cells (3) than columns (2); a cell with"),
    ('text,summary\na,b\n"c,d\n', {}, "line 3: unexpected end of data; data.quote=null"),
    ("text,label\na,1\nb,2.5\nc,\n", ONE_LABEL, "row 1, column 'label': '2.5' is no label"),
    ("text,label\na,01\n", ONE_LABEL, "row 0, column 'label': "),
    # No places, since a label is a number.
    ("text,label\na,1\n", ONE_LABEL | {"labels": ["00", "01"]}, "column 'label': '1' is no label"),
    ('{"text": "a", "summary": 1}', {}, "'summary': int 1, not text; write it in quotes"),
    (OK + '{"text": "a",\n', {}, "line 2: "),
    (OK + '["a", "b"]\n', {}, "line 2: ['a', 'b'] is no object"),
    (f"[{OK}][{OK}]", {}, "after the array: '["),
    (f"[{OK} {OK}]", {}, "after row 0: expected ',' or ']', got '{"),
    (f"[{OK},, {OK}]", {}, "row 1: "),
    (f"[{OK}, {OK}", {}, "after row 1: expected ',' or ']', got ''"),
    ("[ ]", {}, "is empty"),
    (gzip.compress(BARE, mtime=0), {}, "it is a compressed file or an archive; unpack it"),
]


@pytest.mark.parametrize(("content", "settings", "expected"), REFUSED)
def test_what_is_no_table_is_refused_with_the_cure(tmp_path, content, settings, expected) -> None:
    """Never is a row shifted, cut or swallowed; the message says what to type."""
    content = content.encode() if isinstance(content, str) else content
    path = tmp_path / ("rows.ndjson" if content[:1] in (b"{", b"[") else "rows.csv")
    path.write_bytes(content)
    assert expected in refusal(path, **settings)


@pytest.mark.parametrize("labels", [["True", "False"], ["01", "10"], ["1.5", "2.0"], ["NA", "0"]])
def test_labels_in_csv_are_what_the_cells_say(tmp_path: Path, labels: list[str]) -> None:
    """Whatever they look like, a number of a label included."""
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"t,{labels[row % 2]}\n" for row in range(4)))
    assert load(path, task="single_label", labels=labels).labels == [[0], [1], [0], [1]]
    path.write_text("text,label\na,0\nb,1\n")
    assert load(path, task="single_label", labels=["no", "yes"]).labels == [[0], [1]]


def test_class_names_of_nested_columns_are_the_files_own(tmp_path: Path) -> None:
    """A number stands for the name that the file gives it, whatever the recipe's order is."""
    names = ClassLabel(names=["short", "long"])
    rows = [{"text": "t", "m": {"label": place}, "many": [{"tag": place}]} for place in (0, 1)]
    features = Features({"text": Value("string"), "m": {"label": names}, "many": [{"tag": names}]})
    path = tmp_path / "rows.parquet"
    Dataset.from_list(rows, features=features).to_parquet(path)
    given = {"task": "single_label", "labels": ["long", "short"], "label": "m.label"}
    assert load(path, **given).labels == [[1], [0]]
    given |= {"task": "multi_label", "label": "many.tag"}
    assert load(path, **given).labels == [[0, 1], [1, 0]]
    given |= {"labels": ["long", "wide"]}
    assert "row 0, column 'many.tag': 'short' is no label" in refusal(path, **given)


def test_several_labels_in_a_cell_are_divided(tmp_path: Path) -> None:
    """By number or name; an empty cell has none; without the setting the message names it. Truths
    are 0 and 1 as people write them.
    """
    path = tmp_path / "rows.tsv"
    path.write_text("x\t0,2\ny\t\nz\t1\n")
    about: dict[str, Any] = {"task": "multi_label", "labels": ["a", "b", "c"]}
    about |= {"header": False, "text": 0, "label": 1}
    rows = load(path, label_separator=",", **about)
    assert rows.labels == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    path.write_text("x\tb; c\ny\ta\n")
    assert load(path, label_separator=";", **about).labels == [[0, 1, 1], [1, 0, 0]]
    expected = "row 0, column '1': 'b; c', not a list of labels; data.label_separator"
    assert expected in refusal(path, **about)
    path.write_text("text\ta\tb\nx\t1\tTrue\ny\t0\tFALSE\nz\t0.0\t1.0\n")
    rows = load(path, task="multi_label", labels=["a", "b"])
    assert rows.labels == [[1, 1], [0, 0], [0, 1]]


BLANK = [("a", "x"), ("b", ""), (" \u3000", "y"), ("c", "z"), ("d", None)]


@pytest.mark.parametrize("many", [False, True])
def test_empty_rows_are_an_error_or_left_out_or_kept(
    tmp_path: Path, list_only: Any, many: bool
) -> None:
    """Counted and told, with the first one's number, before anything is trained."""
    list_only(2 if many else 100)
    rows = [{"text": text, "summary": summary} for text, summary in BLANK]
    del rows[4]["summary"]  # as if it were null
    path = write_rows(tmp_path / "rows.jsonl", rows)
    told = f"{path}: 3 rows have no text or no summary (row 1, column 'summary', is the first)"
    ways = "data.empty=drop leaves such rows out, data.empty=keep uses them"
    assert refusal(path) == f"empty: {told}; {ways}"
    with pytest.raises(StageError, match="3 rows have no text or no summary"):
        source(path).load("train")
    for empty, done in (("drop", "left out"), ("keep", "kept")):
        expected = [f"empty: {told}, {done} as data.empty={empty} says"]
        assert plan(source(path, empty=empty)) == ([], expected)
    assert pairs(load(path, empty="drop")) == [("a", "x"), ("c", "z")]
    assert pairs(load(path, empty="keep")) == [(a, b or "") for a, b in BLANK]
    assert pairs(load(path, rows={"train": 1})) == [("a", "x")]
    assert pairs(load(path, rows={"train": 2}, empty="drop")) == [("a", "x"), ("c", "z")]
    held = source(path, empty="drop", holdout={"validation": 0.4})
    texts = [list(held.load(split).texts) for split in ("train", "validation")]
    assert sorted(texts) == [["a"], ["c"]]


def test_a_run_tells_of_empty_rows_that_planning_did_not_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.data.sources.PLANNED_ROWS", 1)
    path = tmp_path / "rows.csv"
    path.write_text("text,summary\na,b\nc,\n")
    data = source(path, empty="drop")
    assert plan(data) == ([], [])
    assert "1 row has no text or no summary (row 1, column 'summary')" in data.load("train").note
    with pytest.raises(StageError, match="1 row has"):
        source(path).load("train")


def test_json_gives_texts_lists_of_sentences_and_references(tmp_path: Path) -> None:
    """Strings stay texts, whatever they look like."""
    path = tmp_path / "rows.ndjson"
    rows: list[dict[str, Any]] = [
        {"id": 1, "text": ["One.", "Two."], "summary": ["first", " ", "second"]},
        {"text": "2024-01-01", "summary": "2024-01-01T00:00:00", "answers": {"text": ["x", "y"]}},
    ]
    table = load(write_rows(path, rows))
    assert pairs(table) == [("One. Two.", "first"), ("2024-01-01", "2024-01-01T00:00:00")]
    assert list(table.references) == [["first", "second"], ["2024-01-01T00:00:00"]]


def test_a_first_line_may_lack_a_column_and_a_name_may_have_a_dot(tmp_path: Path) -> None:
    """A field of a column, or of each item of a list there."""
    path = tmp_path / "rows.json"
    rows: list[Any] = [
        {"text": "a"},
        {"text": "b", "answers": {"text": ["x", "y"], "start": [0, 4]}, "in": {"a": {"b": "c"}}},
        {"text": "d", "answers": [{"text": "z"}, {"text": "w"}]},
    ]
    path.write_text(json.dumps(rows))
    table = load(path, summary="answers.text", empty="drop")
    assert list(table.references) == [["x", "y"], ["z", "w"]]
    assert pairs(load(path, summary="in.a.b", empty="keep"))[1] == ("b", "c")


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_an_array_is_read_to_its_end(tmp_path: Path, monkeypatch, piece: int) -> None:
    """Its one line may be longer than a line of a table."""
    rows = [{"text": f"t[{n}", "summary": '"]' * (n + 1)} for n in range(9)]
    monkeypatch.setattr(files, "LONGEST_LINE", 60)
    monkeypatch.setattr(files, "_PIECE", piece)
    path = tmp_path / "rows.json"
    path.write_text(f"\n {json.dumps(rows)} \n")
    assert pairs(load(path)) == [(row["text"], row["summary"]) for row in rows]
    write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.setattr(files, "LONGEST_LINE", 20)
    assert "a line has more than 20 characters" in refusal(tmp_path / "rows.jsonl")


def test_what_datasets_saved_is_read_from_its_folder(tmp_path: Path) -> None:
    """Of one split, of several, and a file of it; its digest is that of its rows. While planning,
    whose keys are made of its files, what is damaged is refused by name.
    """
    table = Dataset.from_list([{"text": a, "summary": b} for a, b in PAIRS])
    table.save_to_disk(tmp_path / "one", num_shards=2)
    DatasetDict({"train": table, "dev": table.select([0])}).save_to_disk(tmp_path / "all")
    assert pairs(load(tmp_path / "one")) == PAIRS
    assert pairs(load(tmp_path / "all")) == PAIRS
    (part, _) = sorted((tmp_path / "one").glob("*.arrow"))
    assert pairs(load(part)) == PAIRS[:2]
    before = source(tmp_path / "one").content_key("train")
    table.select([0, 1]).save_to_disk(tmp_path / "two")
    assert source(tmp_path / "two").content_key("train") != before
    (tmp_path / "all/train").rename(tmp_path / "all/fit")
    assert "has the splits dev, fit; name one of these folders" in refusal(tmp_path / "all")
    folder = tmp_path / "one"
    part.unlink()
    assert f"cannot read {folder}: its file {part.name} is not there" in refusal(folder)
    (folder / "state.json").write_text("{")
    assert "state.json is not what `datasets` writes" in refusal(folder)
    assert source(folder).content_key("train") is None
    (folder / "state.json").unlink()
    assert "is a folder, and not one of `save_to_disk`" in refusal(folder)


def test_held_out_rows_are_those_that_datasets_shuffled(tmp_path: Path) -> None:
    """Whoever held rows out before has the same ones."""
    made = [{"text": f"t{n}", "summary": "s"} for n in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", made)
    order = Dataset.from_list(made).shuffle(seed=7)["text"]
    held = source(path, holdout={"validation": 0.2}, seed=7)
    assert list(held.load("validation").texts) == order[:8]
    assert list(held.load("train").texts) == order[8:]


@pytest.mark.parametrize(
    ("name", "beginning"), [("rows.jsonl", OK * 3), ("rows.csv", "text,summary\n" + "a,b\n" * 3)]
)
def test_planning_reads_the_beginning_of_a_large_file(
    tmp_path, monkeypatch, name, beginning
) -> None:
    """Whatever comes after may be anything."""
    monkeypatch.setattr("compressor.data.sources.PLANNED_ROWS", 2)
    path = tmp_path / name
    path.write_text(beginning + '"{"]"\n' * 9)
    assert plan(source(path)) == ([], [])
    with pytest.raises(StageError, match=r"cannot read .*line "):
        source(path).load("train")


def test_a_json_array_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """An array of 5 GB was read and parsed whole, for each plan; what follows may be anything."""
    (tmp_path / "rows.json").write_text(f"[{OK}," + "x" * 10_000_000)
    table = open_table(tmp_path / "rows.json", Format(), ["text", "summary"])
    assert next(table.rows) == json.loads(OK)


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
def test_a_long_table_gives_the_rows_of_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, list_only: Any, made: Any, more: Any
) -> None:
    """All, a part that was shuffled, and the first few: in order, by slices and one by one; several
    references, and labels.
    """
    path = write_rows(tmp_path / "rows.jsonl", made)
    short = load(path, empty="keep", **more)
    list_only(3)
    monkeypatch.setattr(module, "_PIECE", 4)
    long = load(path, empty="keep", **more)
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
