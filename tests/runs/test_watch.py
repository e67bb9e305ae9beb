"""Events of a run, and following them from another terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.core.processes import (
    describe_process,
    is_running,
)
from compressor.core.progress import Progress
from tests.harness.command import Process, compressor, start


@pytest.fixture
def start_run(recipe: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a run that takes some seconds, and end it at the latest here."""
    path = recipe(("epochs: 1}\n  prune", "epochs: 400}\n  prune"))
    processes: list[Process] = []

    def begin(**streams: Any) -> Process:
        processes.append(start("run", path, cwd=tmp_path, **streams))
        return processes[-1]

    yield begin
    for process in processes:
        process.send(signal.SIGKILL)
        process.wait()


def run_folder(tmp_path: Path, seconds: float = 60) -> Path:
    """The folder of the run, once a training has told of its progress."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path in (tmp_path / "outputs" / "runs").glob("*/*/events.jsonl"):
            if '"title": "train"' in path.read_text():
                return path.parent
        time.sleep(0.1)
    raise AssertionError("no training has begun")


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def read_terminal(process: Process, ours: int, word: bytes) -> str:
    """Read what a process draws until it ends; send it SIGTERM once it has drawn a word."""
    shown, is_asked, end = b"", False, time.monotonic() + 90
    while (select.select([ours], [], [], 0.2)[0] or process.poll() is None) and (
        time.monotonic() < end
    ):
        if select.select([ours], [], [], 0)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other side is closed
                break
        if word in shown and not is_asked:
            is_asked = process.send(signal.SIGTERM)
    os.close(ours)
    text = shown.decode()
    assert "\x1b[?25l" in text, "it draws bars, and hides the cursor meanwhile"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    return text


def begin_events(folder: Path, process: int) -> Progress:
    """Write the first event of a run of one stage, which a process is said to be."""
    (folder / "recipe.yaml").write_text("name: demo\n")
    stages = [{"name": "load", "stage": "load", "seconds": None}]
    progress = Progress(Console(quiet=True), folder / "events.jsonl", quiet=True)
    about = describe_process(process)
    progress.emit("run_started", recipe="demo", stages=stages, process=about)
    return progress


def test_a_run_is_watched_from_elsewhere_and_its_kill_is_told(tmp_path: Path) -> None:
    """Who watches sees what has ended, and is told when the run's process is gone for good."""
    process = subprocess.Popen(["sleep", "60"])
    progress = begin_events(tmp_path, process.pid)
    progress.emit("stage_started", name="load", key="0" * 64)
    progress.emit("stage_ended", name="load", cached=False, seconds=1.0, metrics={})
    watching, deadline = start("watch", tmp_path), time.monotonic() + 60
    while not watching.out.startswith("load  "):
        assert watching.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert watching.wait(30) == 1
    assert watching.out.endswith(
        "the run's process has ended, or was killed: the same command goes on\n"
    )


def test_a_terminal_is_left_as_it_was_by_kill(start_run, tmp_path: Path) -> None:
    """SIGTERM ends a run as Ctrl-C does: the cursor is shown again, and the run says so."""
    ours, theirs = pty.openpty()
    process = start_run(stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    assert "the same command goes on from here" in read_terminal(process, ours, b"train")
    assert process.wait(30) == 1
    (folder,) = (tmp_path / "outputs" / "runs").glob("*/*")
    last = events(folder)[-1]
    assert (last["event"], last["state"]) == ("run_ended", "interrupted")


def test_the_events_of_a_run_say_all_that_is_shown(finished, recipe, run) -> None:
    """From first to last, in workers' processes too; watching an ended run shows its results."""
    two = run("run", recipe(), "launch.num_processes=2", "skip=[prune, recover, evaluate]")
    assert two.code == 0, two.err
    for done, names, titles in (
        (two, ["load", "finetune"], {"train"}),
        (finished, ["load", "finetune", "prune", "recover", "evaluate"], {"train", "decode"}),
    ):
        told = events(done.run_folder)
        assert [told[0]["event"], told[-1]["event"]] == ["run_started", "run_ended"]
        assert [stage["name"] for stage in told[0]["stages"]] == names
        assert told[-1]["state"] == "done"
        moves = [event for event in told if event["event"] == "progress"]
        assert titles <= {event["title"] for event in moves}
        assert all(event["done"] == event["total"] for event in moves if event["ended"])
        assert re.findall(r"^(\w+) +[\d.]+ s ", done.out, re.MULTILINE) == names
    seen = compressor("watch", str(finished.run_folder))
    assert seen.code == 0
    assert seen.out.splitlines()[-3:] == finished.out.splitlines()[-4:-1]


def test_what_is_no_run_is_not_watched(tmp_path: Path) -> None:
    """A wrong folder is the person's mistake, told as such."""
    for folder, message in ((tmp_path / "no", "is no run's"), (tmp_path, "it has no events.jsonl")):
        done = compressor("watch", folder)
        assert done.code == 2 and message in done.err


@pytest.mark.parametrize("open_end", [pty.openpty, os.pipe], ids=["terminal", "head"])
def test_a_run_whose_reader_goes_leaves_its_report(start_run, tmp_path: Path, open_end) -> None:
    """A terminal, of which kernel and shell both send SIGHUP, or `| head`: writing fails, the end
    is told all the same, and a second signal cuts it no shorter.
    """
    ours, theirs = open_end()
    process = start_run(stdout=theirs, stderr=theirs)
    os.close(theirs)
    folder = run_folder(tmp_path)
    os.close(ours)
    for _ in range(2 * (open_end is pty.openpty)):
        process.send(signal.SIGHUP)
    assert process.wait(30) == 1
    last = events(folder)[-1]
    assert (last["event"], last["state"]) == ("run_ended", "interrupted")
    assert "<title>mine: interrupted</title>" in (folder / "report.html").read_text("utf-8")


def test_a_run_goes_on_where_its_events_cannot_be_written(tmp_path: Path, capsys) -> None:
    """`/dev/full` takes nothing. It is said once; the next line that can be written is whole."""
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    progress = Progress(Console(quiet=True), path, quiet=True)
    for number in range(3):
        progress.emit("said", text=str(number))
    (warning,) = capsys.readouterr().err.splitlines()
    assert "events.jsonl: the disk is full" in warning
    path.unlink()
    progress.emit("said", text="3")
    assert [event["text"] for event in events(tmp_path)] == ["3"]


def test_an_event_is_found_in_a_line_that_others_have_written_into(tmp_path: Path) -> None:
    """Of workers that print at once nothing is lost, and none of it ends the run."""
    heard: list[tuple[str, Any]] = []
    progress = Progress(
        Console(quiet=True), quiet=True, watch=lambda kind, v: heard.append((kind, v["text"]))
    )
    event = '\x1e{"event": "said", "text": "loss"}'
    for line in (f"before{event}after\n", event + event, '\x1e{"event": "sa', "\x1e[1]"):
        progress.relay(line)
    said = ["before", "loss", "after", "loss", "loss", '{"event": "sa', "[1]"]
    assert heard == [("said", text) for text in said]


def test_a_watch_that_is_ended_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    """SIGTERM to who looks on: the cursor comes back, and the run is not what has ended."""
    begin_events(tmp_path, os.getpid())
    ours, theirs = pty.openpty()
    process = start("watch", tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert "not watching any more; the run goes on" in read_terminal(process, ours, b"0/1")
    assert process.wait(30) == 0


def test_what_a_killed_run_wrote_by_half_does_not_hide_the_next_ones_start(tmp_path: Path) -> None:
    """A point of a sweep goes on in its folder: its first event is on a line of its own."""
    path = tmp_path / "events.jsonl"
    path.write_text('{"time": 1.0, "event": "stage_st')
    Progress(Console(quiet=True), path, quiet=True).emit("run_started", recipe="demo")
    half, whole = path.read_text().splitlines()
    assert half == '{"time": 1.0, "event": "stage_st'
    assert json.loads(whole)["event"] == "run_started"


def test_a_process_is_told_from_one_that_has_ended_or_has_its_number() -> None:
    """A zombie is gone: of a run that was killed in a container, whose first process waits for
    nobody.
    """
    process = subprocess.Popen(["sleep", "60"])
    about = describe_process(process.pid)
    assert is_running(about)
    process.kill()
    end = time.monotonic() + 10
    while is_running(about) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_running(about)
    assert process.wait() == -signal.SIGKILL
    about = describe_process()
    assert is_running(about)
    assert not is_running({**about, "created": "another boot"})
    assert not is_running({"host": about["host"], "id": "x"})
