"""Outputs that are full, that may not be written, or that are something else."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from compressor.core.console import Console
from compressor.core.progress import Progress
from tests.faults import LONG, trials
from tests.faults.conftest import Tell
from tests.faults.forked import Ended, Forked
from tests.faults.stored import artifacts, whole_only

ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="mounts and other users need root")
NOBODY = 65534
SWEEP = ("run", "mini.yaml", "-m", "-q", "stages.prune.amounts.lm_head=0.3,0.6")
Mounted = Callable[..., Path]


@pytest.fixture
def mounted(mine: Path) -> Iterator[Mounted]:
    """Mount something on `outputs`; the second time, change it."""
    place = mine / "outputs"
    there: list[Path] = []

    def mount(*arguments: str) -> Path:
        place.mkdir(exist_ok=True)
        done = subprocess.run(["mount", *arguments, place], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        if not any("remount" in each for each in arguments):
            there.append(place)
        return place

    yield mount
    for each in reversed(there):
        if each.is_mount():
            subprocess.run(["umount", "-l", each], check=True)


def one_error(ended: Ended, code: int = 1) -> str:
    """The one error of a command that failed."""
    assert ended.code == code, ended
    (line,) = (line for line in ended.err.splitlines() if line.startswith("error: "))
    return line


@needs_root
@pytest.mark.parametrize("what", ["size", "nr_inodes"])
def test_a_full_disk_is_told_and_with_room_the_same_command_finishes(
    what: str, forked: Forked, whole: Path, mine: Path, mounted: Mounted, tell: Tell
) -> None:
    """Full at any moment: one error that names the file and what is full, no half artifact, and
    the same weights and scores afterwards. It was told in a library's words, without the file.
    """
    draw = random.Random(what)
    expected = artifacts(whole / "outputs")
    limits = [draw.randrange(8, 440) for _ in range(trials(25, 2))]
    if what == "nr_inodes":
        limits = [draw.randrange(2, 46) for _ in range(trials(12, 1))]
    for limit in limits:
        unit = "k" if what == "size" else ""
        place = mounted("-t", "tmpfs", "-o", f"{what}={limit}{unit}", "tmpfs")
        error = one_error(forked("run", "mini.yaml", "-q", cwd=mine))
        assert "outputs/" in error and "the disk is full" in error, error
        assert "the same command goes on from here" in error
        whole_only(place)
        mounted("-o", "remount,size=100m,nr_inodes=10000")
        assert forked("run", "mini.yaml", "-q", cwd=mine).code == 0
        assert artifacts(place) == expected
        whole_only(place)
        subprocess.run(["umount", "-l", place], check=True)
        happened = "exit 1: which file, what is free; with room it finishes, the same bytes"
        tell("disk", f"full ({what}) at a random moment", happened)


@needs_root
def test_a_run_whose_report_has_no_room_says_so_and_ends_well(
    forked: Forked, whole: Path, mine: Path, mounted: Mounted, tell: Tell
) -> None:
    """Room for the results and not for the page, which is ten times as large."""
    place = mounted("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    done = forked("run", "mini.yaml", "-q", cwd=mine)
    assert done.code == 0, done.err
    assert "warning: report.html was not written: " in done.err and "the disk is full" in done.err
    assert (done.run_folder / "metrics.json").is_file()
    assert not list(done.run_folder.glob("*report*"))
    assert artifacts(place) == artifacts(whole / "outputs")
    tell("disk", "no room for the report alone", "exit 0, a warning; all results are there")


@needs_root
def test_a_training_outlives_a_checkpoint_that_has_no_room(
    forked: Forked, whole: Path, mine: Path, mounted: Mounted, tell: Tell
) -> None:
    """A checkpoint is three times the model: the training ended with it, though its result fits;
    and half of it stayed, and kept the disk full.
    """
    place = mounted("-t", "tmpfs", "-o", "size=440k", "tmpfs")
    ended = forked("run", "mini.yaml", "skip=[prune, evaluate]", cwd=mine)
    assert ended.code == 0, ended.err
    assert "no checkpoint at step 1, the training goes on: " in ended.out
    assert artifacts(place)["finetune"] == artifacts(whole / "outputs")["finetune"]
    tell("disk", "no room for a checkpoint", "the training goes on, and says so")


def test_what_happens_need_not_be_recorded_for_a_run_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tell: Tell
) -> None:
    """An event that could not be written ended the run: `/dev/full` takes nothing. It is said once,
    and the next line that can be written is whole.
    """
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    progress = Progress(Console(quiet=True), path, quiet=True)
    for number in range(3):
        progress.event("said", text=str(number))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "events.jsonl: the disk is full" in warning
    path.unlink()
    progress.event("said", text="3")
    (event,) = map(json.loads, path.read_text().splitlines())
    assert event["text"] == "3"
    tell("disk", "no room for events.jsonl", "the run goes on, one warning")


def test_a_file_may_be_no_larger_than_the_shell_says(
    forked: Forked, whole: Path, mine: Path, tell: Tell
) -> None:
    """`ulimit -f`: the weights do not fit."""
    limit = {"RLIMIT_FSIZE": 100_000}
    error = one_error(forked("run", "mini.yaml", "-q", cwd=mine, limits=limit))
    assert "ulimit -f" in error and "stage 'load'" in error
    whole_only(mine / "outputs")
    assert forked("run", "mini.yaml", "-q", cwd=mine).code == 0
    assert artifacts(mine / "outputs") == artifacts(whole / "outputs")
    tell("disk", "a limit on a file's size", "exit 1: the limit; then done")


@needs_root
@pytest.mark.skipif(not LONG, reason="a sweep for each trial; `make test-faults`")
def test_a_sweep_on_a_full_disk_goes_on_from_there(
    forked: Forked, mine: Path, mounted: Mounted, tell: Tell
) -> None:
    """Its journal, page, table and points: one reason, then the same command finishes."""
    draw = random.Random(1)
    for _ in range(trials(8, 1)):
        size = draw.randrange(20, 520)
        place = mounted("-t", "tmpfs", "-o", f"size={size}k", "tmpfs")
        failed = forked(*SWEEP, cwd=mine)
        assert failed.code == 1, (size, failed)
        assert "the disk is full" in failed.err + failed.out
        whole_only(place)
        mounted("-o", "remount,size=100m")
        done = forked(*SWEEP, cwd=mine)
        assert done.code == 0, done
        assert len(list(place.glob("sweeps/mini/*/sweep.csv"))) == 1
        subprocess.run(["umount", "-l", place], check=True)
        tell("disk", "full in a sweep", "exit 1: which file; the same command goes on")


# What may not be written, or is something else


@needs_root
def test_read_only_outputs_are_told(
    forked: Forked, mine: Path, mounted: Mounted, tell: Tell
) -> None:
    """One error that names the place."""
    mounted("-t", "tmpfs", "-o", "ro", "tmpfs")
    error = one_error(forked("run", "mini.yaml", "-q", cwd=mine))
    assert "outputs" in error and "read-only" in error
    assert forked("plan", "mini.yaml", cwd=mine).code == 0
    tell("disk", "read-only outputs", "exit 1: the place; `plan` works")


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may enter."""
    folder = Path(tempfile.mkdtemp(prefix="compressor-faults-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize("whose", ["outputs", "store", "runs", "artifact"])
def test_what_is_another_users_is_told(
    whose: str, forked: Forked, whole: Path, common: Path, tell: Tell
) -> None:
    """Outputs, or a part of them, that only root may write, or read: one error, and no half."""
    shutil.copy(whole / "mini.yaml", common)
    outputs = common / "outputs"
    outputs.mkdir()
    outputs.chmod(0o777 if whose != "outputs" else 0o755)
    if whose == "artifact":
        shutil.copytree(whole / "outputs" / "store", outputs / "store")
        for path in [outputs / "store", *(outputs / "store").glob("*/")]:
            path.chmod(0o777)
        next(outputs.glob("store/*/manifest.json")).parent.chmod(0o700)
    elif whose != "outputs":
        (outputs / whose).mkdir()
    error = one_error(forked("run", "mini.yaml", "-q", cwd=common, user=NOBODY))
    assert "outputs" in error and "this user may not" in error, error
    whole_only(outputs)
    tell("disk", f"another user's {whose}", "exit 1: the place, and that this user may not")


@pytest.mark.parametrize("what", ["file", "dangling link", "link to itself", "missing parents"])
def test_outputs_that_are_something_else(
    what: str, forked: Forked, whole: Path, mine: Path, tell: Tell
) -> None:
    """A file is refused while planning; a link to nowhere is told, or made; folders are made."""
    place, given = mine / "outputs", "outputs=outputs"
    if what == "file":
        place.write_text("")
    elif what == "dangling link":
        place.symlink_to(mine / "nowhere")
    elif what == "link to itself":
        place.symlink_to(place.name)
    else:
        given = "outputs=outputs/a/b c/d"
    ended = forked("run", "mini.yaml", "-q", given, cwd=mine)
    if what == "missing parents":
        assert ended.code == 0
    else:
        assert "outputs" in one_error(ended, ended.code) and ended.code in (1, 2)
    tell("disk", f"outputs: {what}", f"exit {ended.code}" + (": the place" if ended.code else ""))


@needs_root
def test_a_recipe_that_may_not_be_read_is_told(forked: Forked, common: Path, tell: Tell) -> None:
    """Exit 2, and which file."""
    (common / "mine.yaml").write_text("defaults: [/base]\n")
    (common / "mine.yaml").chmod(0o600)
    ended = forked("plan", "mine.yaml", cwd=common, user=NOBODY)
    assert "mine.yaml" in one_error(ended, 2)
    tell("disk", "a recipe that may not be read", "exit 2: which file")


NAMES = ["ü 模型\nand 'more'", "a/" + "/".join(["x" * 60] * 30), "a b", "-m"]


@pytest.mark.parametrize("name", NAMES if LONG else NAMES[:1])
def test_outputs_may_have_any_name(
    name: str, forked: Forked, whole: Path, mine: Path, tell: Tell
) -> None:
    """Spaces, other scripts, a line's end, a dash, quotes, a very long path."""
    quoted = name.replace("\\", "\\\\").replace("'", "\\'")
    ended = forked("run", "mini.yaml", "-q", f"outputs='{quoted}'", cwd=mine)
    assert ended.code == 0, ended.err
    assert artifacts(mine / name) == artifacts(whole / "outputs")
    (run,) = (mine / name / "runs" / "mini").iterdir()
    assert (run / "report.html").is_file()
    assert forked("show", run, cwd=mine).code == 0
    tell("disk", "outputs with a strange or a long name", "all there")
