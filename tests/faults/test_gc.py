"""`compressor gc` is killed, and works on a disk that is full."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from compressor.engine.store.store import GC_LOCK, Store
from tests.engine.store.test_gc import gc, keys
from tests.faults import trials
from tests.harness.artifacts import commit, key_of, name_in_run


def test_a_gc_that_is_killed_leaves_no_half_artifact(tmp_path: Path) -> None:
    """SIGKILL at random moments: what is still there is whole, and the next one finishes."""
    chance, struck = random.Random(1), 0
    context = multiprocessing.get_context("fork")
    times = trials(60, 6)
    for number in range(12):
        commit(Store(tmp_path / "all" / "store"), number, size=40, files=20)
    for trial in range(times):
        outputs = tmp_path / str(trial)
        shutil.copytree(tmp_path / "all", outputs)
        store = Store(outputs / "store")
        name_in_run(outputs, key_of(0))
        process = context.Process(target=gc, args=(outputs,))
        process.start()
        time.sleep(chance.uniform(0.004, 0.04))
        process.kill()
        process.join()
        struck += process.exitcode == -signal.SIGKILL
        for key in keys(outputs):
            store.verify(key)
        gc(outputs)
        assert keys(outputs) == {key_of(0)}
        assert list(store.folder.glob("trash*")) == []
        assert not store.is_locked(GC_LOCK)
    assert struck >= times // 3


def _fill(disk: Path) -> None:
    """Until no byte can be written, nor a new file."""
    with suppress(OSError), (disk / "fill").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    with suppress(OSError):
        for number in range(1000):
            (disk / f"file-{number}").touch()
    assert shutil.disk_usage(disk).free == 0


def test_space_is_freed_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """Where no byte can be written, and no file made, an artifact still goes."""
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=400", "tmpfs", tmp_path]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        store = Store(tmp_path / "store")
        commit(store, 0, size=200_000)
        with store.hold_off_gc(lambda: None):  # as every run does
            pass
        _fill(tmp_path)
        assert gc(tmp_path).failed == []
        assert keys(tmp_path) == set()
        assert shutil.disk_usage(tmp_path).free >= 200_000
    finally:
        subprocess.run(["umount", tmp_path], check=True)
