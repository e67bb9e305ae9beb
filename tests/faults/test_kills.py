"""Processes that are killed, in every kind of stage, and at moments that are as bad as can be."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from compressor.engine.store.store import Store
from compressor.stages.base import stage_kinds
from tests.faults import LONG, trials
from tests.faults.conftest import Tell
from tests.faults.kills import (
    INTERRUPTED,
    Place,
    Undisturbed,
    after_a_kill,
    after_the_end,
    arguments,
    every_artifact_is_whole,
    is_done,
    no_lock_is_held,
    signals,
    strike,
    undisturbed_in,
    write_recipes,
)
from tests.faults.warm import OPERATIONS, SIGNAL_AT, Warm, shared

KINDS = [
    *("approximate", "baseline", "benchmark", "distill", "evaluate", "export", "finetune", "load"),
    *("prune", "pseudo_label", "quantize", "sensitivity", "shrink", "slice", "smooth"),
    "trim_vocabulary",
]
QUICK = ("baseline", "prune")
"""In which the short form kills, once each."""
AT_ONCE = 4
"""Kills before a run is let come to its end."""


@pytest.fixture(scope="module")
def warm() -> Warm:
    return shared()


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_in(tmp_path_factory.getbasetemp() / "undisturbed", warm)


def test_no_kind_of_stage_is_left_out() -> None:
    """A new module of `compressor.stages` has to be killed too."""
    assert stage_kinds() == KINDS


@pytest.mark.parametrize("kind", KINDS if LONG else QUICK)
def test_a_run_killed_in_any_stage_ends_as_if_it_had_not_been(
    kind: str, undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """SIGKILL, SIGTERM and SIGINT at random moments of a stage, and of its commit and reports."""
    undisturbed.made(kind)
    chance, wanted, number = random.Random(kind), trials(13, 1), 0
    struck: dict[signal.Signals, int] = {}
    while wanted:
        place = undisturbed.without(kind, tmp_path / str(number))
        number += 1
        for _ in range(min(wanted, AT_ONCE)):
            share, sent = chance.uniform(0, 1), signals(chance)
            while not strike(place, kind, share * undisturbed.seconds[kind], sent):
                place = undisturbed.without(kind, tmp_path / str(number))
                number, share = number + 1, share / 2
            struck[sent] = struck.get(sent, 0) + 1
            wanted -= 1
        last = place.start(kind)
        assert last.wait() == 0, last.err
        after_the_end(place, undisturbed, kind)
    for sent, times in struck.items():
        fault = f"{sent.name} at random moments of all kinds of stage"
        tell("kills", fault, "the same files, nothing left behind", times)


def operations(place: Place, kind: str) -> list[str]:
    """What an undisturbed run of a kind does to files, in order."""
    started = place.start(kind, **{SIGNAL_AT: ""})
    assert started.wait() == 0, started.err
    return (place.folder / OPERATIONS).read_text().splitlines()


def nasty(done: list[str], key: str) -> list[int]:
    """The operations that decide whether an artifact or a checkpoint is there, and those around."""
    decide = {f"os.rename /outputs/store/partial/{key}", f"os.rename /outputs/store/partial/{key}."}
    at = [n for n, line in enumerate(done) if any(line.startswith(each) for each in decide)]
    return sorted({n + by for n in at[:2] + at[-2:] for by in (0, 1, 2) if n + by < len(done)})


@pytest.mark.parametrize("kind", ["finetune", "shrink"] if LONG else ["shrink"])
def test_a_run_killed_between_any_two_file_operations_leaves_whole_ones(
    kind: str, undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """Before each rename, removal or opening for writing a process may end: of checkpoints, of the
    commit, of records and reports, of the run's folder. Those that decide are always tried.

    It used to leave a training's checkpoints in the store for ever, where it was killed between the
    commit and their removal.
    """
    key = undisturbed.made(kind)
    done = operations(undisturbed.without(kind, tmp_path / "counted"), kind)
    chance = random.Random(kind)
    decide = nasty(done, key)[: trials(12, 2)]
    assert decide, done
    others = [n for n in range(len(done)) if n not in decide]
    struck = {signal.SIGKILL: 0, signal.SIGINT: 0}
    for at in decide + sorted(chance.sample(others, min(len(others), trials(12, 0)))):
        number = signal.SIGKILL if at in decide else chance.choice([*struck])
        place = undisturbed.without(kind, tmp_path / str(at))
        started = place.start(kind, **{SIGNAL_AT: f"{int(number)} {at}"})
        started.wait()
        met = (place.folder / OPERATIONS).read_text().splitlines()[: at + 1]
        assert len(met) == at + 1
        if is_done(place, started):
            continue
        after_a_kill(place, started, number)
        last = place.start(kind)
        assert last.wait() == 0, last.err
        after_the_end(place, undisturbed, kind)
        struck[number] += 1
    assert struck[signal.SIGKILL] >= len(decide)
    for number, times in struck.items():
        fault = f"{number.name} before chosen file operations, such as a commit's rename"
        tell("kills", fault, "the same files, nothing left behind", times)


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGTERM, signal.SIGKILL)][: trials(2, 1)],
    ids=lambda numbers: "+".join(number.name for number in numbers),
)  # fmt: skip
def test_a_second_request_takes_no_report_away(
    numbers: tuple[signal.Signals, ...], undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """`kill` twice: no traceback, and the report that the first one asked for; after SIGKILL there
    may be none.
    """
    kind = "finetune" if LONG else "prune"
    undisturbed.made(kind)
    for turn in range(trials(4, 1)):
        place, after = undisturbed.without(kind, tmp_path / str(turn)), 0.1 + 0.1 * turn
        assert strike(place, kind, after * undisturbed.seconds[kind], *numbers)
        if signal.SIGKILL not in numbers:
            assert (place.runs[-1] / "report.html").is_file()
            assert place.events()[-1]["state"] == "interrupted"
        last = place.start(kind)
        assert last.wait() == 0, last.err
        after_the_end(place, undisturbed, kind)
        names = ", then ".join(number.name for number in numbers)
        tell("kills", f"{names} in `{kind}`", "the same files, nothing left behind")


def heeds_ctrl_c() -> None:
    """A shell's `&` starts processes that do not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_command_killed_while_it_starts_leaves_nothing(tmp_path: Path, tell: Tell) -> None:
    """A plain command, from the interpreter's start over its imports to the first stage: without a
    traceback as soon as `main` runs, and without anything in the store.
    """
    write_recipes(tmp_path)
    chance, struck = random.Random(8), Counter[signal.Signals]()
    for number in range(trials(24, 2)):
        sent, folder = signals(chance), tmp_path / str(number)
        command = [*arguments("finetune"), f"outputs={folder}"]
        process = subprocess.Popen(
            [sys.executable, "-m", "compressor", *command],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeds_ctrl_c,  # noqa: PLW1509  # this process has one thread
        )
        time.sleep(chance.uniform(0, 2.5))
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode in {1, -sent}, err
        assert "Traceback" not in err or "in main" not in err, err
        if process.returncode == 1 and "Traceback" not in err:
            assert err.splitlines()[-1] == INTERRUPTED
        if (folder / "store").is_dir():
            every_artifact_is_whole(Store(folder / "store"))
            no_lock_is_held(Store(folder / "store"))
        struck[sent] += 1
    for sent, times in struck.items():
        tell("kills", f"{sent.name} while the command starts", "no traceback, no artifact", times)
