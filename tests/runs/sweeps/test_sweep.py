"""A sweep ends with the same table however it was run: at once, in pieces, in other processes."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import main
from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.runs.sweeps.folder import SweepFolder, identify_sweep
from compressor.runs.sweeps.grid import Grid, live_page, plan_grid, prepare_missing, read_sweep
from compressor.runs.sweeps.launch import open_launcher
from tests.harness.command import Command, compressor, start
from tests.harness.once import run_once
from tests.harness.pages import Text
from tests.harness.recipes import RECIPE
from tests.harness.runs import without_times

HEAD = "stages.prune.amounts.lm_head"
GOALS = "objective={maximize: prune.nonzero, minimize: prune.nonzero_ratio}"
SWEEP = ("-m", f"{HEAD}=0.1,0.3,0.5", GOALS)
COMPARED = ("name", "key", "parameters", "nonzero", "bytes", "metrics")
POINTS = ["lm_head=0.1", "lm_head=0.3", "lm_head=0.5"]


def sweep_folder(outputs: Path) -> Path:
    (about,) = outputs.glob("sweeps/mine/*/sweep.json")
    return about.parent


def list_results(folder: Path) -> dict[str, list[Any]]:
    """List of each point every stage's key, sizes and metrics, but for those of time."""
    results = {}
    for path in sorted(folder.glob("*/metrics.json")):
        assert json.loads(path.with_name("point.json").read_text())["error"] is None
        results[path.parent.name] = [
            without_times({key: record[key] for key in COMPARED})
            for record in json.loads(path.read_text())
        ]
    return results


def list_made(folder: Path) -> list[str]:
    """List the keys that any point made itself, once for each time."""
    return [
        record["key"]
        for path in folder.glob("*/metrics.json")
        for record in json.loads(path.read_text())
        if not record["cached"]
    ]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> tuple[Command, dict[str, list[Any]]]:
    """The sweep that one process ran without a break, and its results."""
    done = run_once(tmp_path_factory, "sweep", RECIPE, *SWEEP)
    return done, list_results(sweep_folder(done.cwd / "outputs"))


def test_what_points_share_runs_once_and_the_same_command_runs_nothing(undisturbed) -> None:
    """Folders are named by what differs; the second time no point is started."""
    where, results = undisturbed[0].cwd, undisturbed[1]
    assert list(results) == POINTS
    folder = sweep_folder(where / "outputs")
    assert len(list_made(folder)) == len(set(list_made(folder))) == 2 + 3 * 3
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    again = compressor("run", "mine.yaml", *SWEEP, cwd=where)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")} == before
    assert all(name in again.out for name in POINTS)
    links = re.findall(r'href="([^"]+/report\.html)"', (folder / "sweep.html").read_text("utf-8"))
    assert len(links) == 3
    for report in folder.glob("*/report.html"):
        assert "Changed by this command: " in Text(report.read_text("utf-8")).words
    more = compressor("plan", "mine.yaml", "-m", f"{HEAD}=0.1,0.3,0.5,0.7", cwd=where)
    assert "14 distinct stages instead of 20; 3 to run, 11 in the store" in more.out
    assert "lm_head=0.7: prune → recover → evaluate" in more.out
    assert "points at once" in more.out
    done = undisturbed[0]  # each goal is a column by its path, and the front is over the goals
    assert "prune.nonzero_ratio" in done.out
    assert "on the Pareto front of prune.nonzero (max.), prune.nonzero_ratio (min.)" in done.out
    (row,) = (line for line in done.out.splitlines() if line.startswith("│ lm_head=0.3"))
    (nonzero,) = (r["nonzero"] for r in results["lm_head=0.3"] if r["name"] == "prune")
    assert f"{nonzero:.4g}" in [cell.strip() for cell in row.split("│")]


def test_a_failing_point_stops_no_other_and_alone_runs_again(recipe, run) -> None:
    """Exit code 1, the error in its folder and in the table."""
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


@pytest.fixture
def grid(undisturbed, tmp_path, monkeypatch) -> tuple[Grid, SweepFolder]:
    """The finished sweep, planned again, and a copy of its folder."""
    where = undisturbed[0].cwd
    monkeypatch.chdir(where)
    written = shutil.ignore_patterns(".sweep.html.*")  # the page of another worker's command
    shutil.copytree(
        sweep_folder(where / "outputs"), tmp_path / "copy", symlinks=True, ignore=written
    )
    return plan_grid("mine.yaml", SWEEP[1:], reachable=True), SweepFolder(tmp_path / "copy")


def states(grid: Grid, folder: SweepFolder) -> list[str]:
    return [point.state for point in read_sweep(grid, folder).points]


def test_a_result_of_another_plan_never_passes_for_one_of_this(grid) -> None:
    """Regression: where the command was killed before a point's turn, and given again."""
    planned, folder = grid
    assert prepare_missing(planned, folder) == []
    before = folder.read()["points"]
    folder.update(points={name: {**point, "planned": "rows"} for name, point in before.items()})
    assert prepare_missing(planned, folder) == planned.points
    assert states(planned, folder) == ["waiting"] * 3
    assert prepare_missing(planned, folder) == planned.points


def test_an_old_failure_is_not_told_again(grid) -> None:
    """Regression: a point that had failed was told as failed before it ran again."""
    planned, folder = grid
    name = planned.points[1].name
    outcome = folder.path / name / "point.json"
    outcome.write_text(json.dumps({"error": "no memory", "seconds": 1.0}))
    told = Console(file=io.StringIO(), width=200)
    assert prepare_missing(planned, folder) == [planned.points[1]]
    with live_page(planned, folder, told, here=False):
        assert states(planned, folder) == ["done", "waiting", "done"]
        assert told.file.getvalue() == ""
        outcome.write_text(json.dumps({"error": None, "seconds": 2.0}))
    assert told.file.getvalue().startswith(f"{name}: done in 2.0 s")


def test_half_written_files_are_read_as_what_is_whole(grid) -> None:
    """Regression: half a line of events, of a killed process, ended the sweep with a traceback."""
    planned, folder = grid
    first, second, third = (folder.path / point.name for point in planned.points)
    for left in (first, second):
        (left / "point.json").unlink()
    with (first / "events.jsonl").open("ab") as stream:
        stream.write(b'{"event": "stage_started", "name": "\xc3')
    (second / "events.jsonl").write_text("")
    (third / "point.json").write_bytes(b'{"error": "\xc3')
    assert [p.stage for p in read_sweep(planned, folder).points] == ["evaluate", "", "evaluate"]
    assert states(planned, folder) == ["running"] * 3


def test_a_page_that_cannot_be_written_does_not_end_the_sweep(grid, capsys) -> None:
    """It is told once; the other file is written, and the points go on."""
    planned, folder = grid
    (folder.path / "sweep.html").unlink()
    (folder.path / "sweep.html").mkdir()
    (folder.path / "sweep.csv").unlink()
    with live_page(planned, folder, Console(file=io.StringIO()), here=True):
        (folder.path / POINTS[0] / "point.json").unlink()
    told = capsys.readouterr().err
    assert told.count("cannot write") == 1
    assert "sweep.html" in told
    assert len((folder.path / "sweep.csv").read_text().splitlines()) == 4


def test_two_that_ask_for_the_same_at_once_share_a_folder(tmp_path) -> None:
    """Regression: the same command in two terminals made two folders, and neither knew."""
    start = threading.Barrier(8)

    def ask(number: int) -> Path:
        start.wait()
        return SweepFolder.open(tmp_path, "mine", [number % 2]).path

    with ThreadPoolExecutor(8) as threads:
        paths = list(threads.map(ask, range(8)))
    assert len(set(paths)) == 2
    assert all(path == paths[number % 2] for number, path in enumerate(paths))


def test_a_recipe_that_is_edited_while_its_sweep_runs(recipe, tmp_path, monkeypatch) -> None:
    """Regression: points that had not begun ran with what the file said by then."""
    monkeypatch.chdir(tmp_path)
    path = recipe()
    planned = plan_grid(str(path), ["seed=1,2"], reachable=True)
    path.write_text(path.read_text().replace("lm_head: 0.3", "lm_head: 0.4"))

    def launch(folder: Path) -> None:
        how: Any = {"quiet": True, "digests": planned.digests}
        with open_launcher(str(path), ["seed=0"], [], folder, planned.base, **how) as launcher:
            launcher.run(planned.points)

    launch(tmp_path / "sweep")
    for point in planned.points:
        outcome = SweepFolder(tmp_path / "sweep").record(point.name).outcome
        assert outcome is not None and "the recipe has changed" in outcome["error"]
    (tmp_path / "other" / "seed=2" / "point.json").mkdir(parents=True)
    with pytest.raises(StageError, match=r"seed=2: .*point\.json"):
        launch(tmp_path / "other")


def test_each_point_tells_of_its_own_files(recipe, run) -> None:
    """Regression: a point was checked and described by the files of the first one, so that a stage
    in another's file was unknown when it ran, and `recipe_files` named the wrong file.
    """
    path = recipe(("[load, finetune, prune, recover, evaluate]", "[load]"))
    group = path.parent / "variant"
    group.mkdir()
    (group / "one.yaml").write_text("# @package _global_\nseed: 1\n")
    later = "# @package _global_\nstages: {later: {stage: finetune}}\n"
    (group / "two.yaml").write_text(later)
    token = "hf_" + "a" * 30
    done = run("run", path, "-q", "-m", "+variant=one,two", f"description={token}")
    assert done.code == 0, done.err
    folder = sweep_folder(path.parent / "outputs")
    for name in ("one", "two"):
        point = folder / f"variant={name}"
        files = json.loads((point / "environment.json").read_text())["recipe_files"]
        assert str(group / f"{name}.yaml") in files
        overrides = json.loads((point / "point.json").read_text())["overrides"]
        assert overrides == [f"+variant={name}", "description=<redacted>"]
    assert done.out.count("parameters") == 1  # `-q` prints the final table alone


def test_a_sweep_killed_again_and_again_ends_with_the_same_table(undisturbed, tmp_path) -> None:
    """SIGKILL to the whole session, then the same command: in the shared part, in a point's own,
    and between two points.
    """
    (tmp_path / "mine.yaml").write_text(RECIPE)
    for event, times in (("stage_started", 2), ("stage_ended", 4), ("stage_started", 8)):
        process = start("run", "mine.yaml", *SWEEP, cwd=tmp_path)
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
    assert list_results(sweep_folder(tmp_path / "outputs")) == undisturbed[1]


def test_a_recipe_can_say_what_is_swept(recipe) -> None:
    """`hydra.sweeper.params`, as in any Hydra program; the command line has the last word."""
    params = f"hydra: {{sweeper: {{params: {{{HEAD}: '0.1,0.2'}}}}}}\nstages:"
    path = str(recipe(("stages:", params)))
    two = plan_grid(path, [], reachable=True)
    assert [point.name for point in two.points] == ["lm_head=0.1", "lm_head=0.2"]
    assert len(plan_grid(path, [f"{HEAD}=0.1,0.2,0.4"], reachable=True).points) == 3
    other = plan_grid(path, [f"{HEAD}=0.2,0.1"], reachable=True)
    assert identify_sweep(other.composed) == identify_sweep(two.composed)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{sweeper: {params: {seed: [1, 2]}}}", "mine.yaml:9: hydra.sweeper.params.seed: expected"),
        ("{sweeper: {params: {stages: {prune: {lm_head: '1,2'}}}}}", "such as '1,2'"),
        ("{sweeper: {params: {description: '${oc.env:HOME}'}}}", "to plain values"),
        ("{sweeper: {parms: {seed: '1,2'}}}", "mine.yaml:9: hydra.sweeper.parms: no such setting"),
        ("{sweepr: {params: {seed: '1,2'}}}", "it may set launcher, mode, sweeper"),
        ("", "a recipe runs nothing and reads no environment"),
    ],
)
def test_what_is_wrong_with_a_recipe_s_values_is_told(recipe, capsys, section, message) -> None:
    """Exit code 2 and the line; no value of the environment is read on the way."""
    defaults = ("/model: tiny", "/model: '${oc.env:HOME}'")  # resolved before they were refused
    swept = ("\nstages:", f"\nhydra: {section}\nstages:")
    path = recipe(swept if section else defaults)
    assert main(["plan", str(path), "-m"]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert os.environ["HOME"] not in told.replace(str(path), "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hydra/launcher=proceses"], "no launcher 'proceses'; did you mean 'processes'?"),
        (["hydra/launcher=processes", "hydra.launcher.n_job=3"], "did you mean 'n_jobs'?"),
        (["hydra.launcher.n_jobs=3"], "choose one: hydra/launcher=processes"),
        (["hydra.laucher.n_jobs=3"], "did you mean 'launcher'?"),
        (["hydra.launcher=processes"], "is chosen with a slash: hydra/launcher=processes"),
        (["hydra/launcer=processes"], "did you mean 'hydra/launcher'?"),
        (["+hydra.sweeper.params.seed='1,2'"], "here give the key itself, as in seed=1,2"),
        ([f"{HEAD}=0.2,1.5"], "got 1.5"),
        ([f"{HEAD}=0.1,,0.3"], f"cannot read the override '{HEAD}=0.1,,0.3'"),
        (["outputs=a,b"], "points share one store"),
        (["objective.maximize=evaluate.rougeLsumm"], "did you mean 'rougeLsum'?"),
        (["objective.minimize=loss"], "is not <stage>.<metric>"),
        (["objective={}"], "expected something to maximize or to minimize"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_before_it_runs(
    recipe, tmp_path, monkeypatch, capsys, arguments, message
) -> None:
    """Exit code 2, one line that is enough to mend it, and nothing was made."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(recipe()), "-m", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "outputs").exists()
