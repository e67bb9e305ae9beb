"""What looks like a secret leaves keys, values and sentences, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import main
from compressor.core.files import write_json, write_traceback
from compressor.core.redaction import is_secret, redact, redact_text
from tests.harness.recipes import RECIPE

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
    """A tokenizer's tokens and lengths are none; a person's token is."""
    assert [key for key in SECRETS.split() if not is_secret(key)] == []
    assert [key for key in NO_SECRETS.split() if is_secret(key)] == []


@pytest.mark.parametrize(
    "text",
    [
        "401 for https://anna:geheim@hub.example/model",
        "https://geheim@hub.example/x",
        "headers={'Authorization': 'Bearer geheim', 'x': 1}",
        "Authorization: Bearer geheim12345",
        "Authorization: Basic geheim1234==",
        "x?token=geheim&y=1",
        'api_key = "geheim of mine"',
        "stages.x.password=geheim (set on the command line: stages.x.password=geheim)",
        "HF_TOKEN: geheim",
        "token: geheim-and-l0ng",
        "hf_" + "geheim" * 5,
        "from the environment: variable-geheim-9",
    ],
)
def test_no_secret_is_left_in_a_sentence(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a library's error, with headers or a URL in it; what stands around it stays."""
    monkeypatch.setenv("MY_SERVICE_TOKEN", "variable-geheim-9")
    assert "geheim" not in redact_text(text)
    assert "<redacted>" in redact_text(text)
    assert redact_text(f"row 3: {text}").startswith("row 3: ")


@pytest.mark.parametrize(
    "text",
    [
        "A basic fine-tuning of bills", "unexpected token: '}'", "ms per token: 3.2",
        "max_length counts the decoder start token: 0 is below 1",
    ],
)  # fmt: skip
def test_a_sentence_on_tokens_and_basic_things_stays(text: str) -> None:
    """Words after "basic" and numbers after "token:" were taken out of descriptions and errors."""
    assert redact_text(text) == text
    assert redact({"description": text}) == {"description": text}


def test_a_run_leaves_no_secret_in_any_file(tmp_path: Path, monkeypatch, capsys) -> None:
    """Neither in its folder nor in the store, of a run that ends well and one that fails."""
    one, login, variable = "hf_" + "aB3x" * 8, "geheim-of-a-login", "variable-geheim-9"
    text = RECIPE.replace("\nstages:", f"\ndescription: see https://anna:{login}@h/x\nstages:")
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_SERVICE_TOKEN", variable)
    settings = [f"stages.finetune.label={one}", f"data.prefix='{variable} '"]
    broken = ["pipeline=[load,finetune]", "training.learning_rate=1e30"]
    for code, more in enumerate((["pipeline=[load]"], broken)):
        assert main(["run", "mine.yaml", *settings, *more]) == code
    contents = [path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    for secret in (one, login, variable):
        assert not any(secret.encode() in content for content in contents)
    redacted_files = sum(b"<redacted>" in content for content in contents)
    assert redacted_files >= 6, "recipe, what was asked, page: of each of two runs"
    capsys.readouterr()
    assert main(["plan", "mine.yaml", f"+model.config.hub_token={login}"]) == 2
    refused = capsys.readouterr().err
    assert "looks like a secret" in refused and login not in refused


def test_a_record_is_written_without_secrets_and_with_all_its_numbers(tmp_path: Path) -> None:
    """A label that is called `secret` has its measures; a traceback is a text like others."""
    record = {"command": ["run", "hub.token=geheim"], "labels": {"secret": {"f1": 0.5}}}
    write_json(tmp_path / "record.json", record | {"differs": {"hub.token": "geheim"}})
    written = json.loads((tmp_path / "record.json").read_text())
    assert written["labels"] == record["labels"]
    assert written["command"] == ["run", "hub.token=<redacted>"]
    assert written["differs"] == {"hub.token": "<redacted>"}
    errors = ValueError("Authorization: Bearer geheim12345"), OSError("\udcff")
    assert write_traceback(tmp_path / "error.txt", *errors)
    text = (tmp_path / "error.txt").read_text()
    assert "geheim" not in text and "ValueError" in text and "OSError" in text
    assert not write_traceback(tmp_path / "no folder" / "error.txt", *errors)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("data.api_key=abc=def", "data.api_key=<redacted>"),
        ("+model.token=abc", "+model.token=<redacted>"),
        ("++hub.access_token=abc", "++hub.access_token=<redacted>"),
        ("~hub.access_token=abc", "~hub.access_token=<redacted>"),
        ("stages.finetune.epochs=3", "stages.finetune.epochs=3"),
        ("data.dataset=https://me:pass@host/x", "data.dataset=https://<redacted>@host/x"),
        (["model={token: abc}"], ["model={token: <redacted>}"]),
        (["see", "hf_" + "a" * 24], ["see", "<redacted>"]),
        ({"pad_token": "<pad>", "token": "abc"}, {"pad_token": "<pad>", "token": "<redacted>"}),
        (
            {"a": [{"token": {"x": ["y", 3, None, True]}}], "b": "a=b"},
            {"a": [{"token": {"x": ["<redacted>", "<redacted>", None, True]}}], "b": "a=b"},
        ),
        ({"keys": 7, "max_token_length": 9}, {"keys": 7, "max_token_length": 9}),
    ],
)
def test_a_secret_is_written_to_no_file(value: Any, written: Any) -> None:
    """However deep below its key, a number too; in an override of the command as well."""
    assert redact(value) == written


def test_what_the_environment_holds_as_a_secret_is_written_nowhere(monkeypatch) -> None:
    """Wherever it stands, the longer one first; a short value may stand anywhere, and a path is
    none.
    """
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")
    monkeypatch.setenv("OTHER_TOKEN", "abcdefghij")
    monkeypatch.setenv("SHORT_TOKEN", "run")
    monkeypatch.setenv("FILE_TOKEN", "/var/lib/secrets")
    text = "run abcdefgh, abcdefghij of /var/lib/secrets"
    assert redact_text(text) == "run <redacted>, <redacted> of /var/lib/secrets"
    assert redact({"title": text}) == {"title": redact_text(text)}
