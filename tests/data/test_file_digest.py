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
    monkeypatch.setattr(files, "_SETTLED_SECONDS", 0.2)
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,summary\n" * 1000)
    time.sleep(0.3)
    return path


def test_a_file_that_stays_as_it_is_is_read_once(file: Path) -> None:
    """Planning read 5 GB for each stage that names them, and a run twice more for each."""
    before = files._remember_digest.cache_info()
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert {file_sha256(file) for _ in range(5)} == {expected}
    after = files._remember_digest.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 4)


@pytest.mark.parametrize("change", ["in place", "in place, with its times set back", "replaced"])
def test_a_changed_file_is_read_again(file: Path, change: str) -> None:
    """Of the same size each time; no program can set the time at which its status changed."""
    first, times = file_sha256(file), file.stat()
    other = b"text;summary\n" * 1000
    if change == "replaced":
        (file.parent / "new").write_bytes(other)
        (file.parent / "new").replace(file)
    else:
        file.write_bytes(other)
    if "times" in change:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_sha256(file) == hashlib.sha256(other).hexdigest() != first
    time.sleep(0.3)
    assert file_sha256(file) == hashlib.sha256(other).hexdigest()


def test_what_was_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    """A second change within one tick of the file system's clock has the first one's times."""
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a")
    before = files._remember_digest.cache_info()
    file_sha256(path)
    os.utime(path, (time.time() + 9999,) * 2)  # a clock that jumped
    file_sha256(path)
    assert files._remember_digest.cache_info() == before
