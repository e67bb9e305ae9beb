"""Data from a stranger: bombs, formulas, markup, orders to a terminal; and secrets in texts."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.text import Text

from compressor.console import PlainConsole
from compressor.data.file_formats import LONGEST_LINE, MOST_COLUMNS
from compressor.data.sources import Files
from compressor.errors import StageError
from compressor.metrics.predictions import (
    Prediction,
    bare,
    guarded,
    read_predictions,
    write_predictions,
)
from compressor.parity import _keep as write_parity
from compressor.printed import printable
from compressor.redaction import is_secret, redacted, redacted_text
from tests.conftest import RECIPE
from tests.faults.commands import told

ROW = json.dumps({"text": "A bill to fund parks.", "summary": "Parks."}).encode() + b"\n"


def source(path: Path) -> Files:
    return Files(source="files", files={"train": str(path), "validation": str(path)})


def refused(path: Path) -> str:
    """What planning says of a file, or else reading it; fails where neither does."""
    problems: list[str] = []
    source(path).check("train", lambda _, message: problems.append(message))
    if problems:
        return problems[0]
    with pytest.raises(StageError) as caught:
        source(path).load("train")
    return str(caught.value)


def zipped(content: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jsonl", content)
    return stream.getvalue()


def tarred(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        about = tarfile.TarInfo("text,summary")
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return stream.getvalue()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zip": zipped,
    "tar": tarred,
}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json", ".jsonl.gz", ".zip"])
def test_a_bomb_is_not_unpacked(
    packer: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    """`datasets` unpacks whatever begins as an archive, whatever its name, into its cache."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache, raising=False)
    path = tmp_path / f"rows{ending}"
    path.write_bytes(PACKERS[packer](ROW * 20_000))
    began = time.process_time()
    assert re.search("compressed|unpack", refused(path))
    with pytest.raises((StageError, KeyError)):  # also where it has changed since it was planned
        source(path).load("train")
    assert time.process_time() - began < 2
    assert not cache.exists()
    tell("hostile", "gzip, bzip2, xz, zip and tar bombs among the data", "exit 2: unpack it")


def test_a_row_that_is_nested_deeply_ends_no_process(tmp_path: Path, tell: Any) -> None:
    """In the first row it was a traceback, in a later one Arrow's reader crashed (SIGSEGV)."""
    deep = b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b', "summary": "b"}\n'
    for name, content in (
        ("first.jsonl", deep + ROW),
        ("later.jsonl", ROW * 3 + deep),
        ("array.json", b"[" * 100_000),
        ("many.json", b'[{"text": "a", "summary": "b"},\n' + b"[" * 5000 + b"]" * 5000 + b"]"),
    ):
        (tmp_path / name).write_bytes(content)
        assert "nested too deeply" in refused(tmp_path / name)
    (tmp_path / "shallow.jsonl").write_bytes(
        ROW + json.dumps({"text": "[{" * 5000, "summary": "b"}).encode() + b"\n"
    )
    assert source(tmp_path / "shallow.jsonl").load("train").texts[1] == "[{" * 5000
    tell("hostile", "JSON rows of 100,000 brackets", "exit 1 or 2: which line")


def test_what_is_no_table_is_told_by_its_limit(tmp_path: Path, tell: Any) -> None:
    """A line without an end, and more columns than anybody has; within bounded time."""
    (tmp_path / "line.jsonl").write_bytes(b'{"text": "' + b"a" * (LONGEST_LINE + 1))
    assert f"{LONGEST_LINE:,} characters" in refused(tmp_path / "line.jsonl")
    names = ["text", "summary", *(f"c{number}" for number in range(MOST_COLUMNS))]
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + ",".join("x" * len(names)) + "\n")
    assert f"more than {MOST_COLUMNS:,}" in refused(tmp_path / "wide.csv")
    (tmp_path / "none.csv").write_text(",".join(names[2:]) + "\n" + ",".join(names[2:]) + "\n")
    assert len(refused(tmp_path / "none.csv")) < 2_000, "a message that a person can read"
    for name, content in (
        ("empty.parquet", b"PAR1" + bytes(100) + b"PAR1"),
        ("footer.parquet", b"PAR1\xff\xff\xff\x7fPAR1"),
    ):
        (tmp_path / name).write_bytes(content)
        assert "cannot read" in refused(tmp_path / name)
    tell("hostile", "a line of 64 MB, 10,000 columns, Parquet that lies", "exit 2: the limit")


FORMULAS = ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "'=1", "''", "'", "=", "=HYPERLINK(A1)"]


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.one_of(st.sampled_from(FORMULAS), st.text(), st.text("=+-@'\t\r\n", max_size=4)))
def test_a_cell_is_no_formula_and_comes_back_exactly(text: str) -> None:
    """Whatever a text is; what `guarded` writes, a spreadsheet shows as a text."""
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert bare(guarded(text)) == text


def test_no_csv_has_a_formula(tmp_path: Path, tell: Any) -> None:
    """`predictions.csv`, read back as it was; and what a failed parity check leaves, which had."""
    rows = [Prediction(row, 8, text, text, text, 3, False) for row, text in enumerate(FORMULAS)]
    write_predictions(tmp_path / "predictions.csv", rows)
    assert read_predictions(tmp_path / "predictions.csv") == rows

    class Rows:
        texts = FORMULAS

    class Outputs:
        texts, logits = FORMULAS, None

    write_parity(tmp_path / "parity", {}, {}, Rows(), Outputs(), Outputs())  # type: ignore[arg-type]
    for path in (tmp_path / "predictions.csv", tmp_path / "parity/rows.csv"):
        with path.open(newline="", encoding="utf-8") as stream:
            cells = [cell for line in csv.reader(stream) for cell in line]
        assert len(cells) > 3 * len(FORMULAS)
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    tell("hostile", "texts that are formulas, in every CSV", "shown as texts; read back exactly")


ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
ORDERS = {
    "clears the screen": "\x1b[2J\x1b[1;1H",
    "sets the clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "links elsewhere": "\x1b]8;;https://evil.example\x1b\\all is well\x1b]8;;\x1b\\",
    "writes over what was said": "failed\rdone  ",
    "8-bit codes": "\x9b2J\x9d52;c;YQ==\x9c",
    "goes back": "evil\x08\x08\x08\x08fine",
    "turns the writing": "\u202egnihton\u2066",
}


@pytest.mark.parametrize("text", ORDERS.values(), ids=ORDERS)
def test_a_text_gives_a_terminal_no_orders(text: str, tmp_path: Path, tell: Any) -> None:
    """On a terminal in colour, in a table, a line and an error; a link's own words stay."""
    stream = io.StringIO()
    console = PlainConsole(file=stream, force_terminal=True, width=100, color_system="truecolor")
    console.print(Text(f"a {text} b", "red"))
    console.print(f"a {text} b", highlight=False, markup=False, soft_wrap=True)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert shown.count("a ") == 2 and not ACTING.search(shown), repr(shown)
    assert "\x1b[31m" in stream.getvalue(), "rich's own colour is no order of the text's"
    found = told("plan", str(tmp_path / f"no{text}.yaml"))
    assert found.code == 2 and not ACTING.search(found.err)
    assert printable("a\tb\nc é 😀") == "a\tb\nc é 😀"
    tell("hostile", "escape sequences in what is printed", "written out: \\x1b")


SECRETS = """
token hf_token HF_TOKEN hub.token access_token accessToken hfToken apiKey api_key api-key secret
client_secret password passwd db.passwd credentials authorization private_key
"""
NO_SECRETS = """
tokenizer pad_token eos_token_id pad_token_id max_new_tokens key keys tokens monkey author
tokenizer_class decoder_start_token_id num_tokens key_parts secretary bos_token per_token
forced_bos_token token_type_ids special_tokens keyboard content_key
"""


def test_keys_that_name_a_secret_and_keys_that_do_not() -> None:
    """A tokenizer's pieces and lengths are none; a token of a person's is."""
    assert [key for key in SECRETS.split() if not is_secret(key)] == []
    assert [key for key in NO_SECRETS.split() if is_secret(key)] == []


@pytest.mark.parametrize(
    "text",
    [
        "401 for https://anna:geheim@hub.example/model",
        "https://geheim@hub.example/x",
        "headers={'Authorization': 'Bearer geheim', 'x': 1}",
        "Authorization: Bearer geheim12345",
        "x?token=geheim&y=1",
        'api_key = "geheim of mine"',
        "stages.x.password=geheim (set on the command line: stages.x.password=geheim)",
        "HF_TOKEN: geheim",
        "hf_" + "geheim" * 5,
        "from the environment: variable-geheim-9",
    ],
)
def test_no_secret_is_left_in_a_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a library's error, with headers or a URL in it; what stands around it stays."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", "variable-geheim-9")
    assert "geheim" not in redacted_text(text)
    assert "<redacted>" in redacted_text(text)
    assert redacted_text(f"row 3: {text}").startswith("row 3: ")


def test_no_secret_is_left_in_a_value() -> None:
    """However deep below its key, a number too; in an override's mapping as well."""
    value = {"a": [{"token": {"x": ["y", 3, None, True]}}], "pad_token": "<pad>", "b": "a=b"}
    hidden = ["<redacted>", "<redacted>", None, True]
    assert redacted(value) == {**value, "a": [{"token": {"x": hidden}}]}
    assert redacted(["model={token: abc}"]) == ["model={token: <redacted>}"]
    assert redacted("data.dataset=https://a:b@h/x") == "data.dataset=https://<redacted>@h/x"


def test_a_run_leaves_no_secret_in_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    """Neither in its folder nor in the store, of a run that fails and one that does not."""
    one, login, variable = "hf_" + "aB3x" * 8, "geheim-of-a-login", "variable-geheim-9"
    secrets = (one, login, variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SERVICE_TOKEN", "variable-geheim-9")
    text = RECIPE.replace("\nstages:", f"\ndescription: see https://anna:{login}@h/x\nstages:")
    Path("mine.yaml").write_text(text)
    given = [f"stages.finetune.label={one}", f"data.prefix='{variable} '"]
    assert told("run", "mine.yaml", "pipeline=[load]", *given).code == 0
    Path("struck.json").write_text("{")
    broken = ["pipeline=[load,finetune]", "training.learning_rate=1e30", "training.max_steps=2"]
    told("run", "mine.yaml", *given, *broken)
    read = 0
    for path in Path("outputs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [each for each in secrets if each.encode() in content], path
            read += b"<redacted>" in content
    assert read >= 6, "recipe, what was asked, page: of each of two runs"
    refused = told("plan", "mine.yaml", "+model.config.hub_token=geheim-of-a-login")
    assert refused.code == 2 and "looks like a secret" in refused.err
    assert "geheim-of-a-login" not in refused.err
    tell("hostile", "secrets in recipes, overrides, URLs and variables", "in no file: <redacted>")
