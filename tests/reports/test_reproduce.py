"""`reproduce`: a run made again without its store, and held to what it had been."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import RecipeError
from compressor.engine.past_run import PastRun
from compressor.engine.store.store import SELF
from compressor.runs.reproduce import format_pip_command, recipe_values, surroundings
from compressor.runs.reproduction import reproduction

ONLY_LOAD = """
defaults: [/base, /model: tiny, _self_]
pipeline: [load]
model:
  config: {vocab_size: 300, d_model: 8, d_kv: 4, d_ff: 8, num_layers: 1, num_decoder_layers: 1}
  tokenizer: {vocab_size: 300}
data: {source: files, files: {train: rows/train.jsonl}}
stages: {load: {}}
"""


def test_a_pico_run_comes_out_bit_for_bit(runs: Any, tmp_path: Path) -> None:
    """Every key, metric and file; nothing from the first store; times are shown, not compared."""
    said = runs.place.call("reproduce", runs.first, "--into", tmp_path / "again", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["equal"] and found["recorded"] == str(runs.first)
    assert found == json.loads((tmp_path / "again/reproduction.json").read_text())
    files = {each["name"]: each["compared_files"] for each in found["stages"]}
    # Of an evaluation: predictions.csv and each row's score.
    assert files["recover"] == 8 and files["evaluate@recover"] == 2
    made = PastRun.read(Path(found["made"]))
    assert not any(record["cached"] for record in made.records)
    assert made.store is not None and made.store.folder == tmp_path / "again/store"
    again = runs.place.call("reproduce", runs.first, "--into", tmp_path / "again")
    assert again.code == 2 and "--into" in again.err and "not empty" in again.err


def _copied(own: Callable[[], Any], runs: Any, run: Path) -> tuple[Any, Path]:
    place = own()
    return place, place.folder / run.relative_to(runs.place.folder)


def test_what_differs_is_told_by_name(own: Callable[[], Any], runs: Any) -> None:
    """A metric by rounding, one for real, a file, a stage that one of the two lacks."""
    _, folder = _copied(own, runs, runs.first)
    records = json.loads((folder / "metrics.json").read_text())
    records[1]["metrics"]["validation_loss"] *= 1 + 1e-9
    records[3]["metrics"]["validation_loss"] += 0.5
    records[1]["metrics"]["samples_per_second"] = 1.0
    records.append(records[2] | {"name": "prune_more", "key": "0" * 64})
    (folder / "metrics.json").write_text(json.dumps(records))
    manifest = (folder / "stages/02-prune").resolve() / "manifest.json"
    about = json.loads(manifest.read_text())
    about["files"]["config.json"]["sha256"] = "0" * 64
    del about[SELF]  # its own digest, as in earlier versions
    manifest.write_text(json.dumps(about))
    found = reproduction(PastRun.read(folder), PastRun.read(runs.first), {})
    by_name = {each.name: each for each in found.outcomes}
    assert not found.equal
    assert [(m.path, m.found) for m in by_name["base"].metrics] == [("validation_loss", "rounding")]
    assert [m.found for m in by_name["recover"].metrics] == ["different"]
    assert by_name["prune"].files == ("config.json",)
    assert by_name["prune_more"].there == "recorded"
    assert by_name["load"].equal and by_name["evaluate@base"].equal


def test_a_metric_that_one_of_the_two_lacks_is_written_as_json(
    own: Callable[[], Any], runs: Any
) -> None:
    """A training of more steps leaves more losses: they were nothing before, which is null."""
    _, folder = _copied(own, runs, runs.first)
    records = json.loads((folder / "metrics.json").read_text())
    last = records[1]["metrics"]["train_losses"].pop()
    (folder / "metrics.json").write_text(json.dumps(records))
    found = reproduction(PastRun.read(folder), PastRun.read(runs.first), {}).as_json()
    (base,) = [each for each in json.loads(json.dumps(found))["stages"] if each["name"] == "base"]
    place = len(records[1]["metrics"]["train_losses"])
    assert base["metrics"] == [
        {"path": f"train_losses.{place}.{i}", "before": None, "after": value, "found": "different"}
        for i, value in enumerate(last)
    ]


def test_a_run_that_did_not_finish_is_held_to_what_it_reached(runs: Any) -> None:
    """What came after its failure is no difference."""
    found = reproduction(PastRun.read(runs.failed), PastRun.read(runs.first), {})
    assert [each.name for each in found.outcomes if each.there == "both"] == ["load"]
    assert found.equal and not found.finished


def _of_files(place: Any) -> Path:
    rows = place.folder / "rows"
    rows.mkdir()
    lines = [json.dumps({"text": f"bill {n} on taxes", "summary": "a tax"}) for n in range(40)]
    (rows / "train.jsonl").write_text("\n".join(lines))
    (place.folder / "files.yaml").write_text(ONLY_LOAD)
    return place.run("files.yaml")


def test_relative_paths_begin_where_the_run_was_started(
    own: Callable[[], Any], tmp_path: Path
) -> None:
    """Given from another folder, the data file is found; once it has changed, that is told."""
    place = own()
    run = _of_files(place)
    elsewhere = type(place)(tmp_path)
    said = elsewhere.call("reproduce", run)
    assert said.code == 0, said.err
    assert "everything that should be equal is equal" in said.out
    assert list((place.folder / "outputs/reproductions/files").iterdir())
    path = place.folder / "rows/train.jsonl"
    path.write_text(path.read_text().replace("taxes", "trade"))
    said = elsewhere.call("reproduce", run)
    assert said.code == 1, said.err
    told = "data.train: other rows (the data set has changed)"
    assert f"not what it was: load: {told}\n" in said.out
    assert f"load: another key: {told}\n" in said.out


def test_secrets_must_be_given_again(own: Callable[[], Any], runs: Any) -> None:
    """They are not recorded; all that is missing is named, and nothing else can be set."""
    _, folder = _copied(own, runs, runs.first)
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text + "hub: {token: <redacted>, names: [a, '<redacted>']}")
    run = PastRun.read(folder)
    with pytest.raises(RecipeError, match=r"again: .* hub.token=… hub.names.1=…"):
        recipe_values(run, [])
    with pytest.raises(RecipeError, match=r"again: .* reproduce … hub.names.1=…"):
        recipe_values(run, ["hub.token=x"])
    values = recipe_values(run, ["hub.token=a=b", "hub.names.1=c"])
    assert values["hub"] == {"token": "a=b", "names": ["a", "c"]}
    with pytest.raises(RecipeError, match=r"did you mean 'hub.token'\?"):
        recipe_values(run, ["hub.tokn=x"])
    said = runs.place.call("reproduce", runs.first, "seed=3")
    assert said.code == 2 and "nothing of this recipe was redacted" in said.err


def test_versions_come_with_the_command_that_restores_them(
    own: Callable[[], Any], runs: Any
) -> None:
    """Only those that differ; a build of torch with its index; threads, which decide sums."""
    _, folder = _copied(own, runs, runs.first)
    assert surroundings(PastRun.read(folder)) == []
    about = json.loads((folder / "environment.json").read_text())
    about["packages"] |= {"torch": "2.1.0+cpu", "compressor": "0.0.1", "gguf": None}
    about["machine"]["threads"] = 7
    (folder / "environment.json").write_text(json.dumps(about))
    said = "\n".join(surroundings(PastRun.read(folder)))
    assert "pip install torch==2.1.0+cpu" in said
    assert "compressor was 0.0.1" in said and "transformers" not in said
    assert "OMP_NUM_THREADS=7" in said
    assert format_pip_command({"compressor": "0.0.1"}) is None


def test_a_recipe_that_cannot_be_planned_leaves_no_folder(
    own: Callable[[], Any], runs: Any
) -> None:
    """Its data file is gone: one error with the key, and nothing half made."""
    place = own()
    run = _of_files(place)
    (place.folder / "rows/train.jsonl").unlink()
    said = place.call("reproduce", run)
    assert said.code == 2 and "data.files.train: no file 'rows/train.jsonl'" in said.err
    assert list((place.folder / "outputs/reproductions/files").iterdir()) == []
