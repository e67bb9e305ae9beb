"""A sweep ends with the same table however it was run: at once, in pieces, in other processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HEAD = "stages.prune.amounts.lm_head"
SWEEP = ("-m", f"{HEAD}=0.1,0.3,0.5")
POINTS = ["lm_head=0.1", "lm_head=0.3", "lm_head=0.5"]
OF_TIME = {"samples_per_second", "resumed"}
"""Metrics that are not of the model."""


def sweep_folder(outputs: Path) -> Path:
    (about,) = outputs.glob("sweeps/mine/*/sweep.json")
    return about.parent


def table(folder: Path) -> dict[str, list[Any]]:
    """Of each point: every stage's key, sizes and metrics, but for what says how long it took."""
    found = {}
    for path in sorted(folder.glob("*/metrics.json")):
        assert json.loads(path.with_name("point.json").read_text())["error"] is None
        found[path.parent.name] = [
            (
                record["name"],
                record["key"],
                record["parameters"],
                record["nonzero"],
                record["bytes"],
                {k: v for k, v in record["metrics"].items() if k not in OF_TIME},
            )
            for record in json.loads(path.read_text())
        ]
    return found


def made(folder: Path) -> list[str]:
    """The keys that any point made itself, once for each time."""
    return [
        record["key"]
        for path in folder.glob("*/metrics.json")
        for record in json.loads(path.read_text())
        if not record["cached"]
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> tuple[Path, dict[str, list[Any]]]:
    """The recipe's folder, and the table of the sweep that one process ran without a break."""
    from tests.conftest import RECIPE, compressor

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", *SWEEP, cwd=folder)
    assert done.code == 0, done.err
    return folder, table(sweep_folder(folder / "outputs"))


def test_what_points_share_runs_once_and_the_same_command_runs_nothing(undisturbed, run) -> None:
    """Folders are named by what differs; the second time no point is started."""
    from tests.conftest import compressor

    where, found = undisturbed
    assert list(found) == POINTS
    folder = sweep_folder(where / "outputs")
    assert len(made(folder)) == len(set(made(folder))) == 2 + 3 * 3
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    again = compressor("run", "mine.yaml", *SWEEP, cwd=where)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")} == before
    assert all(name in again.out for name in POINTS)
    more = compressor("plan", "mine.yaml", *SWEEP[:1], f"{HEAD}=0.1,0.3,0.5,0.7", cwd=where)
    assert "14 distinct stages instead of 20; 3 to run, 11 in the store" in more.out
    assert "lm_head=0.7: prune → recover → evaluate" in more.out
    assert "points at once" in more.out


def test_a_failing_point_stops_no_other_and_alone_runs_again(recipe, run) -> None:
    """Exit code 1, the error in its folder and in the table; a wrong value is told before."""
    path = recipe()
    rates = "stages.recover.learning_rate=1e30,0.001"
    failed = run("run", path, "-m", rates)
    assert failed.code == 1
    folder = sweep_folder(path.parent / "outputs")
    outcomes = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/point.json")}
    assert sorted(outcomes) == ["learning_rate=0.001", "learning_rate=1e+30"]
    assert outcomes["learning_rate=0.001"]["error"] is None
    assert "weights before that step are kept" in outcomes["learning_rate=1e+30"]["error"]
    assert "learning_rate=1e+30: failed: stage 'recover'" in failed.out
    ended = (folder / "learning_rate=0.001" / "point.json").stat().st_mtime_ns
    again = run("run", path, "-m", rates)
    assert again.code == 1
    assert "1 of 2 points are done; 1 to run" in again.out
    assert (folder / "learning_rate=0.001" / "point.json").stat().st_mtime_ns == ended
    wrong = run("run", path, "-m", f"{HEAD}=0.2,1.5")
    assert wrong.code == 2
    assert len(list(folder.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("event", "times"), [("stage_started", 2), ("stage_ended", 4), ("stage_started", 8)]
)
def test_a_sweep_killed_anywhere_ends_with_the_same_table(undisturbed, tmp_path, event, times):
    """SIGKILL to the whole session, then the same command: in the shared part, in a point's own,
    and between two points.
    """
    from tests.conftest import RECIPE, compressor

    (tmp_path / "mine.yaml").write_text(RECIPE)
    process = subprocess.Popen(
        [sys.executable, "-m", "compressor", "run", "mine.yaml", *SWEEP],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        files = tmp_path.glob("outputs/sweeps/mine/*/*/events.jsonl")
        if sum(path.read_text().count(f'"{event}"') for path in files) >= times:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = compressor("run", "mine.yaml", *SWEEP, cwd=tmp_path)
    assert done.code == 0, done.err
    assert table(sweep_folder(tmp_path / "outputs")) == undisturbed[1]


def test_two_processes_give_the_same_bits_and_run_nothing_twice(undisturbed, tmp_path) -> None:
    """By joblib's launcher: one point makes what both need, the other waits for it and uses it."""
    from tests.conftest import RECIPE, compressor

    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", *SWEEP, "hydra/launcher=processes", cwd=tmp_path)
    assert done.code == 0, done.err
    folder = sweep_folder(tmp_path / "outputs")
    assert table(folder) == undisturbed[1]
    assert len(made(folder)) == len(set(made(folder))) == 11
    assert "lm_head=0.3: done" in done.out
    assert (folder / "lm_head=0.3" / "log.txt").read_text().count("recover") >= 1


def test_a_recipe_can_say_what_is_swept(recipe, run) -> None:
    """`hydra.sweeper.params`, as in any Hydra program; the command line has the last word."""
    params = f"hydra: {{sweeper: {{params: {{{HEAD}: '0.1,0.2'}}}}}}\nstages:"
    path = recipe(("stages:", params))
    assert "5 distinct" not in run("plan", path, "-m").out
    two = run("plan", path, "-m")
    assert "2 points" in two.out
    assert "lm_head=0.2" in two.out
    assert "3 points" in run("plan", path, "-m", f"{HEAD}=0.1,0.2,0.4").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=proceses"], "no launcher 'proceses'; did you mean 'processes'?"),
        (["hydra/launcher=processes", "hydra.launcher.n_job=3"], "no such setting 'n_job'"),
        (["outputs=a,b"], "points share one store"),
        ([f"{HEAD}=interval(0,1)"], "is an interval, for a search"),
        (["objective.maximize=evaluate.rougeLsumm"], "did you mean 'rougeLsum'?"),
        (["objective.minimize=evalute.loss"], "did you mean 'evaluate'?"),
        (["objective.minimize=loss"], "is not <stage>.<metric>"),
        (["objective={}"], "expected something to maximize or to minimize"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_before_it_runs(recipe, run, arguments, message) -> None:
    """Exit code 2, one line that is enough to mend it, and nothing was made."""
    path = recipe()
    result = run("run", path, "-m", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (path.parent / "outputs").exists()


def test_a_folder_beside_a_recipe_is_no_group_of_options(recipe, run) -> None:
    """`outputs=elsewhere` where an earlier run has left a folder `outputs`."""
    path = recipe()
    (path.parent / "outputs").mkdir()
    done = run("run", path, "outputs=elsewhere", "skip=[finetune, evaluate]")
    assert done.code == 0, done.err
    assert (path.parent / "elsewhere" / "store").is_dir()
    assert not any((path.parent / "outputs").iterdir())
