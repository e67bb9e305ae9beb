"""Real runs of pico models, made once: what the commands about past runs look at."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.cli.main import main

RECIPE = """
defaults: [/base, /model: tiny, /data: bills, _self_]
description: "A pico model, pruned and repaired."
pipeline: [load, base, prune, recover, evaluate]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 32, validation: 8, test: 8}, max_source_length: 96, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  load: {}
  base: {stage: finetune, epochs: 1}
  prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}
  recover: {stage: finetune, epochs: 1, label: repaired}
  evaluate: {models: [base, recover], against: base, max_length: [4, 8]}
"""
LABELS = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, classify, evaluate]
model:
  config: {vocab_size: 300, hidden_size: 32, num_hidden_layers: 1, intermediate_size: 32}
  tokenizer: {vocab_size: 300}
data: {rows: {train: 64, validation: 16, test: 40}, max_source_length: 32}
training: {batch_size: 8, learning_rate: 0.01, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  load: {}
  classify: {stage: finetune, epochs: 1}
  evaluate: {threshold: tuned}
"""


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """A folder that commands are given in; recipes and `outputs/` are in it."""

    folder: Path

    def call(self, *arguments: object) -> Said:
        """Give a command, in this process: importing torch for each would take most of the time."""
        out, err = io.StringIO(), io.StringIO()
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        assert "Traceback" not in out.getvalue() + err.getvalue()
        return Said(code, out.getvalue(), err.getvalue())

    def run(self, *arguments: object) -> Path:
        """Run a recipe; its folder."""
        said = self.call("run", *arguments)
        assert said.code == 0, said.err
        line = next(line for line in reversed(said.out.splitlines()) if line.startswith("run: "))
        return self.folder / line.removeprefix("run: ")


@dataclass(frozen=True)
class Runs:
    """Runs that all tests look at, and none changes."""

    place: Place
    first: Path
    changed: Path
    """With another learning rate of `base`."""
    cached: Path
    """The first one's command again."""
    failed: Path
    """Its loss became NaN in `base`."""
    labels: Path
    fewer_labels: Path
    """The same rows with a classifier that learned at another rate."""


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = Place(tmp_path_factory.mktemp("past"))
    (place.folder / "mine.yaml").write_text(RECIPE)
    (place.folder / "labels.yaml").write_text(LABELS)
    first = place.run("mine.yaml")
    changed = place.run("mine.yaml", "stages.base.learning_rate=0.004")
    cached = place.run("mine.yaml")
    before = set((place.folder / "outputs/runs/mine").iterdir())
    assert place.call("run", "mine.yaml", "stages.base.learning_rate=1e30").code == 1
    (failed,) = set((place.folder / "outputs/runs/mine").iterdir()) - before
    labels = place.run("labels.yaml")
    fewer = place.run("labels.yaml", "training.learning_rate=0.001")
    return Runs(place, first, changed, cached, failed, labels, fewer)


@pytest.fixture
def own(runs: Runs, tmp_path: Path) -> Callable[[], Place]:
    """A copy of all runs and their store, for a test that changes them."""

    def copy() -> Place:
        shutil.copytree(runs.place.folder, tmp_path / "own", symlinks=True)
        return Place(tmp_path / "own")

    return copy
