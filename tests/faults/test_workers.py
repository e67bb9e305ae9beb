"""Processes of a run are killed one by one: a launcher, what reports need, a machine, a sweep.

A worker is killed in `tests.engine.test_processes`, what started it in `tests.runs.test_run`.
"""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.engine.test_processes import machine_configs
from tests.faults import long_form
from tests.faults.kills import INTERRUPTED, Place, check_nobody_left, check_tidy, wait_for
from tests.faults.stored import artifacts, check_store
from tests.harness.command import Process, compressor
from tests.harness.once import run_once
from tests.harness.recipes import RECIPE
from tests.harness.runs import list_processes, wait_for_step
from tests.runs.sweeps.test_sweep import SWEEP, list_made, list_results, sweep_folder

pytestmark = long_form
LONGER = "stages.finetune.epochs=8"


def find_process(place: Place, module: str) -> psutil.Process | None:
    """The first that runs a module, of a command that was started `fresh`, which forks none."""
    processes = list_processes(place.folder)
    return next((process for process in processes if module in process.cmdline()), None)


def kill_process(place: Place, run: Process, module: str) -> None:
    assert wait_for(lambda: find_process(place, module) is not None, run)
    process = find_process(place, module)
    assert process is not None
    process.kill()


@pytest.mark.parametrize(
    ("kind", "module", "expected"),
    [
        ("benchmark", "timing", "the timed process ended with code -9"),
        ("export", "parity", "the exported model does not run in a fresh process"),
    ],
)
def test_a_process_that_a_report_needs_is_killed(kind, module, expected, tmp_path) -> None:
    """One error that says which, nothing left behind, and the next run ends well."""
    place = Place(tmp_path)
    run = place.start_stage(kind, fresh=True)
    kill_process(place, run, f"compressor.evaluation.{module}")
    assert run.wait(60) == 1
    assert expected in run.err and run.err.count("error: ") == 1, run.err
    place.finish_stage(kind)
    check_tidy(place)


def train_on_two_machines(folder: Path) -> list[tuple[Place, Process]]:
    """The first machine's and the other's run, both started; each has a folder of its own."""
    runs, pipeline = [], "pipeline=[load,finetune]"
    for name, config in zip(("first", "other"), machine_configs(folder), strict=True):
        place, absolute = Place(folder / name), config.replace("=", f"={folder}/")
        command = ("run", "summaries.yaml", pipeline, absolute, f"outputs={folder}/outputs", LONGER)
        runs.append((place, place.start(*command)))
    return runs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_of_two_is_killed(victim: int, tmp_path: Path) -> None:
    """While they train: the other one ends with one error, soon, and all that it started ends."""
    runs = train_on_two_machines(tmp_path)
    checkpoints = "outputs/store/partial/*.resume/step-*"
    assert wait_for(lambda: any(tmp_path.glob(checkpoints)), runs[0][1])
    assert runs[victim][1].send(signal.SIGKILL)
    assert runs[victim][1].wait() == -signal.SIGKILL
    other = runs[1 - victim][1]
    assert other.wait(60) == 1, other.err
    assert other.err.count("error: ") == 1 and "Traceback" not in other.err, other.err
    ended = "machine 1 has ended" if victim else "machine 0 has ended without all"
    assert ended in other.err, other.err
    for place, _ in runs:
        check_nobody_left(place)
    check_store(tmp_path / "outputs")


def test_two_processes_whose_parent_is_killed_end_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the command alone: its workers end too; the next run has the same weights."""
    two = ("launch.num_processes=2", LONGER)
    expected, place = Place(tmp_path / "expected"), Place(tmp_path / "killed")
    expected.finish_stage("finetune", *two)
    run = place.start_stage("finetune", *two)
    wait_for_step(run, 3)
    run.send(signal.SIGKILL)
    run.wait()
    assert "goes on from step" in place.finish_stage("finetune", *two).out
    check_tidy(place)
    assert artifacts(place.outputs) == artifacts(expected.outputs)


def test_two_points_at_once_give_the_same_bits_and_run_nothing_twice(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """By joblib's launcher: one point makes what both need, the other waits for it and uses it."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    alone = run_once(tmp_path_factory, "sweep", RECIPE, *SWEEP)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", *SWEEP, "hydra/launcher=processes", cwd=tmp_path)
    assert done.code == 0, done.err
    folder = sweep_folder(tmp_path / "outputs")
    assert list_results(folder) == list_results(sweep_folder(alone.cwd / "outputs"))
    assert len(list_made(folder)) == len(set(list_made(folder))) == 11
    assert "lm_head=0.3: done" in done.out
    assert (folder / "lm_head=0.3" / "log.txt").read_text().count("recover") >= 1


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_in_several_processes_is_killed(sent, tmp_path: Path) -> None:
    """By joblib's launcher: its workers end too, the points' reports say interrupted where the
    command could hear of it, and the same command goes on to its end.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    place = Place(tmp_path)
    rate, rates = "stages.finetune.learning_rate", ("0.001", "0.002")
    pipeline, values = "pipeline=[load,finetune]", f"{rate}={','.join(rates)}"
    longest = "stages.finetune.epochs=14"  # the first still trains when the second begins to
    command = ("run", "summaries.yaml", "-m", values, pipeline, longest, "hydra/launcher=processes")
    sweep = place.start(*command)
    checkpoints = "store/partial/*.resume/step-*"
    assert wait_for(lambda: len(list(place.outputs.glob(checkpoints))) > 1, sweep)
    assert sweep.send(sent)
    if sent == signal.SIGKILL:
        assert sweep.wait(30) == -sent
    else:
        assert sweep.wait(30) == 1 and sweep.err.splitlines()[-1] == INTERRUPTED, sweep.err
        pages = list(place.folder.glob("outputs/sweeps/summaries/*/learning_rate=*/report.html"))
        assert len(pages) == len(rates)
        assert all(": interrupted</title>" in page.read_text("utf-8") for page in pages)
    check_nobody_left(place)
    again = place.start(*command)
    assert again.wait(200) == 0, again.err
    check_tidy(place)
    assert len(list(place.store.folder.glob("*/model.safetensors"))) == 1 + len(rates)
