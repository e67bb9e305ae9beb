"""Read what a run leaves on the disk, and wait for what one that goes on has left so far."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil

from tests.harness.command import Process


def find_stage(run_folder: Path, name: str) -> Path:
    (stage,) = run_folder.glob(f"stages/*-{name}")
    return stage


def weights(run_folder: Path, name: str) -> Path:
    return find_stage(run_folder, name) / "model.safetensors"


def losses(stage: Path) -> list[float]:
    with (stage / "losses.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def wait_for_step(process: Process, above: int = 0, seconds: float = 120) -> int:
    """Wait until a run has a checkpoint of a step after `above`, and is not done; that step."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        places = process.cwd.glob("outputs/store/partial/*.resume/step-*/tensors")
        last = max([above, *(int(place.parent.name[5:]) for place in places)])
        if last > above:
            return last
        time.sleep(0.005)
    raise AssertionError(f"no checkpoint after step {above}: {process.out}{process.err}")


def kill(process: Process) -> None:
    """Kill a run by SIGKILL while it works, and all that is of its process group."""
    assert process.poll() is None, process.out + process.err
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


TIMED = {
    *("seconds", "samples_per_second", "cached_logits_seconds", "load_seconds"),
    *("resident_bytes", "resumed"),
}
"""What metrics hold of time and memory, and of kills: no two runs have the same."""


def without_times(value: Any) -> Any:
    """Give a value of JSON without what is of time and memory."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMED}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def list_processes(folder: Path) -> list[psutil.Process]:
    """List what was started in a folder and has not ended; not this process."""
    there = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                there.append(process)
        except (psutil.Error, OSError):  # it has ended
            continue
    return there
