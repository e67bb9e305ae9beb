"""Old manifests, a read-only store, and texts that only look like secrets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from compressor.core.files import MANIFEST
from compressor.core.redaction import redact, redact_text
from compressor.engine.store.store import SELF
from tests.faults.forked import Forked


def test_an_old_manifest_with_nan_does_not_end_a_cached_run(
    whole: Path, tmp_path: Path, forked: Forked
) -> None:
    """Versions before wrote NaN into JSON; a run that met one ended in a traceback."""
    shutil.copytree(whole, tmp_path / "old", symlinks=True)
    for path in (tmp_path / "old/outputs/store").glob(f"*/{MANIFEST}"):
        about = json.loads(path.read_text())
        del about[SELF]
        about["metrics"]["of_before"] = float("nan")
        path.write_text(json.dumps(about))
    done = forked("run", "mini.yaml", "-q", cwd=tmp_path / "old")
    assert done.code == 0, done.err
    (records,) = {*(tmp_path / "old/outputs/runs/mini").glob("*/metrics.json")} - {
        tmp_path / "old" / path.relative_to(whole)
        for path in (whole / "outputs/runs/mini").glob("*/metrics.json")
    }
    assert all(each["metrics"]["of_before"] is None for each in json.loads(records.read_text()))


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone mounts a folder so that it is read-only")
def test_what_a_store_has_can_be_used_where_it_can_only_be_read(
    whole: Path, tmp_path: Path, forked: Forked
) -> None:
    """A run wanted the lock that keeps `gc` away, which nobody could take there."""
    shutil.copytree(whole, tmp_path / "own", symlinks=True)
    store = tmp_path / "own/outputs/store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (store / "x").touch()
        done = forked("run", "mini.yaml", "-q", cwd=tmp_path / "own")
    finally:
        subprocess.run(["umount", store], check=True)
    assert done.code == 0, done.err
    assert "run: " in done.out


def test_sentences_on_tokens_and_basic_things_are_no_secrets() -> None:
    """Words after "basic" and numbers after "token:" were taken out of descriptions and errors."""
    for text in (
        "A basic fine-tuning of bills",
        "max_length counts the decoder start token: 0 is below 1",
        "unexpected token: '}'",
        "ms per token: 3.2",
    ):
        assert redact_text(text) == text
        assert redact({"description": text}) == {"description": text}
    for secret in (
        "Authorization: Basic YWxhZGRpbg==",
        "sent Bearer abcdef0123456789",
        "token: s3cret-and-long",
    ):
        assert "<redacted>" in redact_text(secret), secret
