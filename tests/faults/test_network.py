"""The network goes away, or brings something else, while files of a hub come in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from compressor.data.bills import bills
from tests.faults import LONG, trials
from tests.faults.conftest import Tell
from tests.faults.forked import Forked
from tests.faults.small_hub import SmallHub
from tests.faults.stored import artifacts, flip, whole_only

RECIPE = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, evaluate]
model: {source: small/model, tokenizer: null, config: null}
data: {rows: {train: 8, validation: 4, test: 4}, max_source_length: 32, max_target_length: 16}
stages: {load: {}, evaluate: {max_length: 8}}
"""
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
FAULTS = [
    ("cut", WEIGHTS, 1, "could not be fetched"),
    ("wrong", WEIGHTS, 1, "came damaged"),
    ("wrong", TOKENIZER, 1, "came damaged"),
    ("cut", CONFIG, 2, "could not be fetched"),
    ("500", "api", 2, "answered 500"),
    ("404", "api", 2, "the hub has no model 'small/model'"),
    ("stall", WEIGHTS, 1, "timed out"),
    ("short", WEIGHTS, 1, "Consistency check failed"),
    ("short", TOKENIZER, 1, "could not be fetched"),
    ("wrong", CONFIG, 2, "came damaged"),
    ("401", "api", 2, "hf auth login"),
    ("403", "api", 2, "answered 403"),
    ("429", "api", 2, "answered 429"),
    ("silent", "api", 2, "cannot be reached"),
    ("500", WEIGHTS, 1, "answered 500"),
    ("403", WEIGHTS, 1, "answered 403"),
    ("silent", CONFIG, 2, "could not be fetched"),
]
TRIED = FAULTS if LONG else [FAULTS[1], FAULTS[3]]


OF_DATA = """
defaults: [/base, /model: tiny, _self_]
pipeline: [load, baseline]
model:
  config: {vocab_size: 300, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {source: hub, dataset: small/data, splits: {train: train}, max_source_length: 32}
stages: {load: {}, baseline: {}}
"""
ROWS = "rows.jsonl"
FAULTS_OF_DATA = [
    ("wrong", "came damaged"),
    ("cut", "could not be fetched"),
    ("short", "could not be fetched"),
    ("500", "answered 500"),
    ("401", "hf auth login"),
]


@pytest.fixture
def hub(forked_and_hub: tuple[Forked, SmallHub], whole: Path, tmp_path: Path) -> SmallHub:
    """A hub with the model of the undisturbed run, and a cache with nothing."""
    forked, hub = forked_and_hub
    (load,) = (whole / "outputs" / "runs" / "mini").glob("*/stages/*-load")
    shutil.copytree(load.resolve(), tmp_path / "model")
    for name in ("manifest.json", "checkpoint.json"):
        (tmp_path / "model" / name).unlink()
    hub.folder, hub.fault, hub.struck = tmp_path / "model", "", 0
    shutil.rmtree(Path(forked.environment["HF_HOME"]), ignore_errors=True)
    (tmp_path / "hub.yaml").write_text(RECIPE)
    return hub


@pytest.mark.parametrize(("fault", "file", "code", "said"), TRIED)
def test_what_the_network_does_to_a_download_is_one_error_and_nothing_stays(
    forked: Forked, hub: SmallHub, whole: Path, tmp_path: Path, tell: Tell,
    fault: str, file: str, code: int, said: str,
) -> None:  # fmt: skip
    """A connection that was cut while `config.json` came in gave a traceback; a body of the right
    length with other bytes was taken for the model, and stayed in the cache for later runs.
    """
    hub.fault, hub.file = fault, file
    failed = forked("run", "hub.yaml", "-q", cwd=tmp_path, seconds=100)
    assert hub.struck
    assert failed.code == code, failed.err
    assert said in failed.err
    assert failed.err.count("error: ") == 1
    hub.fault = ""
    done = forked("run", "hub.yaml", "-q", cwd=tmp_path)
    assert done.code == 0, done.err
    whole_only(tmp_path / "outputs")
    expected = artifacts(whole / "outputs")["load"]
    assert artifacts(tmp_path / "outputs")["load"][WEIGHTS] == expected[WEIGHTS]
    what = {"cut": "cut off", "wrong": "other bytes", "short": "a shorter body", "stall": "stalls"}
    happened = f"one error, exit {code}; with the network back the same command finishes"
    tell("network", f"{what.get(fault, fault)}: {file}", happened)


@pytest.mark.parametrize(("fault", "said"), FAULTS_OF_DATA[: trials(5, 1)])
def test_rows_of_the_hub_are_those_that_it_names(
    forked: Forked, hub: SmallHub, tmp_path: Path, tell: Tell, fault: str, said: str
) -> None:
    """A file of rows that came with other bytes was read, and its numbers were the data set's, or
    it could not be, for ever after, with a traceback, as it was where one ended early.
    """
    for path in hub.folder.iterdir():
        path.unlink()
    rows = bills(40, seed=0, split="train")
    content = "".join(json.dumps(row) + "\n" for row in rows)
    (hub.folder / ROWS).write_text(content)
    (tmp_path / "data.yaml").write_text(OF_DATA)
    hub.fault, hub.file = fault, ROWS
    command = ("run", "data.yaml", "-q", f"data.files={{train: {ROWS}}}")
    failed = forked(*command, cwd=tmp_path, seconds=100)
    assert hub.struck
    assert (failed.code, failed.err.count("error: ")) == (1, 1), failed.err
    assert said in failed.err
    hub.fault = ""
    assert forked(*command, cwd=tmp_path).code == 0
    hub.fault, hub.file = "500", ""  # all is in the store: the hub is not needed
    again = forked(*command, cwd=tmp_path)
    assert again.code == 0, again.err
    what = {"cut": "cut off", "wrong": "other bytes", "short": "a shorter body"}
    happened = "one error, exit 1; with the network back the same command finishes"
    tell("network", f"{what.get(fault, fault)}: rows of a data set", happened)


def test_cells_of_a_hubs_csv_are_texts(forked: Forked, hub: SmallHub, tmp_path: Path) -> None:
    """As those of a file here; of three words of the source the summary is one, so F1 is 0.5."""
    for path in hub.folder.iterdir():
        path.unlink()
    lines = [f"{row:05} shall pay,{row:05}\n" for row in range(40)]
    (hub.folder / "rows.csv").write_text("text,summary\n" + "".join(lines))
    (tmp_path / "data.yaml").write_text(OF_DATA)
    hub.fault = ""
    done = forked("run", "data.yaml", "-q", "data.files={train: rows.csv}", cwd=tmp_path)
    assert done.code == 0, done.err
    (metrics,) = tmp_path.glob("outputs/runs/data/*/metrics.json")
    records = {record["name"]: record for record in json.loads(metrics.read_text())}
    assert records["baseline"]["metrics"]["rouge1"] == pytest.approx(0.5)
    assert records["baseline"]["metrics"]["rouge1_recall"] == 1


@pytest.mark.skipif(not LONG, reason="three runs; `make test-faults`")
def test_a_file_that_was_damaged_in_the_hubs_cache_is_fetched_again(
    forked: Forked, hub: SmallHub, whole: Path, tmp_path: Path, tell: Tell
) -> None:
    """The hub's library takes whatever lies in its cache; a flipped bit of weights was loaded, and
    a key that is made of the commit alone said that they were the commit's.
    """
    assert forked("run", "hub.yaml", "-q", "skip=[evaluate]", cwd=tmp_path).code == 0
    (cached,) = Path(forked.environment["HF_HOME"]).rglob(WEIGHTS)
    flip(cached.resolve())
    shutil.rmtree(tmp_path / "outputs")
    failed = forked("run", "hub.yaml", "-q", "skip=[evaluate]", cwd=tmp_path)
    assert failed.code == 1
    assert f"{WEIGHTS} of 'small/model' came damaged, or was damaged" in failed.err
    assert forked("run", "hub.yaml", "-q", "skip=[evaluate]", cwd=tmp_path).code == 0
    found, expected = artifacts(tmp_path / "outputs"), artifacts(whole / "outputs")
    assert found["load"][WEIGHTS] == expected["load"][WEIGHTS]
    tell("network", "a bit flipped in the hub's cache", "one error, exit 1; then fetched again")
