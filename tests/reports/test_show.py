"""`show`: what a person sees of a run a month later, whole or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_a_run_says_what_it_was_and_what_came_out(runs: Any) -> None:
    """Recipe, description, command, state, a line a stage, the results, and where to look."""
    said = runs.place.call("show", runs.first)
    assert said.code == 0, said.err
    lines = {line.split(maxsplit=1)[0]: line for line in said.out.splitlines() if line.strip()}
    assert lines["recipe"].split() == ["recipe", "mine"]
    assert lines["what"].endswith("A pico model, pruned and repaired.")
    assert lines["state"].split() == ["state", "finished"]
    assert lines["versions"].endswith("as installed now")
    rows = [line.split("│")[1:-1] for line in said.out.splitlines() if line.startswith("│")]
    stages = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 7}
    names = ["load", "base", "prune", "recover", "evaluate@base", "evaluate@recover"]
    assert list(stages) == names
    assert {cells[0] for cells in stages.values()} == {"run"}
    assert "validation_loss" in stages["base"][-1] and "rougeLsum" in stages["evaluate@base"][-1]
    assert "repaired" in said.out and f"predictions.csv: {runs.first}" in said.out


def test_json_has_all_of_it(runs: Any) -> None:
    """The records as they are, the state, and nothing but JSON."""
    about = json.loads(runs.place.call("show", runs.first, "--json").out)
    assert about["stages"] == json.loads((runs.first / "metrics.json").read_text())
    assert about["state"] == {"ended": "finished", "stage": None, "reason": None}
    assert about["removed"] == [] and about["packages_that_differ"] == {}


def test_a_recipes_name_is_its_latest_run(runs: Any, tmp_path: Path) -> None:
    """By the time in the folder's name: `-10` comes after `-2`; another outputs folder is asked."""
    assert f"run       outputs/runs/mine/{runs.failed.name}" in runs.place.call("show", "mine").out
    times = [f"2030-01-01_00-00-00{end}" for end in ("", "-2", "-10")]
    for time in times:
        shutil.copytree(runs.first, tmp_path / "o/runs/mine" / time, symlinks=True)
    said = runs.place.call("show", "mine.yaml", "--outputs", tmp_path / "o")
    assert f"{times[2]}\n" in said.out


@pytest.mark.parametrize(
    ("name", "message"),
    [("mime", "did you mean 'mine'?"), ("outputs", "neither metrics.json nor recipe.yaml")],
)
def test_an_unknown_name_gets_the_nearest(runs: Any, name: str, message: str) -> None:
    """Neither a folder nor a recipe that has runs; or a folder that is no run's."""
    said = runs.place.call("show", name)
    assert said.code == 2 and message in said.err and "no run's directory" in said.err


def test_a_failed_run_says_where_and_why(runs: Any) -> None:
    """Also one of which only `load` ended."""
    said = runs.place.call("show", runs.failed)
    state = next(line for line in said.out.splitlines() if line.startswith("state"))
    assert state.startswith("state     failed in base: the ") and "is nan" in state.lower()


def test_an_interrupted_run_is_told_from_a_finished_one(own: Callable[[], Any], runs: Any) -> None:
    """Killed in a stage, its last line half written; or between two stages."""
    folder = own().folder / runs.first.relative_to(runs.place.folder)
    events = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    at = next(i for i, e in enumerate(events) if '"stage_started", "name": "prune"' in e)
    begun = json.loads(events[0])
    # Of a process that is gone: another one has its id now.
    begun["process"] |= {"created": 0.0, "since_boot": 0.0}
    events[0] = json.dumps(begun) + "\n"
    records = json.loads((folder / "metrics.json").read_text())[:2]
    (folder / "metrics.json").write_text(json.dumps(records))
    for kept, state in (
        ([*events[: at + 1], events[at + 1][:20]], "interrupted in prune"),
        (events[:at], "interrupted"),
    ):
        (folder / "events.jsonl").write_text("".join(kept))
        said = runs.place.call("show", folder)
        assert f"state     {state}\n" in said.out


def _cut(text: str) -> str:
    return text[: len(text) // 2]


def _without_label(text: str) -> str:
    records = json.loads(text)
    del records[1]["label"]
    return json.dumps(records)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("metrics.json", _cut, "metrics.json is not JSON"),
        ("metrics.json", lambda _: "{}", "metrics.json: expected a list of records"),
        ("metrics.json", _without_label, "metrics.json: record 1 (base): label: Field required"),
        ("metrics.json", lambda t: t.replace('"prune"', '"prun"'), "did you mean 'prune'?"),
        ("metrics.json", lambda t: t.replace('"demo"', '"x"').replace("rougeLsum", "x"), None),
        ("recipe.yaml", lambda _: "a: [", "recipe.yaml is not YAML"),
        ("environment.json", lambda _: "[]", "environment.json: expected a mapping"),
        ("environment.json", lambda _: "\udcff", "environment.json is not JSON"),
    ],
)
@pytest.mark.parametrize("command", ["show", "why", "compare", "reproduce"])
def test_a_damaged_folder_is_told_by_file(
    own: Callable[[], Any], runs: Any, command: str, file: str, change: Any, message: str | None
) -> None:
    """Exit code 2 and a sentence, for each command; metrics that are others than now do no harm."""
    place = own()
    folder = place.folder / runs.first.relative_to(runs.place.folder)
    text = change((folder / file).read_text())
    (folder / file).write_text(text, errors="surrogateescape")
    if message is None:
        assert command != "show" or place.call("show", folder).code == 0
        return
    more = {"why": ["base"], "compare": [runs.changed]}.get(command, [])
    said = place.call(command, folder, *more)
    assert said.code == 2 and message in said.err


def test_versions_that_are_others_now_are_told(own: Callable[[], Any], runs: Any) -> None:
    """The recorded one and the installed one; also of a package that is not there any more."""
    folder = own().folder / runs.first.relative_to(runs.place.folder)
    about = json.loads((folder / "environment.json").read_text())
    now = about["packages"]["torch"]
    about["packages"] |= {"torch": "2.1.0", "no-such-package": "1.0"}
    (folder / "environment.json").write_text(json.dumps(about))
    out = runs.place.call("show", folder).out
    assert f"torch 2.1.0 (now {now}); no-such-package 1.0 (now none)\n" in out


def test_artifacts_that_are_gone_are_named(own: Callable[[], Any], runs: Any) -> None:
    """The numbers are in the run's own folder, so they are shown all the same."""
    place = own()
    folder = place.folder / runs.first.relative_to(runs.place.folder)
    shutil.rmtree((folder / "stages/02-prune").resolve())
    said = place.call("show", folder)
    assert said.code == 0 and "no longer in the store: prune\n" in said.out
    assert json.loads(place.call("show", folder, "--json").out)["removed"] == ["prune"]


def test_the_nan_of_an_older_run_is_null_as_json(own: Callable[[], Any], runs: Any) -> None:
    """Runs of before it was refused may have it, and JSON has none."""
    place = own()
    folder = place.folder / runs.first.relative_to(runs.place.folder)
    records = json.loads((folder / "metrics.json").read_text())
    records[1]["metrics"]["validation_loss"] = float("nan")
    (folder / "metrics.json").write_text(json.dumps(records))
    said = place.call("show", folder, "--json")
    shown = json.loads(said.out, parse_constant=pytest.fail)
    assert shown["stages"][1]["metrics"]["validation_loss"] is None


def test_a_sweeps_folder_shows_its_points(own: Callable[[], Any]) -> None:
    """The table that the sweep ended with; a point's folder is a run like any other."""
    place = own()
    ended = place.call("run", "mine.yaml", "-m", "stages.evaluate.max_length=4,8")
    assert ended.code == 0, ended.err
    (sweep,) = (place.folder / "outputs/sweeps/mine").iterdir()
    said = place.call("show", sweep.relative_to(place.folder))
    table = [line for line in ended.out.splitlines() if line.startswith("│ max_length=")]
    assert len(table) >= 2 and all(line in said.out for line in table[-2:])
    assert "state     finished" in place.call("show", sweep / "max_length=4").out
    assert place.call("show", sweep, "--json").code == 2
    (sweep / "sweep.json").write_text("{}")
    assert "sweep.json is not a sweep's" in place.call("show", sweep).err
