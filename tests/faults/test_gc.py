"""`compressor gc` frees space, and never what a run names, a process uses, or a link leads to."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from compressor import runner
from compressor.errors import StageError
from compressor.garbage.removal import Asked, Collected, collect
from compressor.plan import plan
from compressor.recipe import compose
from compressor.store import COLLECTING, Store
from tests.conftest import RECIPE, compressor
from tests.faults import trials
from tests.faults.artifacts import DAY, commit, key_of, manifest_of, name_in_run

AREA = "gc"


def gc(outputs: Path, *, dry_run: bool = False, **asked: Any) -> Collected:
    said: list[str] = []
    return collect(
        Store(outputs / "store"), outputs, Asked(**asked), dry_run=dry_run, say=said.append
    )


def keys(outputs: Path) -> set[str]:
    return {path.name for path in (outputs / "store").iterdir() if len(path.name) == 64}


def test_what_no_run_names_goes_and_what_one_names_stays(tmp_path: Path, tell: Any) -> None:
    """By links, records, the plan, events, and a recipe that reads a folder of the store."""
    store = Store(tmp_path / "store")
    for number in range(7):
        commit(store, number, size=1000 * (number + 1))
    run = name_in_run(tmp_path, key_of(0))
    (run / "asked.json").write_text(json.dumps({"nodes": [{"key": key_of(1)}]}))
    (run / "events.jsonl").write_text(f'{{"event": "stage_started", "key": "{key_of(2)}"}}\n{{"ev')
    (run / "recipe.yaml").write_text(f"model: {{path: ../store/{key_of(3)}/model}}")
    (run / "stages").mkdir()
    (run / "stages" / "00-load").symlink_to(os.path.relpath(store.path(key_of(4)), run / "stages"))
    sweep = tmp_path / "sweeps" / "mine" / "now"
    sweep.mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"keys": [key_of(5)]}))
    before = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    dry = gc(tmp_path, dry_run=True)
    assert before == {p: p.read_bytes() for p in store.folder.rglob("*") if p.is_file()}
    found = gc(tmp_path)
    assert keys(tmp_path) == {key_of(number) for number in range(6)}
    assert [each.item.key for each in found.removed if each.item.kind == "artifact"] == [key_of(6)]
    assert [e.item.key for e in dry.removed] == [e.item.key for e in found.removed]
    assert 7000 < found.bytes_freed < 8000
    assert found.kept == {"artifacts that runs name": 6}
    assert list(store.folder.glob("trash*")) == []
    tell(AREA, "artifacts that no run names, beside some that one does", "the first go, alone", 7)


def test_a_run_whose_files_cannot_be_told_keeps_all_that_they_name(tmp_path: Path) -> None:
    """Half a `metrics.json` names its keys all the same; one that cannot be read stops `gc`."""
    store = Store(tmp_path / "store")
    commit(store, 0)
    run = name_in_run(tmp_path, key_of(0))
    (run / "metrics.json").write_text((run / "metrics.json").read_text()[:-4])
    gc(tmp_path)
    assert keys(tmp_path) == {key_of(0)}
    (run / "metrics.json").unlink()
    (run / "recipe.yaml").symlink_to(run / "recipe.yaml")  # which no one can read
    gc(tmp_path, dry_run=True)
    (run / "stages").mkdir()
    (run / "stages").chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(StageError, match="nothing is removed"):
            gc(tmp_path)
        assert keys(tmp_path) == {key_of(0)}
    (run / "stages").chmod(0o700)


def test_a_key_across_two_blocks_of_a_long_file_is_seen(tmp_path: Path) -> None:
    """Files are read a MiB at a time."""
    store = Store(tmp_path / "store")
    key = commit(store, 0)
    run = name_in_run(tmp_path, "none")
    for cut in (1, 32, 63, 64):
        (run / "events.jsonl").write_text(" " * ((1 << 20) - cut) + key + "\n")
        gc(tmp_path)
        assert keys(tmp_path) == {key}


def test_only_what_is_old_goes_where_an_age_is_given(tmp_path: Path) -> None:
    """Of days 40 and 20, `--older-than 30d` takes the first; a use makes new, as a run's does."""
    store = Store(tmp_path / "store")
    for number, days in enumerate((40, 20, 50)):
        commit(store, number, days=days)
    store.touch(key_of(2))
    found = gc(tmp_path, older_than=30 * DAY)
    assert keys(tmp_path) == {key_of(1), key_of(2)}
    assert found.kept["too young"] == 2


@pytest.mark.parametrize("moment", ["2099", "1971", "before its input"])
def test_a_clock_that_jumped_makes_nothing_old(tmp_path: Path, tell: Any, moment: str) -> None:
    """Made when the clock stood in the future, in 1971, or a year before what it was made from."""
    store = Store(tmp_path / "store")
    commit(store, "input", days=1)
    year = 365.25
    days = {"2099": -73 * year, "1971": 55 * year, "before its input": year}[moment]
    commit(store, 0, days=days, inputs={"model": key_of("input")})
    commit(store, "old", days=40)
    gc(tmp_path, older_than=30 * DAY)
    assert keys(tmp_path) == {key_of("input"), key_of(0)}
    tell(AREA, "a clock that jumps, and --older-than", "what is new, or of no known age, stays")


def test_the_longest_unused_go_until_the_store_is_small_enough(tmp_path: Path) -> None:
    """Of four of about 10 kB with 5, 4, 3 and 2 days, a limit of 25 kB leaves the newest two."""
    store = Store(tmp_path / "store")
    for number in range(4):
        commit(store, number, size=10_000, days=5 - number)
    gc(tmp_path, max_size=25_000)
    assert keys(tmp_path) == {key_of(2), key_of(3)}
    name_in_run(tmp_path, key_of(2))
    found = gc(tmp_path, max_size=5_000)
    assert keys(tmp_path) == {key_of(2)}  # though that is more than 5 kB
    ((folder, alone),) = found.largest
    assert folder == tmp_path / "runs/mine/2026-01-01_00-00-00"
    assert 10_000 < alone < 11_000


def test_what_killed_runs_left_goes_but_a_checkpoint_that_one_goes_on_from(tmp_path: Path) -> None:
    """A half artifact, a task, a damaged one, locks; a checkpoint of a run that is there stays."""
    store = Store(tmp_path / "store")
    (store.begin(key_of(0)) / "half").write_text("x")
    for name in (f"{key_of(1)}.resume", f"{key_of(2)}.resume", f"{key_of(0)}.task"):
        (store.folder / "partial" / name).mkdir()
        (store.folder / "partial" / name / "state").write_text("x")
    commit(store, 3)
    store.set_aside(key_of(3))
    with store.lock(key_of(4), lambda: None):
        pass
    run = name_in_run(tmp_path, "none")
    (run / "events.jsonl").write_text(f'{{"event": "stage_started", "key": "{key_of(1)}"}}\n')
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name, days in ((f".metrics.json.{ended.pid}", 2), (f".report.html.{ended.pid}", 0)):
        (run / name).write_text("[")
        os.utime(run / name, (time.time() - days * DAY,) * 2)
    gc(tmp_path)
    left = [path.name for path in (store.folder / "partial").iterdir()]
    assert left == [f"{key_of(1)}.resume"]
    assert list((store.folder / "damaged").iterdir()) == []
    assert [path.name for path in (store.folder / "locks").iterdir()] == [f"{COLLECTING}.lock"]
    # Another machine's process may have this id too: only an old one is nobody's.
    assert {path.name for path in run.iterdir()} == {
        *("metrics.json", "events.jsonl", f".report.html.{ended.pid}")
    }


def _hold(folder: str, name: str, ready: str) -> None:
    with Store(Path(folder)).lock(name, lambda: None):
        Path(ready).touch()
        time.sleep(120)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Have another process hold a lock of the store until the test ends."""
    context, started = multiprocessing.get_context("spawn"), []

    def hold(name: str) -> None:
        ready = tmp_path / f"ready-{len(started)}"
        process = context.Process(target=_hold, args=(str(tmp_path / "store"), name, str(ready)))
        process.start()
        started.append(process)
        deadline = time.monotonic() + 60
        while not ready.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    yield hold
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize("name", ["{}", "{}.writer"])
def test_what_a_process_writes_stays(
    tmp_path: Path, held: Callable[[str], None], name: str, tell: Any
) -> None:
    """By the run that makes it, or by its worker, whose run's folder was removed meanwhile."""
    store = Store(tmp_path / "store")
    (store.begin(key_of(0)) / "half").write_text("x")
    commit(store, 1)
    held(name.format(key_of(0)))
    found = gc(tmp_path)
    assert (store.folder / "partial" / key_of(0) / "half").is_file()
    assert keys(tmp_path) == set()
    assert found.kept["in use by a process"] == 2  # the lock's file as well
    tell(AREA, "an artifact that a process is writing", "it stays, and gc does not wait")


def test_no_link_is_followed_to_what_is_elsewhere(tmp_path: Path, tell: Any) -> None:
    """In an artifact, in the store, and `partial` itself: what they lead to is as it was."""
    outputs, elsewhere = tmp_path / "outputs", tmp_path / "elsewhere"
    store = Store(outputs / "store")
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    commit(store, 0)
    (store.path(key_of(0)) / "model").symlink_to(elsewhere)
    store.path(key_of(1)).symlink_to(elsewhere)
    (store.begin(key_of(2)) / "data").symlink_to(elsewhere)
    gc(outputs)
    assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    assert keys(outputs) == {key_of(1)}  # a link is no artifact, and is left to its maker
    shutil.rmtree(store.folder / "partial")
    (store.folder / "partial").symlink_to(elsewhere)
    with pytest.raises(StageError, match="is a link"):
        gc(outputs)
    assert (elsewhere / "precious").is_file()
    tell(AREA, "symbolic links in a store", "none is followed", 4)


def test_runs_of_every_outputs_folder_that_shares_a_store_are_seen(
    tmp_path: Path, tell: Any
) -> None:
    """Two outputs folders whose `store` is a link to one: each one's runs keep what they name.

    One that is not there, on a disk that is not mounted, say, is not taken for empty.
    """
    (tmp_path / "large").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store").symlink_to(tmp_path / "large", target_is_directory=True)
        with Store(tmp_path / name / "store").keeping(lambda: None):
            commit(Store(tmp_path / name / "store"), name)
            name_in_run(tmp_path / name, key_of(name))
    commit(Store(tmp_path / "large"), "nobody's")
    gc(tmp_path / "a")
    assert keys(tmp_path / "b") == {key_of("a"), key_of("b")}
    (tmp_path / "b").rename(tmp_path / "away")
    with pytest.raises(StageError, match="not to be found"):
        gc(tmp_path / "a")
    assert keys(tmp_path / "a") == {key_of("a"), key_of("b")}
    tell(AREA, "two outputs folders on one store", "what either's runs name stays", 2)


def test_a_run_folder_that_is_a_link_keeps_what_it_names(tmp_path: Path) -> None:
    """Moved to another disk, with a link in its place."""
    store = Store(tmp_path / "outputs" / "store")
    commit(store, 0)
    run = name_in_run(tmp_path / "outputs", key_of(0))
    shutil.move(run, tmp_path / "moved")
    run.symlink_to(tmp_path / "moved")
    gc(tmp_path / "outputs")
    assert keys(tmp_path / "outputs") == {key_of(0)}


def _collect(outputs: str) -> None:
    gc(Path(outputs))


def test_a_gc_that_is_killed_leaves_no_half_artifact(tmp_path: Path, tell: Any) -> None:
    """SIGKILL at random moments: what is still there is whole, and the next one finishes."""
    chance, struck = random.Random(1), 0
    context = multiprocessing.get_context("fork")
    times = trials(60, 8)
    for number in range(12):
        commit(Store(tmp_path / "all" / "store"), number, size=40, files=20)
    for trial in range(times):
        outputs = tmp_path / str(trial)
        shutil.copytree(tmp_path / "all", outputs)
        store = Store(outputs / "store")
        name_in_run(outputs, key_of(0))
        process = context.Process(target=_collect, args=(str(outputs),))
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
        assert not store.is_locked(COLLECTING)
        shutil.rmtree(outputs)
    assert struck >= times // 3
    tell(AREA, "SIGKILL of gc", "every artifact whole or gone; the next gc finishes", struck)


def _fill(disk: Path) -> None:
    """Until no byte can be written, nor a new file."""
    with suppress(OSError), (disk / "fill").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    with suppress(OSError):
        for number in range(1000):
            (disk / f"file-{number}").touch()
    with pytest.raises(OSError, match="No space"):
        (disk / "one more").touch()
    assert shutil.disk_usage(disk).free == 0


def test_space_is_freed_on_a_disk_that_is_full(tmp_path: Path, tell: Any) -> None:
    """Where no byte can be written, an artifact still goes."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounts a file system: needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=400", "tmpfs", disk], check=False
    )
    if made.returncode != 0:
        pytest.skip("cannot mount a tmpfs here")
    try:
        store = Store(disk / "store")
        commit(store, 0, size=200_000)
        with store.keeping(lambda: None):  # as every run does
            pass
        _fill(disk)
        found = gc(disk)
        assert found.failed == []
        assert keys(disk) == set()
        assert shutil.disk_usage(disk).free >= 200_000
    finally:
        subprocess.run(["umount", disk], check=True)
    tell(AREA, "a disk without a free byte or inode", "gc frees it")


def test_a_store_that_is_not_there_is_empty(tmp_path: Path) -> None:
    """As before the first run; nothing is made there."""
    done = compressor("gc", cwd=tmp_path)
    assert (done.code, list(tmp_path.iterdir())) == (0, [])
    assert "removed nothing" in done.out


@pytest.mark.parametrize(
    "given",
    [
        ["--older-than", "30"],
        ["--older-than=-1d"],
        ["--max-size", "1e3GB"],
        ["--max-size", "99999PB"],
    ],
)
def test_an_amount_that_is_none_is_refused(tmp_path: Path, given: list[str]) -> None:
    """Exit code 2, and what was expected."""
    done = compressor("gc", *given, cwd=tmp_path)
    assert done.code == 2
    assert "expected" in done.err or "too large" in done.err


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pico recipe and one run of it."""
    place = tmp_path_factory.mktemp("gc")
    text = RECIPE.replace("rows: {train: 64", "rows: {train: 32")
    (place / "mine.yaml").write_text(text)
    done = compressor("run", "mine.yaml", "-q", cwd=place)
    assert done.code == 0, done.err
    return place


def test_a_run_that_has_begun_keeps_all_that_it_counts_on(
    ran: Path, tmp_path: Path, tell: Any
) -> None:
    """The run that made its artifacts is removed, and `gc` works, before the first is asked for.

    Between planning on an artifact and linking to it a run had nothing that told of it.
    """
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True, symlinks=True)
    outputs = tmp_path / "outputs"
    composed = compose(str(tmp_path / "mine.yaml"), [f"outputs={outputs}"])
    store = Store.of(composed.recipe.outputs)
    planned = plan(composed, store)
    assert all(node.cached for node in planned.nodes)
    collected: list[Collected] = []

    def watch(kind: str, values: Any) -> None:
        if kind == "run_started":
            for old in (outputs / "runs" / "mine").iterdir():
                if (old / "events.jsonl").read_text().count("\n") != 1:
                    shutil.rmtree(old)
            collected.append(gc(outputs))

    folder = runner.execute(planned, store, None, Console(quiet=True), quiet=True, watch=watch)
    assert len(list((outputs / "runs" / "mine").iterdir())) == 1  # the other one was removed
    assert collected[0].kept["artifacts that runs name"] == len(planned.nodes)
    records = json.loads((folder / "metrics.json").read_text())
    assert all(record["cached"] for record in records)
    tell(AREA, "gc between a run's plan and its first hit", "nothing of the plan goes")


def test_a_run_that_begins_while_gc_works_waits_and_makes_what_is_gone(
    ran: Path, tmp_path: Path, tell: Any
) -> None:
    """It was planned on artifacts that `gc` then removed: they are made again, to the same bits."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True, symlinks=True)
    outputs = tmp_path / "outputs"
    (old,) = (outputs / "runs" / "mine").iterdir()
    before = json.loads((old / "metrics.json").read_text())
    command = [sys.executable, "-m", "compressor", "run", "mine.yaml", "-q"]
    store = Store(outputs / "store")
    with store.lock(COLLECTING, lambda: None):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if "waiting for `compressor gc`, or another run" in line:  # it was always said to be gc
                break
        shutil.rmtree(old)
        for record in before:  # as gc does, whose lock this is
            shutil.rmtree(store.path(record["key"]))
    process.stderr.read()
    assert process.wait(120) == 0
    (new,) = (outputs / "runs" / "mine").iterdir()
    after = json.loads((new / "metrics.json").read_text())
    assert not any(record["cached"] for record in after)
    for was, now in zip(before, after, strict=True):
        assert was["key"] == now["key"]
        assert was["metrics"].get("validation_losses") == now["metrics"].get("validation_losses")
    tell(AREA, "a run that starts while gc works", "it waits, and makes what is gone")


def test_the_command_says_what_went_what_stays_and_how_to_free_more(
    ran: Path, tmp_path: Path
) -> None:
    """A table, totals and counts; as JSON the same."""
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True, symlinks=True)
    commit(Store(tmp_path / "outputs" / "store"), 0, size=5_000, days=3)
    dry = json.loads(compressor("gc", "--dry-run", "--json", cwd=tmp_path).out)
    (artifact,) = [each for each in dry["removed"] if each["kind"] == "artifact"]
    assert (artifact["stage"], artifact["why"]) == ("load", "no run names it")
    assert artifact["age_seconds"] == pytest.approx(3 * DAY, abs=600)
    done = compressor("gc", cwd=tmp_path)
    assert done.code == 0
    assert key_of(0)[:12] in done.out
    assert "3 d" in done.out
    assert "removed 1 artifact" in done.out
    assert "artifacts that runs name" in done.out
    again = compressor("gc", cwd=tmp_path)
    assert "removed nothing" in again.out
    assert "to free more, delete run folders" in again.out
    assert manifest_of(Store(tmp_path / "outputs" / "store"), key_of(0)).exists() is False
