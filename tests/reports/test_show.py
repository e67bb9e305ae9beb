"""`show`: what a person sees of a run a month later, whole or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.harness.pages import Text
from tests.reports.conftest import Runs, edit_json


def test_a_run_says_what_it_was_and_what_came_out(runs: Runs) -> None:
    """Recipe, description, command, state, a line a stage, the results, and where to look."""
    answer = runs.call("show", runs.first)
    assert answer.code == 0, answer.err
    lines = {line.split(maxsplit=1)[0]: line for line in answer.out.splitlines() if line.strip()}
    assert lines["recipe"].split() == ["recipe", "mine"]
    assert lines["what"].endswith("A pico model, pruned and repaired.")
    assert lines["state"].split() == ["state", "finished"]
    assert lines["versions"].endswith("as installed now")
    rows = [line.split("│")[1:-1] for line in answer.out.splitlines() if line.startswith("│")]
    stages = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 7}
    names = ["load", "base", "prune", "recover", "evaluate@base", "evaluate@recover"]
    assert list(stages) == names
    assert {cells[0] for cells in stages.values()} == {"run"}
    assert "validation_loss" in stages["base"][-1] and "rougeLsum" in stages["evaluate@base"][-1]
    assert "repaired" in answer.out and f"predictions.csv: {runs.first}" in answer.out
    about = runs.read("show", runs.first)  # nothing but JSON, and the records as they are
    assert about["stages"] == json.loads((runs.first / "metrics.json").read_text())
    assert about["state"] == {"ended": "finished", "stage": None, "reason": None}
    assert about["removed"] == [] and about["packages_that_differ"] == {}


def test_a_recipes_name_is_its_latest_run(runs: Runs, tmp_path: Path) -> None:
    """By the time in the folder's name: `-10` comes after `-2`; another outputs folder is asked."""
    assert f"run       outputs/runs/mine/{runs.failed.name}" in runs.call("show", "mine").out
    times = [f"2030-01-01_00-00-00{end}" for end in ("", "-2", "-10")]
    for time in times:
        shutil.copytree(runs.first, tmp_path / "o/runs/mine" / time, symlinks=True)
    answer = runs.call("show", "mine.yaml", "--outputs", tmp_path / "o")
    assert f"{times[2]}\n" in answer.out
    for name, message in (
        ("mime", "did you mean 'mine'?"),
        ("outputs", "neither metrics.json nor"),
        ("outputs=there", "(elsewhere: --outputs there)"),
    ):
        answer = runs.call("show", name)
        assert answer.code == 2 and message in answer.err and "no run's directory" in answer.err
    for command in (["show", "mine"], ["why", "mine", "base"]):
        answer = runs.call(*command, "outputs=o")
        assert answer.code == 2 and "an option has dashes: --outputs o;" in answer.err


def test_a_failed_run_says_where_and_why(runs: Runs) -> None:
    """Also one of which only `load` ended; its page and card tell what was not reached."""
    out = runs.call("show", runs.failed).out
    state = next(line for line in out.splitlines() if line.startswith("state"))
    assert state.startswith("state     failed in base: the ") and "is nan" in state.lower()
    words = Text((runs.failed / "report.html").read_text("utf-8")).words
    assert "stage 'base'" in words and "1 of 6 stages done" in words
    assert "base finetune failed" in words and "recover finetune not reached" in words
    assert "This run is not complete" in (runs.failed / "README.md").read_text("utf-8")


def test_an_interrupted_run_is_told_from_a_finished_one(copies: Runs) -> None:
    """Killed in a stage, its last line half written; or between two stages."""
    path = copies.first / "events.jsonl"
    events = path.read_text().splitlines(keepends=True)
    at = next(i for i, e in enumerate(events) if '"stage_started", "name": "prune"' in e)
    started = json.loads(events[0])
    # Of a process that is gone: another one has its id now.
    started["process"] |= {"created": 0.0}
    events[0] = json.dumps(started) + "\n"
    for kept, state in (
        ([*events[: at + 1], events[at + 1][:20]], "interrupted in prune"),
        (events[:at], "interrupted"),
    ):
        path.write_text("".join(kept))
        assert f"state     {state}\n" in copies.call("show", copies.first).out


def _without_label(text: str) -> str:
    records = json.loads(text)
    del records[1]["label"]
    return json.dumps(records)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics.json", lambda t: t[: len(t) // 2], "metrics.json is not JSON"),
        ("metrics.json", lambda _: "{}", "metrics.json: expected a list of records"),
        ("metrics.json", _without_label, "metrics.json: record 1 (base): label: Field required"),
        ("metrics.json", lambda t: t.replace('"prune"', '"prun"'), "did you mean 'prune'?"),
        ("metrics.json", lambda t: t.replace('"demo"', '"x"').replace("rougeLsum", "x"), None),
        ("recipe.yaml", lambda _: "a: [", "recipe.yaml is not YAML"),
        ("environment.json", lambda _: "[]", "environment.json: expected a mapping"),
        ("asked.json", lambda t: t[: len(t) // 2], "asked.json is not JSON"),
        ("events.jsonl", lambda t: t[: len(t) // 2], None),
        ("environment.json", lambda _: "\udcff", "environment.json is not JSON"),
    ],
)
def test_a_damaged_folder_is_told_by_file(copies, file: str, change, message) -> None:
    """Exit code 2 and a sentence, for each command; metrics that are others than now do no harm."""
    text = change((copies.first / file).read_text())
    (copies.first / file).write_text(text, errors="surrogateescape")
    if message is None:
        assert copies.call("show", copies.first).code == 0
        return
    for command, *more in (["show"], ["why", "base"], ["compare", copies.changed], ["reproduce"]):
        answer = copies.call(command, copies.first, *more)
        assert answer.code == 2 and message in answer.err, command


def test_what_has_changed_since_is_told(copies: Runs) -> None:
    """Versions, also of a package that is not there any more; an artifact that was removed; the
    NaN of an older run, which JSON has not, is null.
    """
    now = copies.read("show", copies.first)["packages"]["torch"]
    packages = {"torch": "2.1.0", "no-such-package": "1.0"}
    edit_json(copies.first / "environment.json", lambda about: about["packages"].update(packages))
    nan = {"validation_loss": float("nan")}
    edit_json(copies.first / "metrics.json", lambda records: records[1]["metrics"].update(nan))
    shutil.rmtree((copies.first / "stages/02-prune").resolve())
    answer = copies.call("show", copies.first)
    assert f"torch 2.1.0 (now {now}); no-such-package 1.0 (now none)\n" in answer.out
    assert answer.code == 0 and "no longer in the store: prune\n" in answer.out
    about = copies.read("show", copies.first)
    assert about["removed"] == ["prune"]
    assert about["stages"][1]["metrics"]["validation_loss"] is None


def test_a_sweeps_folder_shows_its_points(copies: Runs) -> None:
    """The table that the sweep ended with; a point's folder is a run like any other."""
    ended = copies.call("run", "mine.yaml", "-m", "stages.evaluate.max_length=4,8")
    assert ended.code == 0, ended.err
    (sweep,) = (copies.folder / "outputs/sweeps/mine").iterdir()
    out = copies.call("show", sweep.relative_to(copies.folder)).out
    table = [line for line in ended.out.splitlines() if line.startswith("│ max_length=")]
    assert len(table) >= 2 and all(line in out for line in table[-2:])
    assert "state     finished" in copies.call("show", sweep / "max_length=4").out
    assert copies.call("show", sweep, "--json").code == 2
    (sweep / "sweep.json").write_text("{}")
    assert "sweep.json is not a sweep's" in copies.call("show", sweep).err
