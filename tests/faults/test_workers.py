"""Processes of a run are killed one by one: ranks, launchers, their parent, other machines."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.test_processes import machine_configs
from tests.faults import LONG
from tests.faults.conftest import Tell
from tests.faults.kills import (
    INTERRUPTED,
    Place,
    Undisturbed,
    check_finished,
    check_nobody_left,
    check_tidy,
    wait_for,
)
from tests.faults.stored import check_store
from tests.harness.command import Process

pytestmark = pytest.mark.skipif(not LONG, reason="takes minutes: make test-faults")
LONGER = "stages.finetune.epochs=8"


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Of trainings in two processes."""
    return Undisturbed(Place(tmp_path_factory.mktemp("two"), ("launch.num_processes=2", LONGER)))


def find_worker(place: Place) -> int:
    """The id of a process that trains, which no launcher is."""
    launchers = place.processes("compressor.engine.launcher")
    return next(p.pid for p in place.processes("compressor.engine.worker") if p not in launchers)


VICTIMS: dict[str, Callable[[Place, Process], int]] = {
    "a worker": lambda place, run: find_worker(place),
    "the launcher": lambda place, run: place.processes("compressor.engine.launcher")[0].pid,
    "their parent": lambda place, run: run.pid,
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_one_of_a_trainings_processes_is_killed(
    victim: str, together: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """The others end at once, the run tells of it in one error, and the next one goes on."""
    place = together.copy_without("finetune", tmp_path)
    run = place.start_stage("finetune", fresh=True)  # whose own processes are not forked either
    assert wait_for(lambda: len(place.checkpoints()) > 0, run, 90)
    os.kill(VICTIMS[victim](place, run), signal.SIGKILL)
    code = run.wait(30)
    assert place.checkpoints(), "it had come to its end"
    if victim == "their parent":
        assert code == -signal.SIGKILL
    else:
        assert code == 1 and run.err.count("error: ") == 1, run.err
        assert "stage 'finetune': a worker process was killed by signal 9" in run.err
        assert place.events()[-1]["state"] == "failed"
    check_nobody_left(place)
    assert "goes on from step" in place.finish_stage("finetune").out
    check_finished(place, together, "finetune")
    tell("workers", f"SIGKILL to {victim}, of 2 that train", "exit 1, then the same weights")


@pytest.mark.parametrize(
    ("kind", "module", "expected"),
    [
        ("benchmark", "compressor.evaluation.timing", "the timed process ended with code -9"),
        (
            "export",
            "compressor.evaluation.parity",
            "the exported model does not run in a fresh process",
        ),
    ],
)
def test_a_process_that_a_report_needs_is_killed(
    kind: str, module: str, expected: str, tmp_path: Path, tell: Tell
) -> None:
    """One error that says which, nothing left behind, and the next run ends well."""
    place = Place(tmp_path)
    run = place.start_stage(kind, fresh=True)
    module = f"compressor.evaluation.{module}"
    assert wait_for(lambda: len(place.processes(module)) > 0, run)
    place.processes(module)[0].kill()
    assert run.wait(60) == 1
    assert expected in run.err and run.err.count("error: ") == 1, run.err
    place.finish_stage(kind)
    check_tidy(place)
    tell("workers", f"SIGKILL to the {module} of {kind}", "exit 1, then a whole artifact")


def train_on_two_machines(folder: Path) -> list[tuple[Place, Process]]:
    """The first machine's and the other's run, both started; each has a folder of its own."""
    runs, pipeline = [], "pipeline=[load,finetune]"
    for name, config in zip(("first", "other"), machine_configs(folder), strict=True):
        place, absolute = Place(folder / name), config.replace("=", f"={folder}/")
        command = ("run", "summaries.yaml", pipeline, absolute, f"outputs={folder}/outputs", LONGER)
        runs.append((place, place.start(*command)))
    return runs


@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_of_two_is_killed(victim: int, tmp_path: Path, tell: Tell) -> None:
    """While they train: the other one ends with one error, soon, and all that it started ends."""
    runs = train_on_two_machines(tmp_path)
    checkpoints = tmp_path / "outputs" / "store" / "partial"
    assert wait_for(lambda: any(checkpoints.glob("*.resume/step-*")), runs[0][1], 120)
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
    tell("workers", f"SIGKILL to machine {victim} of 2", "exit 1 on the other")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_in_several_processes_is_killed(
    sent: signal.Signals, tmp_path: Path, tell: Tell
) -> None:
    """By joblib's launcher: its workers end too, the points' reports say interrupted where the
    command could hear of it, and the same command goes on to its end.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    place = Place(tmp_path)
    rate, rates = "stages.finetune.learning_rate", ("0.001", "0.002")
    pipeline, values = "pipeline=[load,finetune]", f"{rate}={','.join(rates)}"
    command = ("run", "summaries.yaml", "-m", values, pipeline, LONGER, "hydra/launcher=processes")
    sweep = place.start(*command)
    assert wait_for(lambda: len(place.checkpoints()) > 1, sweep, 120)
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
    tell("workers", f"{sent.name} to a sweep of 2 points at once", "goes on to its end")
