"""Processes of a run that are killed one by one: ranks, launchers, their parent, other machines."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from compressor.core.processes import environment
from compressor.engine.cluster import POLL_SECONDS
from compressor.engine.store.store import MACHINE_LOCKS
from tests.engine.test_processes import machine_configs
from tests.faults import LONG
from tests.faults.conftest import Tell
from tests.faults.kills import (
    INTERRUPTED,
    SUMMARIES,
    Place,
    Undisturbed,
    after_the_end,
    every_artifact_is_whole,
    no_lock_is_held,
    nobody_is_left,
    wait_for,
)
from tests.faults.warm import Started, Warm, shared

LONGER = ("stages.finetune.epochs=25",)
TWO = ("launch.num_processes=2", *LONGER)
long_form = pytest.mark.skipif(not LONG, reason="takes minutes: FAULTS=1, as make test-faults has")


@pytest.fixture(scope="module")
def warm() -> Warm:
    return shared()


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(Place(tmp_path_factory.mktemp("undisturbed"), warm, TWO))


def steps(place: Place) -> list[Path]:
    return list(place.folder.glob("outputs/store/partial/*.resume/step-*"))


def running(place: Place, module: str) -> list[psutil.Process]:
    """Those that run a module, of the place's processes; some end while they are looked at."""
    found = []
    for process in place.processes():
        with suppress(psutil.Error):
            if module in process.cmdline():
                found.append(process)
    return found


def the_launcher(place: Place) -> psutil.Process:
    return running(place, "compressor.engine.launcher")[0]


def a_rank(number: int) -> Callable[[Place], psutil.Process]:
    def found(place: Place) -> psutil.Process:
        launchers = running(place, "compressor.engine.launcher")
        workers = [p for p in running(place, "compressor.engine.worker") if p not in launchers]
        return next(p for p in workers if p.environ()["RANK"] == str(number))

    return found


@long_form
@pytest.mark.parametrize(
    ("which", "find"),
    [
        ("rank 0", a_rank(0)),
        ("rank 1", a_rank(1)),
        ("the launcher", the_launcher),
        ("their parent", None),
    ],
    ids=["rank 0", "rank 1", "launcher", "parent"],
)  # fmt: skip
def test_one_of_a_training_s_processes_is_killed(
    which: str,
    find: Callable[[Place], psutil.Process] | None,
    undisturbed: Undisturbed,
    tmp_path: Path,
    tell: Tell,
) -> None:
    """The others end at once, the run tells of it in one error, and the next one goes on.

    Without their launcher the workers used to train to the end, for nobody.
    """
    place = undisturbed.without("finetune", tmp_path)
    started = place.start("finetune")
    assert wait_for(lambda: len(steps(place)) > 0, started, 90)
    time.sleep(random.Random(which).uniform(0, 0.5))
    os.kill(find(place).pid if find else started.pid, signal.SIGKILL)
    code = started.wait(30)
    assert steps(place), "it had come to its end"
    if find is None:
        assert code == -signal.SIGKILL
    else:
        assert code == 1 and started.err.count("error: ") == 1, started.err
        assert "stage 'finetune': a worker process was killed by signal 9" in started.err
        assert place.events()[-1]["state"] == "failed"
    nobody_is_left(place)
    last = place.start("finetune")
    assert last.wait(120) == 0, last.err
    assert "goes on from step" in last.out
    after_the_end(place, undisturbed, "finetune")
    tell("workers", f"SIGKILL to {which}, of 2 that train", "exit 1, then the same weights")


@long_form
def test_a_rank_that_is_stopped_is_waited_for(
    undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """SIGSTOP for 3 s, then SIGCONT: nobody ends, and the weights are the same."""
    place = undisturbed.without("finetune", tmp_path)
    started = place.start("finetune")
    assert wait_for(lambda: len(steps(place)) > 0, started, 90)
    rank = a_rank(1)(place)
    rank.suspend()
    time.sleep(1.0)
    there = steps(place)
    time.sleep(2.0)
    assert steps(place) == there and rank.status() == psutil.STATUS_STOPPED
    rank.resume()
    assert started.wait(120) == 0, started.err
    after_the_end(place, undisturbed, "finetune")
    tell("workers", "SIGSTOP of a rank for 3 s, then SIGCONT", "the same weights")


@long_form
@pytest.mark.parametrize(
    ("kind", "module", "told"),
    [("benchmark", "compressor.evaluation.timing", "the timed process ended with code -9"),
     ("export", "compressor.evaluation.parity",
      "the exported model does not run in a fresh process")],
)  # fmt: skip
def test_a_process_that_a_report_needs_is_killed(
    kind: str, module: str, told: str, warm: Warm, tmp_path: Path, tell: Tell
) -> None:
    """One error that says which, nothing left behind, and the next run ends well."""
    place = Place(tmp_path, warm)
    started = place.start(kind)
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = running(place, module)
        return bool(found)

    assert wait_for(there, started)
    found[0].kill()
    assert started.wait(60) == 1
    assert told in started.err and started.err.count("error: ") == 1, started.err
    nobody_is_left(place)
    last = place.start(kind)
    assert last.wait() == 0, last.err
    every_artifact_is_whole(place.store)
    assert list((place.store.folder / "partial").iterdir()) == []
    tell(
        "workers", f"SIGKILL to the `{module}` of `{kind}`", "exit 1: which, then a whole artifact"
    )


def test_what_was_started_ends_with_who_started_it(tmp_path: Path) -> None:
    """By SIGKILL, which nobody can pass on: a worker ends with its parent, and with the launcher
    between them. It used to work on without its launcher, of which the parent waited for it.
    """
    first = "from compressor.core.processes import end_with_parent; import time"
    works = f"{first}; end_with_parent(); print('works', flush=True); time.sleep(60)"
    launches = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {works!r}])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", launches], env=environment(), stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert launcher.stdout is not None and launcher.stdout.readline() == b"works\n"
    launcher.kill()
    began = time.monotonic()
    assert launcher.stdout.read() == b""  # until the worker, too, has let go of it
    assert time.monotonic() - began < 5
    launcher.wait()
    launcher.stdout.close()


def train_on_two_machines(folder: Path, warm: Warm) -> tuple[Place, list[Started]]:
    """The leader's and the other machine's run, both started; each has a folder of its own."""
    places = [Place(folder / name, warm, LONGER) for name in ("leader", "other")]
    text = SUMMARIES.replace("pipeline: [load]", "pipeline: [load, finetune]")
    configs = machine_configs(folder)
    runs = []
    for place, config in zip(places, configs, strict=True):
        (place.folder / "both.yaml").write_text(text)
        given = config.replace("=", f"={folder}/")
        outputs = f"outputs={folder / 'leader' / 'outputs'}"
        runs.append(place.begin("run", "both.yaml", given, outputs, *LONGER))
    return places[0], runs


@long_form
@pytest.mark.parametrize("moment", ["before they meet", "while they train"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_machine_of_two_is_killed(
    victim: int, moment: str, warm: Warm, tmp_path: Path, tell: Tell
) -> None:
    """The other one ends with one error, soon, and so does all that it started.

    The first machine used to wait for one that had been killed before their processes met.
    """
    place, runs = train_on_two_machines(tmp_path, warm)

    def other_is_there() -> bool:
        locks = (place.store.folder / "locks").glob(f"{MACHINE_LOCKS}*.1.lock")
        return any(place.store.is_locked(lock.stem) for lock in locks)

    assert wait_for(other_is_there, runs[0])  # before that the first one waits for it, as it should
    tasks = place.store.folder / "partial"
    assert wait_for(lambda: any(tasks.glob("*.task/task.json")), runs[0])
    time.sleep(3 * POLL_SECONDS)  # until each has seen the other; their processes meet later
    if moment == "while they train":
        assert wait_for(lambda: len(steps(place)) > 0, runs[0], 90)
    assert runs[victim].send(signal.SIGKILL)
    assert runs[victim].wait() == -signal.SIGKILL
    other = runs[1 - victim]
    assert other.wait(60) == 1, other.err
    assert other.err.count("error: ") == 1 and "Traceback" not in other.err, other.err
    whose = "machine 1 has ended" if victim else "machine 0 has ended without all"
    assert whose in other.err, other.err
    for folder in (tmp_path / "leader", tmp_path / "other"):
        nobody_is_left(Place(folder, warm))
    no_lock_is_held(place.store)
    every_artifact_is_whole(place.store)
    tell(
        "workers", f"SIGKILL to machine {victim} of 2, {moment}", "exit 1 on the other: which ended"
    )


@long_form
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_in_several_processes_is_killed(
    sent: signal.Signals, warm: Warm, tmp_path: Path, tell: Tell
) -> None:
    """By joblib's launcher: its workers end too, the points' reports say interrupted where the
    command could hear of it, and the same command goes on to the artifacts of single runs.

    Points had no report after SIGTERM, and went on, for nobody, after SIGKILL.
    """
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    place = Place(tmp_path / "swept", warm)
    rates = ("0.001", "0.002")
    rate = "stages.finetune.learning_rate"
    more = ("pipeline=[load,finetune]", *LONGER)
    command = ("run", "summaries.yaml", "-m", f"{rate}={','.join(rates)}", *more,
               "hydra/launcher=processes")  # fmt: skip
    started = place.begin(*command)
    assert wait_for(lambda: len(steps(place)) > 1, started, 120)
    assert started.send(sent)
    started.wait(30)
    if sent == signal.SIGKILL:
        assert started.code == -sent
    else:
        assert started.code == 1 and started.err.splitlines()[-1] == INTERRUPTED, started.err
        pages = list(place.folder.glob("outputs/sweeps/summaries/*/learning_rate=*/report.html"))
        assert len(pages) == len(rates)
        for page in pages:
            assert ": interrupted</title>" in page.read_text("utf-8")
    nobody_is_left(place)
    no_lock_is_held(place.store)
    last = place.begin(*command)
    assert last.wait(200) == 0, last.err
    assert list((place.store.folder / "partial").iterdir()) == []
    every_artifact_is_whole(place.store)
    alone = Place(tmp_path / "alone", warm)
    for each in rates:
        single = alone.begin("run", "summaries.yaml", f"{rate}={each}", *more)
        assert single.wait(200) == 0, single.err
    mine, theirs = ({p.name for p in each.store.folder.iterdir()} for each in (place, alone))
    assert mine == theirs
    keys = [name for name in theirs if len(name) == 64]
    assert len(keys) == 1 + len(rates)
    for key in keys:
        assert place.store.manifest(key)["files"] == alone.store.manifest(key)["files"]
    tell("workers", f"{sent.name} to a sweep of 2 points at once", "goes on, the same weights")
