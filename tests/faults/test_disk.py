"""A machine runs short: full disks, limits, outputs that may not be written, too little memory."""

from __future__ import annotations

import codecs
import os
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.faults import trials
from tests.faults.stored import artifacts, whole_only
from tests.harness.command import Command, compressor

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and other users need root")
NOBODY = 65534
RUN = ("run", "mine.yaml", "-q")
Mount = Callable[..., Path]


@pytest.fixture
def mount(mine: Path) -> Iterator[Mount]:
    """Mount a small file system on `outputs`, or change the one that is there."""
    place = mine / "outputs"

    def call(options: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        return place

    yield call
    while place.is_mount():
        subprocess.run(["umount", "-l", place], check=True)


def one_error(done: Command) -> str:
    """The one error of a command that failed."""
    assert done.code == 1, done
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    return line


def check_finishes(mine: Path, whole: Path) -> None:
    """The same command now comes to its end, with the files of an undisturbed run."""
    done = compressor(*RUN, cwd=mine)
    assert done.code == 0, done.err
    assert artifacts(mine / "outputs") == artifacts(whole / "outputs")
    whole_only(mine / "outputs")


@needs_root
@pytest.mark.parametrize("what", ["size", "nr_inodes"])
def test_a_full_disk_is_named_and_with_room_the_same_command_finishes(
    what: str, whole: Path, mine: Path, mount: Mount
) -> None:
    """Full at any moment: one error that names the file and what is full, and no half artifact."""
    draw = random.Random(what)
    for _ in range(trials(10, 1)):
        limit = f"{draw.randrange(8, 440)}k" if what == "size" else draw.randrange(2, 46)
        place = mount(f"{what}={limit}")
        error = one_error(compressor(*RUN, cwd=mine))
        assert "outputs/" in error and "the disk is full" in error, error
        assert "the same command goes on from here" in error
        whole_only(place)
        mount("remount,size=100m,nr_inodes=10000")
        check_finishes(mine, whole)
        subprocess.run(["umount", "-l", place], check=True)


@needs_root
def test_a_run_outlives_a_report_or_a_checkpoint_that_has_no_room(whole, mine, mount) -> None:
    """A page is ten times as large as the results, and a checkpoint three times the model: what has
    room is there, and the lack is told.
    """
    place = mount("size=1m")
    done = compressor(*RUN, cwd=mine)
    assert done.code == 0, done.err
    assert "warning: report.html was not written: " in done.err and "the disk is full" in done.err
    assert (done.run_folder / "metrics.json").is_file()
    assert not list(done.run_folder.glob("*report*"))
    assert artifacts(place) == artifacts(whole / "outputs")
    place = mount("size=440k")  # over the other
    done = compressor("run", "mine.yaml", "skip=[prune, evaluate]", cwd=mine)
    assert done.code == 0, done.err
    assert "no checkpoint at step 1, the training goes on: " in done.out
    assert artifacts(place)["finetune"] == artifacts(whole / "outputs")["finetune"]


def limit(name: int, most: int) -> None:
    resource.setrlimit(name, (most, most))


def test_a_file_may_be_no_larger_than_the_shell_says(whole: Path, mine: Path) -> None:
    """`ulimit -f`: the weights do not fit."""
    prepare = partial(limit, resource.RLIMIT_FSIZE, 100_000)
    error = one_error(compressor(*RUN, cwd=mine, prepare=prepare))
    assert "ulimit -f" in error and "stage 'load'" in error
    whole_only(mine / "outputs")
    check_finishes(mine, whole)


# What may not be written, or is something else


@needs_root
def test_read_only_outputs_are_named_and_what_they_hold_can_be_used(whole, mine) -> None:
    """Of empty ones one error; a run wanted the lock that keeps `gc` away, which it cannot take."""
    shutil.copytree(whole / "outputs", mine / "outputs", symlinks=True)
    store = mine / "outputs" / "store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        done = compressor(*RUN, cwd=mine)
        error = one_error(compressor(*RUN, "seed=2", cwd=mine))
    finally:
        subprocess.run(["umount", store], check=True)
    assert done.code == 0 and "run: " in done.out, done.err
    assert "outputs" in error and "read-only" in error


def become(user: int) -> None:
    codecs.lookup("utf-8-sig")  # another user may not read where Python lies
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="compressor-faults-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@needs_root
@pytest.mark.parametrize("part", ["outputs", "store", "runs", "artifact"])
def test_what_is_another_users_is_named(part: str, whole: Path, common: Path) -> None:
    """Outputs, or a part of them, that only root may write, or read: one error, and no half."""
    shutil.copy(whole / "mine.yaml", common)
    outputs = common / "outputs"
    outputs.mkdir()
    outputs.chmod(0o777 if part != "outputs" else 0o755)
    if part == "artifact":
        shutil.copytree(whole / "outputs" / "store", outputs / "store")
        for path in [outputs / "store", *(outputs / "store").glob("*/")]:
            path.chmod(0o777)
        next(outputs.glob("store/*/manifest.json")).parent.chmod(0o700)
    elif part != "outputs":
        (outputs / part).mkdir()
    error = one_error(compressor(*RUN, cwd=common, prepare=partial(become, NOBODY)))
    assert "outputs" in error and "this user may not" in error, error
    whole_only(outputs)


def test_outputs_may_have_any_name(whole: Path, mine: Path) -> None:
    """Spaces, other scripts, a line's end, quotes; parents are made."""
    name = "ü 模型\nand 'more'/a b"
    quoted = name.replace("'", "\\'")
    done = compressor(*RUN, f"outputs='{quoted}'", cwd=mine)
    assert done.code == 0, done.err
    assert artifacts(mine / name) == artifacts(whole / "outputs")
    (run,) = (mine / name / "runs" / "mine").iterdir()
    assert (run / "report.html").is_file()
    assert compressor("show", run, cwd=mine).code == 0
