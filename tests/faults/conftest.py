"""The run that others are held to, and the table of what the campaign tried."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from compressor.core.files import write_text
from tests.faults import LONG
from tests.faults.kills import Place, Undisturbed
from tests.harness.once import run_once, session_folder

TABLE = Path(__file__).parents[2] / "outputs" / "faults.md"
MINI = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, finetune, prune, evaluate]
model:
  config: {vocab_size: 300, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {rows: {train: 32, validation: 8, test: 4}, max_source_length: 32, max_target_length: 16}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2, checkpoint_seconds: 0}
stages:
  load: {}
  finetune: {epochs: 1}
  prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}
  evaluate: {max_length: [8]}
"""
"""A second's work."""


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.yaml` and the `outputs` of a run of it that nothing disturbed."""
    return run_once(tmp_path_factory, "mini", MINI).cwd


@pytest.fixture
def mine(whole: Path, tmp_path: Path) -> Path:
    """A folder with `mine.yaml` and no outputs yet."""
    shutil.copy(whole / "mine.yaml", tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A store that no kill has touched, and that all of pytest's processes share."""
    return Undisturbed(Place(session_folder(tmp_path_factory) / "undisturbed"))


class Table:
    """What was done to runs, by test, and how many forms of it ended how, in all workers."""

    def __init__(self) -> None:
        self.tried: Counter[tuple[str, ...]] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file, _, test = report.nodeid.partition("[")[0].partition("::")
        if report.when == "call" and file.startswith("tests/faults/"):
            words = (Path(file).stem, test.partition("_")[2])
            self.tried[*(word.replace("_", " ") for word in words), report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        lines = ["| | fault | forms | outcome |", "|---|---|--:|---|"]
        for (area, fault, outcome), count in sorted(self.tried.items()):
            lines.append(f"| {area.removeprefix('test ')} | {fault} | {count:,} | {outcome} |")
        TABLE.parent.mkdir(exist_ok=True)
        write_text(TABLE, "\n".join(lines) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if LONG and not hasattr(config, "workerinput"):  # a worker's reports come to the controller
        config.pluginmanager.register(Table())
