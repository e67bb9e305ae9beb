"""Runs are killed, in every kind of stage and at moments that are as bad as can be."""

from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from compressor.stages.base import stage_kinds
from tests.faults import LONG, trials
from tests.faults.kills import (
    INTERRUPTED,
    Place,
    Undisturbed,
    check_finished,
    check_killed,
    draw_signals,
    signal_at,
    strike,
)
from tests.faults.stored import check_store


@pytest.mark.parametrize("kind", stage_kinds() if LONG else ["prune"])
def test_a_run_killed_in_any_stage_ends_as_if_it_had_not_been(
    kind: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """SIGKILL, SIGTERM and SIGINT at random moments of a stage, of its commit and the reports; the
    same command then goes on to the same files, and leaves nothing behind.
    """
    undisturbed.make(kind)
    chance, number = random.Random(kind), 0
    for sent in draw_signals(chance, trials(9, 3)):
        if number % 3 == 0:  # some runs are killed once more, where they go on
            place = undisturbed.copy_without(kind, tmp_path / str(number))
        share = chance.uniform(0, 1)
        while not strike(place, kind, share * undisturbed.seconds[kind], sent):
            number, share = number + 1, share / 2
            place = undisturbed.copy_without(kind, tmp_path / str(number))
        number += 1
        if number % 3 == 0:
            place.finish_stage(kind)
            check_finished(place, undisturbed, kind)


def find_decisive(done: list[str], key: str) -> list[int]:
    """The operations that decide whether an artifact or a checkpoint is there, and those around."""
    decide = (f"os.rename store/partial/{key}", f"os.rename store/partial/{key}.")
    at = [place for place, line in enumerate(done) if line.startswith(decide)]
    around = {place + by for place in at[:2] + at[-2:] for by in (0, 1, 2)}
    return sorted(place for place in around if place < len(done))


@pytest.mark.parametrize("kind", ["finetune", "shrink"] if LONG else ["shrink"])
def test_a_run_killed_between_any_two_file_operations_leaves_whole_ones(
    kind: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Before each rename, removal or opening for writing a process may end: of checkpoints, of the
    commit, of records and reports, of the run's folder. Those that decide are always tried.
    """
    key = undisturbed.make(kind)
    counted = undisturbed.copy_without(kind, tmp_path / "counted")
    assert counted.start_stage(kind, prepare=partial(signal_at, 0, -1)).wait() == 0
    done, chance = counted.operations(), random.Random(kind)
    decisive = find_decisive(done, key)[: trials(12, 2)]
    assert decisive, done
    others = [place for place in range(len(done)) if place not in decisive]
    for at in decisive + chance.sample(others, trials(8, 0)):
        number = signal.SIGKILL if at in decisive else signal.SIGTERM
        place = undisturbed.copy_without(kind, tmp_path / str(at))
        process = place.start_stage(kind, prepare=partial(signal_at, int(number), at))
        assert check_killed(place, process, number) or number != signal.SIGKILL
        assert len(place.operations()) > at
        place.finish_stage(kind)
        check_finished(place, undisturbed, kind)


@pytest.mark.parametrize("sent", draw_signals(random.Random(8), trials(9, 2)))
def test_a_command_killed_while_it_starts_leaves_nothing(sent, tmp_path: Path) -> None:
    """From the interpreter's start over its imports to the first stage: no traceback as soon as
    `main` runs, and no half artifact.
    """
    place = Place(tmp_path)
    process = place.start_stage("finetune", fresh=True)
    time.sleep(random.Random(tmp_path.name).uniform(0, 2.5))
    process.send(sent)
    assert process.wait(60) in {1, -sent}, process.err
    assert "Traceback" not in process.err or "in main" not in process.err, process.err
    if process.code == 1 and "Traceback" not in process.err:
        assert process.err.splitlines()[-1] == INTERRUPTED
    check_store(place.outputs)
