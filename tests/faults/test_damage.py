"""Files of the store, of checkpoints and of runs are damaged: never a wrong result in silence."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import DamagedArtifact
from compressor.engine.store.store import Store
from tests.faults import LONG, trials
from tests.faults.stored import DAMAGE, artifacts, key_of, whole_only
from tests.harness.artifacts import flip
from tests.harness.command import compressor, start
from tests.harness.runs import kill, wait_for_step, without_times

STAGES = ("load", "finetune", "prune", "evaluate")
LONGER = ("mine.yaml", "-q", "stages.finetune.epochs=12", "skip=[prune, evaluate]")


def copy_outputs(whole: Path, folder: Path) -> Path:
    """The outputs of the undisturbed run, as one's own."""
    shutil.copytree(whole / "outputs", folder / "outputs", symlinks=True)
    return folder / "outputs"


def read_metrics(outputs: Path) -> list[Any]:
    """What the latest run says that its stages measured, without their times."""
    run = max((outputs / "runs" / "mine").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    records = json.loads((run / "metrics.json").read_text())
    return [without_times(record["metrics"]) for record in records]


@pytest.mark.parametrize("kind", DAMAGE if LONG else ["one bit flipped"])
def test_a_damaged_file_of_an_artifact_is_found_by_whoever_reads_it(
    kind: str, whole: Path, mine: Path
) -> None:
    """Whichever file, whichever stage: the artifact is made again, to the same bytes."""
    draw = random.Random(kind)
    expected = artifacts(whole / "outputs")
    for _ in range(trials(6, 1)):
        outputs = copy_outputs(whole, mine)
        stage = draw.choice(STAGES)
        folder = outputs / "store" / key_of(outputs, stage)
        for later in STAGES[STAGES.index(stage) + 1 :][:1]:  # so that somebody reads it
            shutil.rmtree(outputs / "store" / key_of(outputs, later))
        path = draw.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
        DAMAGE[kind](path)
        with pytest.raises((DamagedArtifact, FileNotFoundError)):
            Store(outputs / "store").verify(folder.name)
        done = compressor("run", "mine.yaml", "-q", cwd=mine)
        assert done.code == 0, (stage, path.name, done.err)
        assert artifacts(outputs) == expected
        whole_only(outputs)
        assert read_metrics(outputs) == read_metrics(whole / "outputs")
        shutil.rmtree(outputs)


def raise_score(artifact: Path) -> None:
    path = artifact / "manifest.json"
    about = json.loads(path.read_text())
    about["metrics"]["rougeLsum"] = 0.99
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    "damage",
    [raise_score, lambda artifact: flip(artifact / "predictions.csv")],
    ids=["score", "text"],
)
def test_a_cached_run_hands_over_no_damaged_scores_or_texts(damage, whole, mine) -> None:
    """Sizes alone were looked at of what no stage reads: an edited metric, and a flipped bit of
    `predictions.csv`, went into the run's tables and report.
    """
    outputs = copy_outputs(whole, mine)
    damage(outputs / "store" / key_of(outputs, "evaluate"))
    done = compressor("run", "mine.yaml", cwd=mine)
    assert done.code == 0, done.err
    assert read_metrics(outputs) == read_metrics(whole / "outputs")
    (before,) = whole.glob("outputs/runs/mine/*/predictions.csv")
    assert (done.run_folder / "predictions.csv").read_bytes() == before.read_bytes()
    assert len(list((outputs / "store" / "damaged").iterdir())) == 1


def test_a_file_that_no_manifest_names_changes_no_model(whole: Path, mine: Path) -> None:
    """Masks put beside a model's weights were loaded with them; a hidden file is let be."""
    outputs = copy_outputs(whole, mine)
    store = outputs / "store"
    model, pruned = (store / key_of(outputs, name) for name in ("finetune", "prune"))
    shutil.copy(pruned / "masks.safetensors", model)
    (model / ".DS_Store").write_text("")
    shutil.rmtree(pruned)
    done = compressor("run", "mine.yaml", cwd=mine)
    assert done.code == 0
    assert "finetune: masks.safetensors is none of its files, and is set aside" in done.out
    assert len(list(store.glob("damaged/*/masks.safetensors"))) == 1
    assert (model / ".DS_Store").exists()
    (model / ".DS_Store").unlink()
    assert artifacts(outputs) == artifacts(whole / "outputs")


@pytest.fixture(scope="module")
def longer(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of a training that lasts long enough to be killed in it."""
    folder = tmp_path_factory.mktemp("longer")
    shutil.copy(whole / "mine.yaml", folder)
    assert compressor("run", *LONGER, cwd=folder).code == 0
    return folder


@pytest.mark.parametrize("kind", DAMAGE if LONG else ["one bit flipped"])
def test_a_training_does_not_go_on_from_a_damaged_checkpoint(kind: str, longer, mine) -> None:
    """A flipped bit of a weight was trained on in silence; half a history failed every run."""
    draw = random.Random(kind)
    for _ in range(trials(3, 1)):
        process = start("run", *LONGER, cwd=mine)
        wait_for_step(process)
        kill(process)
        (checkpoint,) = mine.glob("outputs/store/partial/*.resume/step-*")
        name = draw.choice(["tensors", "history.json", "sha256.json"])
        DAMAGE[kind](checkpoint / name)
        done = compressor("run", *LONGER, cwd=mine)
        assert done.code == 0, (name, done.err)
        assert artifacts(mine / "outputs") == artifacts(longer / "outputs")
        whole_only(mine / "outputs")
        shutil.rmtree(mine / "outputs")


# Files of a run's folder


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("run_started", {"process": None}),
        ("run_started", {"process": {"host": 3}}),
        ("progress", {"title": []}),
        ("stage_ended", {"name": None, "seconds": "long"}),
        ("run_ended", {"state": None}),
    ],
)
def test_watch_shows_what_it_can_of_another_versions_events(kind: str, change, whole, mine) -> None:
    """A key that an older version did not write, or of another type, was a traceback."""
    (run,) = (copy_outputs(whole, mine) / "runs" / "mine").iterdir()
    path = run / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    at = next(i for i, event in enumerate(events) if event["event"] == kind)
    events[at] = {k: v for k, v in (events[at] | change).items() if v is not None}
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    watched = compressor("watch", run, cwd=mine, seconds=30)
    assert watched.code == int(kind == "run_ended"), watched
    assert "evaluate" in watched.out
