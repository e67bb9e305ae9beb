"""A data file's digest: read once while the file is the same, and again whenever it may not be."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from compressor.data import files
from compressor.data.files import file_sha256


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has been as it is for a while: waiting would take seconds."""
    monkeypatch.setattr(files, "_SETTLED_SECONDS", 0.1)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,summary\n" * 1000)
    time.sleep(0.15)
    return path


def test_a_file_that_stays_as_it_is_is_read_once(file: Path, tmp_path: Path) -> None:
    """Planning read 5 GB for each stage. What was changed a moment ago, or in the future by a clock
    that jumped, is read each time: a second change within one tick has the first one's times.
    """
    before = files._remember_digest.cache_info()
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert {file_sha256(file) for _ in range(5)} == {expected}
    after = files._remember_digest.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4)
    (tmp_path / "new.csv").write_bytes(b"a")
    file_sha256(tmp_path / "new.csv")
    os.utime(tmp_path / "new.csv", (time.time() + 9999,) * 2)
    file_sha256(tmp_path / "new.csv")
    assert files._remember_digest.cache_info() == after


@pytest.mark.parametrize("change", ["in place", "in place, with its times set back", "replaced"])
def test_a_changed_file_is_read_again(file: Path, change: str) -> None:
    """Of the same size each time; no program can set the time at which its status changed."""
    first, times = file_sha256(file), file.stat()
    other = b"text;summary\n" * 1000
    place = file.with_name("new") if change == "replaced" else file
    place.write_bytes(other)
    place.replace(file)
    if "times" in change:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_sha256(file) == hashlib.sha256(other).hexdigest() != first
    time.sleep(0.15)
    assert file_sha256(file) == hashlib.sha256(other).hexdigest()
