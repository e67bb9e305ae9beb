"""Runs to be killed: what they run, where, and what has to be so after a kill and after the end.

A trial has the artifacts of an undisturbed run, by hard links, without the one of the stage that is
under fire. The real command is started on it, and is sent a signal while that stage runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from compressor.core.files import MANIFEST, write_text
from compressor.engine.store.store import Store
from tests.faults.stored import check_store
from tests.harness.command import Process, start
from tests.harness.runs import list_processes, without_times

SUMMARIES = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2,
           dropout_rate: 0.1}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 64, validation: 16, test: 16}, max_source_length: 96, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  load: {}
  finetune: {model: load, epochs: 2}
  prune: {model: load, amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, importance: wanda}
  shrink: {model: load, decoder_layers: 1}
  slice: {model: load, feed_forward: 0.5, importance: taylor}
  smooth: {model: load}
  trim_vocabulary: {model: load}
  distill: {model: shrink, teacher: load, epochs: 2, cache_logits: true}
  pseudo_label: {model: load, max_length: 16}
  quantize: {model: load}
  evaluate: {model: load, max_length: [8, 16]}
  sensitivity: {model: load, amounts: [0.5], rows: 16}
  baseline: {}
  benchmark: {model: load, max_length: 8, batch_sizes: [1]}
  export: {model: load}
"""
LABELS = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load]
model:
  config: {vocab_size: 400, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
           intermediate_size: 48}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 96, validation: 40, test: 50}, max_source_length: 96}
training: {batch_size: 8, checkpoint_seconds: 0}
stages:
  load: {}
  approximate: {layers: [0], block: {heads: 1, head_size: 8, depth: 1}, inputs: data, epochs: 2}
"""
INTERRUPTED = "interrupted; the same command goes on from here"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass
class Place:
    """A folder with recipes, outputs and temporary files of its own, in which runs are started."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "temporary").mkdir(parents=True, exist_ok=True)
        for name, text in {"summaries": SUMMARIES, "labels": LABELS}.items():
            write_text(self.folder / f"{name}.yaml", text)  # another process may read it now
        self.outputs = self.folder / "outputs"
        self.store = Store(self.outputs / "store")

    @property
    def runs(self) -> list[Path]:
        """The folders of runs, the latest last."""
        folders = self.outputs.glob("runs/*/*/")  # `<time>`, and `<time>-2` in that second
        return sorted(folders, key=lambda path: (path.name[:19], len(path.name), path.name))

    def start(self, *command: str, **how: Any) -> Process:
        return start(*command, cwd=self.folder, TMPDIR=str(self.folder / "temporary"), **how)

    def start_stage(self, kind: str, *overrides: str, **how: Any) -> Process:
        """Start a run of one kind of stage, and of what it reads."""
        before = {"load": [], "distill": ["load", "shrink"]}.get(kind, ["load"])
        recipe = "labels.yaml" if kind == "approximate" else "summaries.yaml"
        pipeline = f"pipeline=[{','.join([*before, kind])}]"
        return self.start("run", recipe, pipeline, *overrides, **how)

    def finish_stage(self, kind: str, *overrides: str) -> Process:
        """The same, to its end."""
        process = self.start_stage(kind, *overrides)
        assert process.wait(240) == 0, process.err
        return process

    def events(self) -> list[dict[str, Any]]:
        """What the latest run has told so far."""
        path = self.runs[-1] / "events.jsonl" if self.runs else self.folder / "none"
        lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []
        return [json.loads(line) for line in lines if line]

    def operations(self) -> list[str]:
        """What the last run did to files, in order; see `signal_at`."""
        return (self.folder / OPERATIONS).read_text().splitlines()


@dataclass
class Undisturbed:
    """A store that no kill has touched, with what each kind's run made in it, once."""

    place: Place
    keys: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Kind → what its stage took."""

    def make(self, kind: str) -> str:
        """The key of that kind's artifact."""
        if kind not in self.keys:
            with FileLock(self.place.folder / "making.lock"):
                self.place.finish_stage(kind)
                records = json.loads((self.place.runs[-1] / "metrics.json").read_text())
            for record in records:
                self.keys[record["stage"]] = record["key"]
                self.seconds[record["stage"]] = record["made_in_seconds"]
        return self.keys[kind]

    def copy_without(self, kind: str, folder: Path) -> Place:
        """A place with all of it but that kind's artifact."""
        key, place = self.make(kind), Place(folder)
        for artifact in self.place.store.folder.iterdir():
            if (artifact / MANIFEST).is_file() and artifact.name != key:
                shutil.copytree(artifact, place.store.path(artifact.name), copy_function=os.link)
        return place


def wait_for(condition: Callable[[], bool], process: Process, seconds: float = 240.0) -> bool:
    """Whether it came to be so before the run ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, f"in vain so far: {process.out}{process.err}"
        time.sleep(0.002)
    return True


def strike(place: Place, kind: str, seconds: float, number: signal.Signals) -> bool:
    """Run a kind, and signal it when its stage has run for so long; whether that ended the run."""
    before = set(place.runs)
    process = place.start_stage(kind)

    def has_begun() -> bool:
        return not before.issuperset(place.runs) and any(
            event["event"] == "stage_started" and event["name"] == kind for event in place.events()
        )

    if wait_for(has_begun, process):
        time.sleep(seconds)
    process.send(number)
    return check_killed(place, process, number)


def check_killed(place: Place, process: Process, number: signal.Signals) -> bool:
    """What has to be so when a run has ended by a signal; False if it was done before that came."""
    process.wait(60)
    if process.code == 0 or (process.code != 1 and "\nrun: " in process.out):
        return False
    assert "Traceback" not in process.err + process.out, process.err
    if number == signal.SIGKILL:
        assert process.code == -signal.SIGKILL, (process.code, process.err)
    else:
        assert process.code == 1, (process.code, process.out, process.err, place.events()[-3:])
        assert process.err.splitlines()[-1] == INTERRUPTED, process.err
        assert list((place.folder / "temporary").iterdir()) == []
        last = place.events()[-1:]
        if last and last[0].get("state") == "interrupted":  # else it met the report of a whole run
            page = (place.runs[-1] / "report.html").read_text("utf-8")
            assert ": interrupted</title>" in page
    check_nobody_left(place)
    check_store(place.outputs)
    return True


def check_nobody_left(place: Place) -> None:
    """What a killed process had started may take a moment to notice, and end itself."""
    deadline = time.monotonic() + 3
    while left := list_processes(place.folder):
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.02)


def check_tidy(place: Place) -> None:
    """Nothing is half made, left behind or set aside."""
    check_nobody_left(place)
    check_store(place.outputs)
    assert list((place.store.folder / "partial").iterdir()) == []
    assert not (place.store.folder / "damaged").exists()


def check_finished(place: Place, undisturbed: Undisturbed, kind: str) -> None:
    """What has to be so when a run was killed, started again, and came to its end."""
    check_tidy(place)
    key = undisturbed.make(kind)
    mine, theirs = place.store.manifest(key), undisturbed.place.store.manifest(key)
    assert mine["files"] == theirs["files"]  # SHA-256 of each, and no file holds a time
    if kind != "benchmark":  # which measures nothing but time and memory
        assert without_times(mine["metrics"]) == without_times(theirs["metrics"])
        assert without_times(mine["model"]) == without_times(theirs["model"])


# What a run does to files, from CPython's audit hook: before each of them a process may end.

OPERATIONS = "operations"
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "shutil.rmtree"}


def signal_at(number: int, at: int) -> None:
    """Have this process note each change below `outputs`, and signal itself before the `at`th."""
    below, process = f"{Path.cwd()}/outputs/", os.getpid()
    log = Path(OPERATIONS).open("w", 1)  # noqa: SIM115  # stays open
    done = 0

    def note(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        writes = event == "open" and isinstance(given[2], int) and given[2] & 3
        if not (writes or event in _CHANGES) or os.getpid() != process or isinstance(given[0], int):
            return
        path = os.path.join(Path.cwd(), os.fsdecode(given[0]))  # noqa: PTH118
        if path.startswith(below) and not path.endswith("events.jsonl"):  # as many as time allows
            log.write(f"{event} {path.removeprefix(below)}\n")
            done += 1
            if done == at + 1:
                os.kill(process, number)

    sys.addaudithook(note)


def draw_signals(chance: random.Random, count: int) -> list[signal.Signals]:
    """So many, each kind as often as another, in any order."""
    drawn = [SIGNALS[place % len(SIGNALS)] for place in range(count)]
    chance.shuffle(drawn)
    return drawn
