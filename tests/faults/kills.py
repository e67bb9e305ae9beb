"""Runs that are killed: what is run, where, and what has to be so after a kill and after the end.

A trial has the artifacts of an undisturbed run, by hard links, without the one of the stage that is
under fire. The real command is started on it, and is sent signals while that stage runs.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from compressor.core.files import MANIFEST
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from tests.faults.warm import Started, Warm

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
TIMED = {
    *("seconds", "samples_per_second", "cached_logits_seconds", "load_seconds"),
    *("resident_bytes", "resumed"),
}
"""What a manifest's metrics hold of time and memory, and of kills: no two runs have the same."""
ENDING_SECONDS = 3.0
"""How long what a killed process had started may take to notice, and end itself."""
INTERRUPTED = "interrupted; the same command goes on from here"


def arguments(kind: str) -> list[str]:
    """A `run` of one kind of stage, and of what it reads."""
    before = {"load": [], "distill": ["load", "shrink"]}.get(kind, ["load"])
    recipe = "labels.yaml" if kind == "approximate" else "summaries.yaml"
    return ["run", recipe, f"pipeline=[{','.join([*before, kind])}]"]


def write_recipes(folder: Path) -> None:
    for name, text in (("summaries", SUMMARIES), ("labels", LABELS)):
        (folder / f"{name}.yaml").write_text(text)


@dataclass
class Place:
    """A folder with recipes, outputs and a temporary folder of its own, in which runs are started.

    `start` is how: by a `Warm`, or plainly.
    """

    folder: Path
    warm: Warm
    more: tuple[str, ...] = ()
    """Overrides of every run here."""

    def __post_init__(self) -> None:
        (self.folder / "temporary").mkdir(parents=True, exist_ok=True)
        write_recipes(self.folder)

    @property
    def store(self) -> Store:
        return Store(self.folder / "outputs/store")

    def start(self, kind: str, **environment: str) -> Started:
        return self.begin(*arguments(kind), *self.more, **environment)

    def begin(self, *command: str, **environment: str) -> Started:
        environment |= {"TMPDIR": str(self.folder / "temporary")}
        return self.warm.start(*command, cwd=self.folder, **environment)

    @property
    def runs(self) -> list[Path]:
        """The folders of runs, the latest last."""
        found = self.folder.glob("outputs/runs/*/*/")  # `<time>`, and `<time>-2` in that second
        return sorted(found, key=lambda path: (path.name[:19], len(path.name), path.name))

    def events(self) -> list[dict[str, Any]]:
        """What the latest run has told so far."""
        path = self.runs[-1] / "events.jsonl" if self.runs else self.folder / "none"
        if not path.is_file():
            return []
        lines = path.read_text("utf-8").split("\n")[:-1]  # without the half of a last one
        return [json.loads(line) for line in lines if line]

    def processes(self) -> list[psutil.Process]:
        """All that were started here and are still there: they have this working directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def key(self, kind: str) -> str:
        """The key of a kind's artifact, of the latest finished run that has it."""
        for folder in reversed(self.runs):
            path = folder / "metrics.json"
            for record in json.loads(path.read_text()) if path.is_file() else []:
                if record["stage"] == kind:
                    return str(record["key"])
        raise AssertionError(f"no run has made {kind}")


@dataclass
class Undisturbed:
    """A store that no kill has touched, with what the kinds' runs made in it, each made once."""

    place: Place
    seconds: dict[str, float] = field(default_factory=dict)
    """Kind → what its stage took."""

    def made(self, kind: str) -> str:
        """The key of that kind's artifact."""
        if kind not in self.seconds:
            started = self.place.start(kind)
            assert started.wait() == 0, started.err
            key = self.place.key(kind)
            self.seconds[kind] = self.place.store.manifest(key)["seconds"]
        return self.place.key(kind)

    def without(self, kind: str, folder: Path) -> Place:
        """A place with all of it but that kind's artifact."""
        key = self.made(kind)
        place = Place(folder, self.place.warm, self.place.more)
        for artifact in self.place.store.folder.iterdir():
            if (artifact / MANIFEST).is_file() and artifact.name != key:
                shutil.copytree(artifact, place.store.path(artifact.name), copy_function=os.link)
        return place


@cache
def undisturbed_in(folder: Path, warm: Warm) -> Undisturbed:
    """The same one for all tests of a process."""
    return Undisturbed(Place(folder, warm))


def wait_for(condition: Callable[[], bool], started: Started, seconds: float = 60.0) -> bool:
    """Whether it came to be so before the run ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if started.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, f"in vain so far: {started.out}{started.err}"
        time.sleep(0.002)
    return True


def strike(
    place: Place, kind: str, seconds: float, number: signal.Signals, *then: signal.Signals
) -> bool:
    """Run a kind, wait until its stage has run for so long, send signals; whether that hit it."""
    ended = set(place.runs)
    started = place.start(kind)

    def begun() -> bool:
        return not ended.issuperset(place.runs) and any(
            event["event"] == "stage_started" and event["name"] == kind for event in place.events()
        )

    if wait_for(begun, started):
        time.sleep(seconds)
    hit, sent = started.send(number), time.time()
    for other in then:
        time.sleep(0.05)
        started.send(other)
    started.wait()
    if is_done(place, started):  # and on its way out: what has heard of it does not go on
        assert not hit or place.events()[-1]["time"] <= sent + 0.1, place.events()[-5:]
        return False
    after_a_kill(place, started, number if not then else None)
    return hit


def is_done(place: Place, started: Started) -> bool:
    """Whether it had come to its end before the signal, which then met the interpreter's own."""
    return started.code == 0 or (started.code != 1 and "\nrun: " in started.out)


def after_a_kill(place: Place, started: Started, number: signal.Signals | None) -> None:
    """What has to be so when a run has ended by a signal: one that can be caught, or SIGKILL."""
    assert "Traceback" not in started.err + started.out, started.err
    if number == signal.SIGKILL:
        assert started.code == -signal.SIGKILL, (started.code, started.err)
    elif number is not None:
        assert started.code == 1, (started.code, started.out, started.err, place.events()[-3:])
        assert started.err.splitlines()[-1] == INTERRUPTED, started.err
        if place.events():  # the run's folder is made before its first event is told
            is_reported(place)
        assert list((place.folder / "temporary").iterdir()) == []
    nobody_is_left(place)
    every_artifact_is_whole(place.store)
    no_lock_is_held(place.store)


def is_reported(place: Place) -> None:
    """The latest run has told that it was interrupted, to who reads its events or its page."""
    last = place.events()[-1]
    assert last["event"] == "run_ended" and last["state"] in {"interrupted", "done"}, last
    page = (place.runs[-1] / "report.html").read_text("utf-8")
    assert f": {last['state']}</title>" in page or last["state"] == "done"


def nobody_is_left(place: Place) -> None:
    deadline = time.monotonic() + ENDING_SECONDS
    while left := place.processes():
        assert time.monotonic() < deadline, [process.cmdline() for process in left]
        time.sleep(0.02)


def every_artifact_is_whole(store: Store) -> None:
    for folder in store.folder.iterdir():
        if folder.name not in {"partial", "locks", "damaged", "seconds.jsonl"}:
            store.verify(folder.name)


def no_lock_is_held(store: Store) -> None:
    for path in (store.folder / "locks").glob("*.lock"):
        assert not store.is_locked(path.stem), path


def after_the_end(place: Place, undisturbed: Undisturbed, kind: str) -> None:
    """What has to be so when a run was killed, launched again, and came to its end."""
    store = place.store
    nobody_is_left(place)
    every_artifact_is_whole(store)
    no_lock_is_held(store)
    assert list((store.folder / "partial").iterdir()) == []
    assert not (store.folder / "damaged").exists()
    key = undisturbed.made(kind)
    mine, theirs = store.manifest(key), undisturbed.place.store.manifest(key)
    assert mine["files"] == theirs["files"]  # SHA-256 of each, and no file holds a time
    if kind != "benchmark":  # which measures nothing but time and memory
        assert timeless(mine["metrics"]) == timeless(theirs["metrics"])
        assert timeless(mine["model"]) == timeless(theirs["model"])


def timeless(value: Any) -> Any:
    """A value of JSON without what is of time and memory."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMED}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def signals(chance: random.Random) -> signal.Signals:
    return chance.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])


def key_of(place: Place, kind: str) -> str:
    """What a plan says that kind's key is, before anything has run."""
    from compressor.engine.plan import plan

    recipe, *overrides = arguments(kind)[1:]
    composed = compose(str(place.folder / recipe), [*overrides, *place.more])
    key = plan(composed, place.store).node(kind).key
    assert key is not None
    return key
