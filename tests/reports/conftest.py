"""Real runs of pico models, made once: what the commands about past runs look at."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.cli.main import main
from tests.harness.command import Command
from tests.harness.once import make_once

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
class Runs:
    """Runs in one folder, in which commands are given."""

    folder: Path
    first: Path = Path()
    changed: Path = Path()
    """With another learning rate of `base`."""
    cached: Path = Path()
    """The first one's command again."""
    failed: Path = Path()
    """Its loss became NaN in `base`."""
    labels: Path = Path()
    fewer_labels: Path = Path()
    """The same rows with a classifier that learned at another rate."""

    def call(self, *arguments: object) -> Command:
        """Give a command, in this process: importing torch for each would take most of the time."""
        out, err = io.StringIO(), io.StringIO()
        with chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
            code = main([str(argument) for argument in arguments])
        assert "Traceback" not in out.getvalue() + err.getvalue()
        return Command(code, out.getvalue(), err.getvalue(), self.folder)

    def read(self, *arguments: object) -> Any:
        """Give a command with `--json`, and load what it prints."""
        answer = self.call(*arguments, "--json")
        assert answer.code == 0, answer.err
        return json.loads(answer.out, parse_constant=pytest.fail)

    def run(self, *arguments: object) -> Path:
        """Run a recipe; its folder, whether it fails or not."""
        self.call("run", *arguments)
        return max(
            (self.folder / "outputs/runs").glob("*/*"), key=lambda path: path.stat().st_mtime
        )


def edit_json(path: Path, edit: Callable[[Any], None]) -> None:
    """Change what a JSON file says."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that all tests look at, and none changes."""

    def make(folder: Path) -> Runs:
        place = Runs(folder)
        (folder / "mine.yaml").write_text(RECIPE)
        (folder / "labels.yaml").write_text(LABELS)
        return Runs(
            folder,
            first=place.run("mine.yaml"),
            changed=place.run("mine.yaml", "stages.base.learning_rate=0.004"),
            cached=place.run("mine.yaml"),
            failed=place.run("mine.yaml", "stages.base.learning_rate=1e30"),
            labels=place.run("labels.yaml"),
            fewer_labels=place.run("labels.yaml", "training.learning_rate=0.001"),
        )

    return make_once(tmp_path_factory, "past", make)


@pytest.fixture
def copies(runs: Runs, tmp_path: Path) -> Runs:
    """A copy of all runs and their store, for a test that changes them."""
    folder = tmp_path / "copies"
    shutil.copytree(runs.folder, folder, symlinks=True)
    copies = {name: folder / path.relative_to(runs.folder) for name, path in vars(runs).items()}
    return Runs(**copies)
