"""`compressor gc` frees space, and never what a run names, a process uses, or a link leads to."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.core.errors import RecipeError, StageError
from compressor.engine.plan import plan
from compressor.engine.store import references
from compressor.engine.store.gc import GcResult, Limits, collect_garbage
from compressor.engine.store.store import GC_LOCK, Store
from compressor.recipe.compose import compose
from compressor.runs import runner
from tests.harness.artifacts import DAY, commit, key_of, manifest_of, name_in_run
from tests.harness.command import compressor, start


def gc(outputs: Path, *, dry_run: bool = False, **limits: Any) -> GcResult:
    store = Store(outputs / "store")
    return collect_garbage(store, outputs, Limits(**limits), dry_run=dry_run, say=lambda _: None)


def keys(outputs: Path) -> set[str]:
    return set(Store(outputs / "store").list_keys())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# What runs name stays


def test_what_no_run_names_goes_and_what_one_names_stays(store: Store, tmp_path: Path) -> None:
    """By records, half of a damaged file, the plan, events, a recipe that reads a folder of the
    store, links, and a sweep. A dry run lists the same, and removes nothing.
    """
    for number in range(8):
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
    half = name_in_run(tmp_path, key_of(6), "mine/half") / "metrics.json"
    half.write_text(half.read_text()[:-4])
    before = sorted(store.folder.rglob("*"))
    dry = gc(tmp_path, dry_run=True)
    assert sorted(store.folder.rglob("*")) == before
    result = gc(tmp_path)
    assert keys(tmp_path) == {key_of(number) for number in range(7)}
    artifacts = [r.item.key for r in result.removed if r.item.kind == "artifact"]
    assert artifacts == [key_of(7)]
    assert [r.item.key for r in dry.removed] == [r.item.key for r in result.removed]
    assert 8000 < result.bytes_freed < 9000
    assert result.kept == {"artifacts that runs name": 7}
    assert list(store.folder.glob("trash*")) == []


def test_a_run_that_cannot_be_read_stops_gc(store, tmp_path: Path, monkeypatch) -> None:
    """Nobody then knows what it keeps."""
    commit(store, 0)
    name_in_run(tmp_path, "none")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(references, "_read_keys", refuse)
    with pytest.raises(StageError, match=r"nothing is removed: .*metrics\.json"):
        gc(tmp_path)
    assert keys(tmp_path) == {key_of(0)}


def test_runs_of_every_outputs_folder_that_shares_a_store_are_seen(tmp_path: Path) -> None:
    """Two outputs folders whose `store` is a link to one: each one's runs keep what they name."""
    (tmp_path / "large").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store").symlink_to(tmp_path / "large", target_is_directory=True)
        with Store(tmp_path / name / "store").hold_off_gc(lambda: None):
            commit(Store(tmp_path / name / "store"), name)
            name_in_run(tmp_path / name, key_of(name))
    commit(Store(tmp_path / "large"), "nobody's")
    gc(tmp_path / "a")
    assert keys(tmp_path / "b") == {key_of("a"), key_of("b")}
    assert list((tmp_path / "large").glob("trash*")) == []  # a linked store's was never emptied
    (tmp_path / "b").rename(tmp_path / "away")
    with pytest.raises(StageError, match="cannot be found"):
        gc(tmp_path / "a")
    assert keys(tmp_path / "a") == {key_of("a"), key_of("b")}


def test_links_keep_what_they_name_and_are_not_followed_to_what_is_elsewhere(tmp_path) -> None:
    """A run's folder that was moved to another disk, and links in artifacts, in the store and in
    runs: what they lead to is as it was, though it is named as our own temporary files are.
    """
    outputs, elsewhere = tmp_path / "outputs", tmp_path / "elsewhere"
    store = Store(outputs / "store")
    elsewhere.mkdir()
    for number in (0, 1):
        commit(store, number)
    run = name_in_run(outputs, key_of(0))
    shutil.move(run, tmp_path / "moved")
    run.symlink_to(tmp_path / "moved")
    ours = run / ".metrics.json.999999"
    for file in (elsewhere / ".notes.txt.999999", ours):
        file.write_text("x")
        os.utime(file, (time.time() - 3 * DAY,) * 2)
    (run / "link").symlink_to(elsewhere, target_is_directory=True)
    (store.path(key_of(1)) / "model").symlink_to(elsewhere)
    store.path(key_of(2)).symlink_to(elsewhere)
    (store.begin(key_of(3)) / "data").symlink_to(elsewhere)
    gc(outputs)
    assert [path.name for path in elsewhere.iterdir()] == [".notes.txt.999999"]
    assert not ours.exists()
    assert keys(outputs) == {key_of(0), key_of(2)}  # a link is no artifact of ours


# What is old, large, or left behind goes


def test_only_what_is_old_goes_where_an_age_is_given(store: Store, tmp_path: Path) -> None:
    """Of days 40 and 20, `--older-than 30d` takes the first; a use makes new, as a run's does."""
    for number, days in enumerate((40, 20, 50)):
        commit(store, number, days=days)
    store.mark_used(key_of(2))
    result = gc(tmp_path, older_than=30 * DAY)
    assert keys(tmp_path) == {key_of(1), key_of(2)}
    assert result.kept["too young"] == 2


YEAR = 365.25


@pytest.mark.parametrize("days", [-73 * YEAR, 55 * YEAR, YEAR], ids=["2099", "1971", "last year"])
def test_a_clock_that_jumped_makes_nothing_old(store: Store, tmp_path: Path, days: float) -> None:
    """Made when the clock said 2099, 1971, or a year before what it was made from."""
    commit(store, "input", days=1)
    commit(store, 0, days=days, inputs={"model": key_of("input")})
    commit(store, "old", days=40)
    gc(tmp_path, older_than=30 * DAY)
    assert keys(tmp_path) == {key_of("input"), key_of(0)}


def test_the_longest_unused_go_until_the_store_is_small_enough(store, tmp_path: Path) -> None:
    """Of four of about 10 kB with 5, 4, 3 and 2 days, a limit of 25 kB leaves the newest two."""
    for number in range(4):
        commit(store, number, size=10_000, days=5 - number)
    gc(tmp_path, max_size=25_000)
    assert keys(tmp_path) == {key_of(2), key_of(3)}
    run = name_in_run(tmp_path, key_of(2))
    result = gc(tmp_path, max_size=5_000)
    assert keys(tmp_path) == {key_of(2)}  # though that is more than 5 kB
    ((folder, size),) = result.largest
    assert folder == run and 10_000 < size < 11_000


@pytest.mark.parametrize("amount", ["30", "-1d", "1e3d", "99999w", "3 GB"])
def test_an_amount_that_is_none_is_refused(amount: str) -> None:
    """With what was expected."""
    with pytest.raises(RecipeError, match=r"--older-than: .*(expected|too large)"):
        Limits.parse(amount, None)
    assert Limits.parse("1.5h", "2 KiB") == Limits(5400.0, 2048)


def test_what_killed_runs_left_goes_but_a_checkpoint_that_one_resumes_from(store, tmp_path) -> None:
    """A half artifact, a task, damaged ones, locks; a checkpoint of a run that is there stays."""
    (store.begin(key_of(0)) / "half").write_text("x")
    for folder in map(store.resume_folder, (key_of(1), key_of(2))):
        folder.mkdir()
    store.task_folder(key_of(0)).mkdir()
    store.set_aside(commit(store, 3))
    manifest_of(store, commit(store, 4)).write_text('{"key_parts": {"inputs": 5}}')
    with store.lock(key_of(5), lambda: None):
        pass
    run = name_in_run(tmp_path, "none")
    (run / "events.jsonl").write_text(f'{{"event": "stage_started", "key": "{key_of(1)}"}}\n')
    ended = subprocess.Popen(["true"])
    ended.wait()
    for name, days in ((f".metrics.json.{ended.pid}", 2), (f".report.html.{ended.pid}", 0)):
        (run / name).write_text("[")
        os.utime(run / name, (time.time() - days * DAY,) * 2)
    gc(tmp_path)
    assert list((store.folder / "partial").iterdir()) == [store.resume_folder(key_of(1))]
    assert list((store.folder / "damaged").iterdir()) == []
    assert keys(tmp_path) == set()
    assert [path.name for path in (store.folder / "locks").iterdir()] == [f"{GC_LOCK}.lock"]
    # Another machine's process may have this id too: only an old file is nobody's.
    left = {"metrics.json", "events.jsonl", f".report.html.{ended.pid}"}
    assert {path.name for path in run.iterdir()} == left


@pytest.mark.parametrize("name", ["{}", "{}.writer"])
def test_what_a_process_writes_stays(store: Store, tmp_path: Path, name: str) -> None:
    """By the run that makes it, or by its worker, whose run's folder was removed meanwhile."""
    (store.begin(key_of(0)) / "half").write_text("x")
    commit(store, 1)
    with store.lock(name.format(key_of(0)), lambda: None):
        result = gc(tmp_path)
    assert (store.folder / "partial" / key_of(0) / "half").is_file()
    assert keys(tmp_path) == set()
    assert result.kept["in use by a process"] == 2  # the lock's file as well


# Beside runs, and as a command


@pytest.fixture
def place(pruned: Path, tmp_path: Path) -> Path:
    """A copy of a folder with a recipe of two stages and a run of it."""
    shutil.copytree(pruned, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


def test_a_run_that_has_begun_keeps_all_that_it_counts_on(place: Path) -> None:
    """The run that made its artifacts is removed, and `gc` works, before the first is asked for."""
    outputs = place / "outputs"
    (old,) = (outputs / "runs" / "mine").iterdir()
    store = Store(outputs / "store")
    planned = plan(compose(str(place / "mine.yaml"), [f"outputs={outputs}"]), store)
    assert all(node.cached for node in planned.nodes)
    results: list[GcResult] = []

    def watch(kind: str, values: Any) -> None:
        if kind == "run_started":
            shutil.rmtree(old)
            results.append(gc(outputs))

    folder = runner.execute(planned, store, None, Console(quiet=True), quiet=True, watch=watch)
    assert results[0].kept["artifacts that runs name"] == len(planned.nodes)
    records = json.loads((folder / "metrics.json").read_text())
    assert all(record["cached"] for record in records)


def test_a_run_that_begins_while_gc_works_waits_and_makes_what_is_gone(place: Path) -> None:
    """It was planned on artifacts that `gc` then removed: they are made again, to the same bits."""
    store = Store(place / "outputs" / "store")
    (old,) = (place / "outputs" / "runs" / "mine").iterdir()
    before = {key: store.manifest(key)["files"] for key in store.list_keys()}
    with store.lock(GC_LOCK, lambda: None):
        process = start("run", "mine.yaml", "-q", cwd=place)
        while "waiting for `compressor gc`, or another run" not in process.err:
            assert process.poll() is None, process.err
            time.sleep(0.02)
        shutil.rmtree(old)
        for key in before:  # as gc does, whose lock this is
            shutil.rmtree(store.path(key))
    assert process.wait(120) == 0, process.err
    (new,) = (place / "outputs" / "runs" / "mine").iterdir()
    assert not any(r["cached"] for r in json.loads((new / "metrics.json").read_text()))
    assert {key: store.manifest(key)["files"] for key in store.list_keys()} == before


def test_the_command_says_what_went_what_stays_and_how_to_free_more(place: Path) -> None:
    """A table, totals and counts; as JSON the same; before the first run, and with an amount that
    is none, too.
    """
    store = Store(place / "outputs" / "store")
    commit(store, 0, size=5_000, days=3)
    dry = json.loads(compressor("gc", "--dry-run", "--json", cwd=place).out)
    (artifact,) = [removal for removal in dry["removed"] if removal["kind"] == "artifact"]
    assert (artifact["stage"], artifact["why"]) == ("load", "no run names it")
    assert artifact["age_seconds"] == pytest.approx(3 * DAY, abs=600)
    done = compressor("gc", cwd=place)
    assert done.code == 0
    assert key_of(0)[:12] in done.out and "3 d" in done.out
    assert "removed 1 artifact" in done.out and "artifacts that runs name" in done.out
    again = compressor("gc", cwd=place)
    assert "removed nothing" in again.out and "to free more, delete run folders" in again.out
    nowhere = compressor("gc", "--outputs", "nowhere", cwd=place)
    assert nowhere.code == 0 and "removed nothing" in nowhere.out
    assert not (place / "nowhere").exists()
    refused = compressor("gc", "--max-size", "99999PB", cwd=place)
    assert refused.code == 2 and "--max-size: '99999PB' is too large" in refused.err
