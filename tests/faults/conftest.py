"""Collects what the campaign tried and what came of it, into one table."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from compressor.core.files import write_text
from tests.faults.forked import Forked
from tests.faults.small_hub import SmallHub, small_hub

TABLE = Path(__file__).parent.parent.parent / "outputs" / "faults.md"
Tell = Callable[..., None]
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
_ROWS = pytest.StashKey[list[tuple[str, str, int, str]]]()


@pytest.fixture(scope="session")
def forked_and_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Forked, SmallHub]]:
    """Commands that begin at once, which ask a hub of the loopback if they ask any."""
    folder = tmp_path_factory.mktemp("forked")
    with small_hub() as hub:
        waits = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
        where = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0"}
        with Forked(folder, **waits, **where, HF_HUB_DISABLE_TELEMETRY="1") as forked:
            yield forked, hub


@pytest.fixture
def forked(forked_and_hub: tuple[Forked, SmallHub]) -> Forked:
    """The command in a process that is forked: `forked("run", …, cwd=tmp_path)`."""
    return forked_and_hub[0]


@pytest.fixture(scope="session")
def whole(
    forked_and_hub: tuple[Forked, SmallHub], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with `mini.yaml` and the `outputs` of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "mini.yaml").write_text(MINI)
    done = forked_and_hub[0]("run", "mini.yaml", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def mine(whole: Path, tmp_path: Path) -> Path:
    """A folder with `mini.yaml` and no outputs yet."""
    shutil.copy(whole / "mini.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def tell(record_property: Callable[[str, Any], None]) -> Tell:
    """Give the table a row, or add to it: `tell("kills", "SIGKILL in finetune", "same weights")`.

    Rows of the same area, fault and outcome, of any test, are one; `times` adds up. Call it after
    the assertions: only rows of tests that pass are written.
    """

    def told(area: str, fault: str, outcome: str, times: int = 1) -> None:
        record_property("tried", [area, fault, times, outcome])

    return told


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS] = []


class _Table:
    """The table of all workers, written when the campaign ends."""

    def __init__(self, config: pytest.Config) -> None:
        self.rows = config.stash[_ROWS]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.rows += [tuple(row) for name, row in report.user_properties if name == "tried"]

    def pytest_sessionfinish(self) -> None:
        if self.rows:
            TABLE.parent.mkdir(exist_ok=True)
            write_text(TABLE, as_table(self.rows))


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker's reports come to the controller
        session.config.pluginmanager.register(_Table(session.config))


def as_table(rows: list[tuple[str, str, int, str]]) -> str:
    """Markdown, in order of area and fault."""
    times: dict[tuple[str, str, str], int] = defaultdict(int)
    for area, fault, count, outcome in rows:
        times[area, fault, outcome] += count
    lines = ["| | fault | times | what happened |", "|---|---|--:|---|"]
    lines += [
        f"| {area} | {fault} | {count:,} | {outcome} |"
        for (area, fault, outcome), count in sorted(times.items())
    ]
    return "\n".join(lines) + "\n"
