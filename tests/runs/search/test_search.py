"""A search: what it draws, that it goes on, and which trials it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState

from compressor.core.errors import EarlyStop, StageError
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from compressor.recipe.objective import Goal, Search, StopEarly
from compressor.runs.search.early_stopping import EpochWatch
from compressor.runs.search.plan import plan_search
from compressor.runs.search.space import read_space
from compressor.runs.search.study import Study, open_journal
from tests.faults import long_form
from tests.harness.command import start
from tests.runs.search.conftest import HEAD, with_search

# The study

GOALS = (Goal("x.a", "minimize"), Goal("x.b", "minimize"))


def draw(
    journal: Path, search: Search, goals: Sequence[Goal] = GOALS, *, until: int = 99
) -> list[dict[str, Any]]:
    """Go on with a study of two numbers to its end, or leave trial `until` without a result."""
    study = Study(journal, search, goals, read_space(["a=interval(0,1)", "b=int(interval(0,9))"]))
    while trials := study.draw():
        for trial in trials:
            if trial.number >= until:
                return [dict(trial.values) for trial in study.trials]
            study.tell(trial.number, TrialState.COMPLETE, score(trial.values)[: len(goals)])
    return [dict(trial.values) for trial in study.trials]


def score(values: Mapping[str, Any]) -> list[float]:
    return [(values["a"] - 0.3) ** 2 + (values["b"] - 4) ** 2 / 81, -values["a"]]


@pytest.mark.parametrize(
    ("sampler", "goals"),
    [
        *(("tpe", GOALS[:1]), ("tpe", GOALS), ("nsga2", GOALS), ("random", GOALS[:1])),
        pytest.param("gp", GOALS, marks=long_form),
    ],
)
def test_a_study_draws_after_a_restart_what_it_would_have_drawn(tmp_path, sampler, goals) -> None:
    """Opened again after every few trials, one of them running, a study draws the very same trials,
    and not the same ones over and over; with another seed, others.
    """
    search = Search(trials=7, sampler=sampler, random_trials=3)
    whole = draw(tmp_path / "whole", search, goals)
    assert len({json.dumps(values) for values in whole}) >= 6
    for stop in (1, 4, 5):
        draw(tmp_path / "parts", search, goals, until=stop)
    assert draw(tmp_path / "parts", search, goals) == whole
    other = Search(trials=7, sampler=sampler, random_trials=3, seed=1)
    assert draw(tmp_path / "other", other, goals, until=0)[0] != whole[0]


def test_a_trial_killed_while_it_was_drawn_is_drawn_again(tmp_path: Path) -> None:
    """A trial without all of its values does not count, and half of a line is no damage."""
    search = Search(trials=4, sampler="random")
    whole = draw(tmp_path / "whole", search)
    draw(tmp_path / "killed", search, until=2)
    lines = (tmp_path / "killed").read_text().splitlines(keepends=True)
    last = max(index for index, line in enumerate(lines) if '"param_name":"b"' in line)
    (tmp_path / "killed").write_text("".join(lines[:last]) + lines[last][:20])
    assert draw(tmp_path / "killed", search) == whole


def test_a_killed_process_does_not_hold_the_journal(tmp_path: Path) -> None:
    """The lock of a process that was killed while it wrote is free at once: Optuna's own would
    block for 30 seconds. The journal is text.
    """
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from compressor.runs.search.study import SystemLock\n"
        "SystemLock(Path(sys.argv[1])).acquire(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    journal = tmp_path / "search.jsonl"
    killed = subprocess.run([sys.executable, "-c", code, str(journal)])
    assert killed.returncode == -signal.SIGKILL
    started = time.monotonic()
    draw(journal, Search(trials=2))
    assert time.monotonic() - started < 10
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    journal.write_text("{}\n" + journal.read_text())
    with pytest.raises(StageError, match="is damaged"):
        open_journal(journal)


# Stopping early


def stop_after(journal: Path, point: str, losses: Sequence[float], *, cached: bool = False) -> int:
    """Let a point report losses; return after how many it was stopped, or 0."""
    watch = EpochWatch(journal, StopEarly(after_trials=2, after_epochs=2), point)
    watch("stage_started", {"name": "finetune"})
    for epoch, loss in enumerate([] if cached else losses, 1):
        try:
            watch("epoch", {"epoch": epoch, "validation_loss": loss})
        except EarlyStop:
            return epoch
    try:
        watch("stage_ended", {"cached": cached, "validation_losses": losses})
    except EarlyStop:
        return len(losses)
    return 0


def test_a_trial_is_stopped_where_the_median_says(tmp_path: Path) -> None:
    """By hand: no trial is stopped before two have ended and before its second epoch; then one is
    whose best loss is above the median of that epoch, whether it trains or is in the store.
    """
    journal = tmp_path / "journal"
    assert stop_after(journal, "a", [5.0, 4.0, 3.0]) == 0
    assert stop_after(journal, "b", [9.0, 8.0, 7.0]) == 0  # one trial before it: too few
    assert stop_after(journal, "c", [9.9, 6.1, 1.0]) == 2  # the median of 4 and 8 is 6
    assert stop_after(journal, "d", [5.9, 9.0, 4.0]) == 0  # its best is 5.9, then 4
    assert stop_after(journal, "e", [9.0, 8.0, 7.0], cached=True) > 0
    assert stop_after(journal, "f", [float("nan"), float("nan")]) == 2
    assert stop_after(journal, "c", [0.1]) == 1  # run again after a kill: it was stopped before
    assert (
        stop_after(journal, "a", [9.0, 9.0, 9.0]) == 0
    )  # and what had ended counts once, as it was
    resumed = EpochWatch(journal, StopEarly(after_trials=2, after_epochs=2), "g")
    resumed("stage_started", {"name": "finetune"})
    resumed("resumed", {"validation_losses": [9.0]})  # told before it was killed
    with pytest.raises(EarlyStop, match=r"after epoch 2 of 'finetune'.* 8.5, is above the median"):
        resumed("epoch", {"epoch": 2, "validation_loss": 8.5})
    study = optuna.load_study(
        study_name="validation loss of finetune", storage=open_journal(journal)
    )
    ended = study.get_trials(states=(TrialState.COMPLETE,))
    assert [trial.user_attrs["point"] for trial in ended] == ["a", "b", "d"]


def train_search(write: Callable[..., Path], trials: int, rates: str, epochs: int) -> Path:
    """The pico recipe's training alone, with a search over its learning rate."""
    text = f"""
objective: {{minimize: finetune.validation_loss}}
search: {{trials: {trials}, sampler: random, stop_early: {{after_trials: 1}}}}
hydra: {{sweeper: {{params: {{stages.finetune.learning_rate: "choice({rates})"}}}}}}
"""
    return with_search(
        write,
        text,
        ("[load, prune]", "[load, finetune]"),
        ("stages:\n", f"stages:\n  finetune: {{epochs: {epochs}}}\n"),
        ("  prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}\n", ""),
    )


def trials_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Name of each trial's folder → what it left at its end."""
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/point.json")}


def sweep_of(command: Any) -> Path:
    """The folder that a search said it is in."""
    line = next(line for line in command.out.splitlines() if line.startswith("sweep: "))
    folder: Path = command.cwd / line.removeprefix("sweep: ")
    return folder


def epochs(trial: Path) -> list[float]:
    """The validation losses that a trial's events tell."""
    events = [json.loads(line) for line in (trial / "events.jsonl").read_text().splitlines()]
    return [event["validation_loss"] for event in events if event["event"] == "epoch"]


def test_bad_trials_are_stopped_and_failing_ones_stop_no_other(recipe, run, tmp_path) -> None:
    """A learning rate that does nothing is stopped after one epoch of three; one that explodes
    fails, with its reason; the others end. Only the failure makes the exit code 1.
    """
    path = train_search(recipe, 4, "0.01,1e-7,1e30", epochs=3)
    done = run("run", path, "-m", "-q")
    folder = sweep_of(done)
    ended = trials_of(folder)
    assert len(ended) == 4 and done.code == 1, done.out + done.err
    assert {name.partition("=")[2] for name in ended} == {"0.01", "1e-07", "1e+30"}
    for name, outcome in ended.items():
        if name.endswith("=0.01"):
            assert outcome["error"] is None and outcome["pruned"] is None
        elif name.endswith("=1e-07"):
            assert "after epoch 1 of 'finetune'" in outcome["pruned"]
            assert len(epochs(folder / name)) == 1
        else:
            assert "learning rate 1e+30" in outcome["error"] and outcome["error"] in done.out
    about = json.loads((folder / "sweep.json").read_text())
    assert about["search"]["best"] == [name for name in sorted(ended) if name.endswith("=0.01")]
    page = (folder / "sweep.html").read_text()
    assert all(name in page for name in ended) and "stopped early" in page
    store = Store(tmp_path / "outputs" / "store")
    keys = {path.name for path in store.folder.iterdir() if len(path.name) == 64}
    assert len(keys) == 2  # load, and the one training that ended
    for lock in (store.folder / "locks").iterdir():
        FileLock(lock).acquire(timeout=0)  # raises where it is held
    again = run("run", path, "-m", "-q")
    assert again.code == 1 and "4 of 4 trials are done" in again.out
    assert trials_of(folder) == ended
    fewer = run("run", path, "-m", "-q", "search.trials=1")
    assert sweep_of(fewer) == folder  # how many trials is no part of what is searched


# Killed, and continued

PRUNED = f"""
objective: {{minimize: prune.nonzero_ratio}}
search: {{trials: 3, sampler: random}}
hydra: {{sweeper: {{params: {{{HEAD}: "interval(0.1,0.9)"}}}}}}
"""


def test_a_killed_search_goes_on_as_if_it_had_not_been_killed(
    recipe, run, tmp_path, monkeypatch
) -> None:
    """Killed in its second trial it runs that one again with the same values, and draws the rest as
    its study does. The objective is what the pruning counted.
    """
    monkeypatch.chdir(tmp_path)
    path = with_search(recipe, PRUNED)
    planned = plan_search(str(path), [], reachable=True)
    study = Study(tmp_path / "study", planned.search, planned.objective.goals, planned.space)
    expected = []
    while trials := study.draw():
        expected.append(list(planned.space.at(planned.space.write(trials[0].values))))
        study.tell(trials[0].number, TrialState.COMPLETE, [1.0])
    store = planned.store
    second = plan(compose(str(path), expected[1]), store).node("prune").key
    with store.lock(second, lambda: None):  # the second trial waits, and is killed there
        killed = start("run", path, "-m", "-q", cwd=tmp_path)
        deadline = time.monotonic() + 120
        events = "outputs/sweeps/mine/*/001,*/events.jsonl"
        while not any('"prune"' in path.read_text() for path in tmp_path.glob(events)):
            assert time.monotonic() < deadline and killed.poll() is None
            time.sleep(0.1)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
    (folder,) = (tmp_path / "outputs/sweeps/mine").iterdir()
    (first,) = trials_of(folder)
    before = (folder / first / "metrics.json").stat().st_mtime_ns
    resumed = run("run", path, "-m", "-q")
    assert resumed.code == 0, resumed.err
    assert sweep_of(resumed) == folder and "1 of 3 trials are done" in resumed.out
    outcomes = sorted(trials_of(folder).items())
    assert [outcome["overrides"] for _, outcome in outcomes] == expected
    assert (folder / first / "metrics.json").stat().st_mtime_ns == before
    records = {n: json.loads((folder / n / "metrics.json").read_text()) for n, _ in outcomes}
    ratio, best = min((record[-1]["nonzero_ratio"], name) for name, record in records.items())
    assert f"{best}  prune.nonzero_ratio {ratio:.6g}" in resumed.out


def test_trials_share_what_they_can_and_a_front_is_marked(recipe, run) -> None:
    """Two drawn at once: all trials share one `load`, those on the front are marked, and a trial
    without its number fails alone. (Points through joblib are those of a sweep.)
    """
    text = """
objective: {minimize: [prune.nonzero_ratio], maximize: prune.parameters}
search: {trials: 6, sampler: nsga2, random_trials: 4, at_once: 2}
"""
    path = with_search(
        recipe,
        text,
        ("[load, prune]", "[load, shrink, prune]"),
        ("stages:\n", "stages:\n  shrink: {}\n"),
    )
    overrides = (
        *(f"{HEAD}=range(0.1,0.9,0.2)", "stages.shrink.decoder_layers=choice(1,2)"),
        "skip=choice([],[prune])",
    )
    done = run("run", path, "-m", "-q", *overrides)
    folder = sweep_of(done)
    ended = trials_of(folder)
    failed = {name for name, outcome in ended.items() if outcome["error"] is not None}
    assert failed == {name for name in ended if "skip=_prune_" in name}
    assert len(ended) == 6 and 0 < len(failed) < 5 and done.code == 1, done.out + done.err
    values, made = {}, 0
    for name in ended:
        records = json.loads((folder / name / "metrics.json").read_text())
        made += sum(not record["cached"] for record in records if record["name"] == "load")
        if name not in failed:
            values[name] = (records[-1]["nonzero_ratio"], -records[-1]["parameters"])
    assert made == 1
    front = [
        name
        for name, mine in sorted(values.items())
        if not any(o[0] <= mine[0] and o[1] <= mine[1] and o != mine for o in values.values())
    ]
    about = json.loads((folder / "sweep.json").read_text())
    assert about["search"]["best"] == front
    marked = [line for line in done.out.splitlines() if "●" in line and "│" in line]
    assert len(marked) == len(front) and all(line[2:5].isdigit() for line in marked)
    assert f"compressor run {path} " in done.out
