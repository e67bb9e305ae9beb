"""`reproduce`: a run made again without its store, and held to what it had been."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import RecipeError
from compressor.engine.past_run import RunRecord
from compressor.engine.store.store import SELF
from compressor.runs.reproduce import compare_environments, format_pip_command, restore_recipe
from compressor.runs.reproduction import compare_runs
from tests.reports.conftest import Runs, edit_json

ONLY_LOAD = """
defaults: [/base, /model: tiny, _self_]
pipeline: [load]
model:
  config: {vocab_size: 300, d_model: 8, d_kv: 4, d_ff: 8, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {source: files, files: {train: rows/train.jsonl}}
stages: {load: {}}
"""


def test_a_pico_run_comes_out_bit_for_bit(runs: Runs, tmp_path: Path) -> None:
    """Every key, metric and file; nothing from the first store; times are shown, not compared."""
    into = ("--into", tmp_path / "again")
    made = runs.read("reproduce", runs.first, *into)
    assert made["equal"] and made["recorded"] == str(runs.first)
    assert made == json.loads((tmp_path / "again/reproduction.json").read_text())
    files = {stage["name"]: stage["compared_files"] for stage in made["stages"]}
    # Of an evaluation: predictions.csv and each row's score.
    assert files["recover"] == 8 and files["evaluate@recover"] == 2
    run = RunRecord.read(Path(made["made"]))
    assert not any(record["cached"] for record in run.records)
    assert run.store is not None and run.store.folder == tmp_path / "again/store"
    again = runs.call("reproduce", runs.first, *into)
    assert again.code == 2 and "--into" in again.err and "not empty" in again.err


def test_what_differs_is_told_by_name(copies: Runs, runs: Runs) -> None:
    """A metric by rounding, one for real, one that one of the two lacks, which is null as JSON; a
    file; a stage that one of the two lacks.
    """
    lost = []

    def edit(records: Any) -> None:
        records[1]["metrics"]["validation_loss"] *= 1 + 1e-9
        records[3]["metrics"]["validation_loss"] += 0.5
        records[1]["metrics"]["samples_per_second"] = 1.0
        lost.extend(records[1]["metrics"]["train_losses"].pop())
        records.append(records[2] | {"name": "prune_more", "key": "0" * 64})

    def edit_manifest(manifest: Any) -> None:
        manifest["files"]["config.json"]["sha256"] = "0" * 64
        del manifest[SELF]  # its own digest, as in earlier versions

    edit_json(copies.first / "metrics.json", edit)
    edit_json((copies.first / "stages/02-prune").resolve() / "manifest.json", edit_manifest)
    made = compare_runs(RunRecord.read(copies.first), RunRecord.read(runs.first), {})
    assert not made.equal
    by_name = {stage["name"]: stage for stage in json.loads(json.dumps(made.as_json()))["stages"]}
    metrics = {metric["path"]: metric for metric in by_name["base"]["metrics"]}
    assert metrics.pop("validation_loss")["found"] == "rounding"
    assert [(m["before"], m["after"]) for m in metrics.values()] == [(None, v) for v in lost]
    assert all(path.startswith("train_losses.") for path in metrics)
    assert [metric["found"] for metric in by_name["recover"]["metrics"]] == ["different"]
    assert by_name["prune"]["files"] == ["config.json"]
    assert by_name["prune_more"]["there"] == "recorded"
    assert by_name["load"]["equal"] and by_name["evaluate@base"]["equal"]


def test_a_run_that_did_not_finish_is_held_to_what_it_reached(runs: Runs) -> None:
    """What came after its failure is no difference."""
    made = compare_runs(RunRecord.read(runs.failed), RunRecord.read(runs.first), {})
    assert [o.name for o in made.outcomes if o.there == "both"] == ["load"]
    assert made.equal and not made.finished


@pytest.fixture
def files(copies: Runs) -> Path:
    """A run on a data file of a person's own."""
    rows = [json.dumps({"text": f"bill {n} on taxes", "summary": "a tax"}) for n in range(40)]
    (copies.folder / "rows").mkdir()
    (copies.folder / "rows/train.jsonl").write_text("\n".join(rows))
    (copies.folder / "files.yaml").write_text(ONLY_LOAD)
    return copies.run("files.yaml")


def test_relative_paths_begin_where_the_run_was_started(copies, files, tmp_path) -> None:
    """Given from another folder, the data file is found; once it has changed, that is told; once it
    is gone, one error has its key, and nothing half made is left.
    """
    elsewhere, outputs = (
        replace(copies, folder=tmp_path),
        copies.folder / "outputs/reproductions/files",
    )
    answer = elsewhere.call("reproduce", files)
    assert answer.code == 0, answer.err
    assert "everything that should be equal is equal" in answer.out
    assert len(list(outputs.iterdir())) == 1
    rows = copies.folder / "rows/train.jsonl"
    rows.write_text(rows.read_text().replace("taxes", "trade"))
    answer = elsewhere.call("reproduce", files)
    assert answer.code == 1, answer.err
    change = "data.train: other rows (the data set has changed)"
    assert f"not what it was: load: {change}\n" in answer.out
    assert f"load: another key: {change}\n" in answer.out
    rows.unlink()
    answer = elsewhere.call("reproduce", files)
    assert answer.code == 2 and "data.files.train: no file 'rows/train.jsonl'" in answer.err
    assert len(list(outputs.iterdir())) == 2


def test_secrets_must_be_given_again(copies: Runs) -> None:
    """They are not recorded; all that is missing is named, and nothing else can be set."""
    path = copies.first / "recipe.yaml"
    path.write_text(path.read_text() + "hub: {token: <redacted>, names: [a, '<redacted>']}")
    run = RunRecord.read(copies.first)
    for secrets, message in (
        ([], r"again: .* hub.token=… hub.names.1=…"),
        (["hub.token=x"], r"again: .* reproduce … hub.names.1=…"),
        (["hub.tokn=x"], r"did you mean 'hub.token'\?"),
    ):
        with pytest.raises(RecipeError, match=message):
            restore_recipe(run, secrets)
    values = restore_recipe(run, ["hub.token=a=b", "hub.names.1=c"])
    assert values["hub"] == {"token": "a=b", "names": ["a", "c"]}
    answer = copies.call("reproduce", copies.cached, "seed=3")
    assert answer.code == 2 and "nothing of this recipe was redacted" in answer.err


def test_versions_come_with_the_command_that_restores_them(copies: Runs) -> None:
    """Only those that differ; a build of torch with its index; threads, which decide sums."""
    assert compare_environments(RunRecord.read(copies.first)) == []
    packages = {"torch": "2.1.0+cpu", "compressor": "0.0.1", "gguf": None}

    def edit(about: Any) -> None:
        about["packages"] |= packages
        about["machine"]["threads"] = 7

    edit_json(copies.first / "environment.json", edit)
    text = "\n".join(compare_environments(RunRecord.read(copies.first)))
    assert "pip install torch==2.1.0+cpu" in text
    assert "compressor was 0.0.1" in text and "transformers" not in text
    assert "OMP_NUM_THREADS=7" in text
    assert format_pip_command({"compressor": "0.0.1"}) is None
