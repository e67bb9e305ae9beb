"""What the engine promises of every stage, in this process: a pico model is made and pruned."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.files import MANIFEST, hash_file
from compressor.core.processes import sigterm_as_keyboard_interrupt
from compressor.core.progress import Progress
from compressor.engine.engine import Engine
from compressor.engine.plan import Plan, plan
from compressor.engine.run_folder import Run
from compressor.engine.store.store import SELF, Store, writer_lock
from compressor.models.loading import WEIGHTS
from compressor.recipe.compose import compose
from compressor.stages.prune import Prune
from tests.engine.conftest import TWO_STAGES
from tests.harness.artifacts import flip


class Heard(Progress):
    """Says nothing to a person; keeps it."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True), quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def plan_stages(outputs: Path) -> Plan:
    path = outputs.parent / "mine.yaml"
    path.write_text(TWO_STAGES)
    return plan(compose(str(path), [f"outputs={outputs}"]), Store(outputs / "store"))


def execute(outputs: Path, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Run the recipe; the records of its two stages."""
    ready, store = plan_stages(outputs), Store(outputs / "store")
    run = Run.create(outputs / "runs" / str(time.time_ns()), ready, store)
    Engine(ready, store, run, progress or Heard()).execute()
    return run.records


@pytest.fixture
def outputs(pruned: Path, tmp_path: Path) -> Path:
    """A copy of the store of an undisturbed run."""
    shutil.copytree(pruned / "outputs/store", tmp_path / "outputs/store")
    return tmp_path / "outputs"


def weights(outputs: Path, stage: str) -> Path:
    key = plan_stages(outputs).node(stage).key
    assert key is not None
    return outputs / "store" / key / WEIGHTS


def test_the_last_model_of_a_run_is_compared_byte_by_byte_and_one_before_it_is_not(outputs) -> None:
    """What is handed to a person is right; what nobody reads costs no time."""
    before = hash_file(weights(outputs, "prune"))
    flip(weights(outputs, "load"))
    assert [record["cached"] for record in execute(outputs)] == [True, True]
    flip(weights(outputs, "prune"))
    assert [record["cached"] for record in execute(outputs)][1] is False
    assert hash_file(weights(outputs, "prune")) == before
    assert list((outputs / "store" / "damaged").iterdir())


def after(stage: type[Any], monkeypatch: Any, act: Callable[[Any], None]) -> None:
    """Have `act` take a stage's context once it has run."""
    run = stage.run

    def and_then(self: Any, inputs: Any, context: Any) -> Any:
        made = run(self, inputs, context)
        act(context)
        return made

    monkeypatch.setattr(stage, "run", and_then)


def half_made(context: Any) -> None:
    (context.folder / "half").write_text("x")
    raise ValueError("no more")


def out_of_memory(context: Any) -> None:
    raise OSError(12, "Cannot allocate memory")


def not_a_number(context: Any) -> None:
    context.metrics["score"] = math.nan


@pytest.mark.parametrize(
    ("act", "said"), [(half_made, "no more"), (not_a_number, "nan"), (out_of_memory, "; lower ")]
)
def test_a_stage_that_fails_leaves_no_artifact_and_nothing_half_made(
    outputs: Path, monkeypatch, act, said: str
) -> None:
    """Nor does one that measured what is no number; memory that is refused is told with a cure."""
    artifact = weights(outputs, "prune").parent
    shutil.rmtree(artifact)
    after(Prune, monkeypatch, act)
    with pytest.raises(StageError, match=f"stage 'prune': .*{said}"):
        execute(outputs)
    assert not artifact.exists()
    assert not (outputs / "store" / "partial" / artifact.name).exists()
    assert weights(outputs, "load").is_file()


def test_a_library_that_breaks_as_a_stage_is_interrupted_is_no_failure(
    outputs: Path, monkeypatch
) -> None:
    """Ctrl-C may meet a library's own clean-up: torch then says that a stack is empty."""

    def work(*_: Any) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("trying to pop from empty mode stack")

    shutil.rmtree(weights(outputs, "prune").parent)
    monkeypatch.setattr(Prune, "run", work)
    with pytest.raises(KeyboardInterrupt):
        execute(outputs)


def test_a_library_that_catches_what_ends_a_stage_is_no_failure(outputs: Path, monkeypatch) -> None:
    """An import that SIGTERM cuts short may be tried again, by half of NumPy."""

    def work(*_: Any) -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise RecursionError("maximum recursion depth exceeded")

    shutil.rmtree(weights(outputs, "prune").parent)
    monkeypatch.setattr(Prune, "run", work)
    with sigterm_as_keyboard_interrupt(), pytest.raises(KeyboardInterrupt):
        execute(outputs)


def test_what_changes_while_it_is_read_is_stored_under_no_key(outputs: Path, monkeypatch) -> None:
    """Its key was made of what it was before: that is looked at before a stage runs, and after."""
    artifact, looks = weights(outputs, "prune").parent, []
    shutil.rmtree(artifact)

    def look(*_: Any) -> None:
        looks.append(artifact.exists())
        if len(looks) == 2:
            raise StageError("its files changed")

    monkeypatch.setattr(Plan, "require_unchanged", look)
    with pytest.raises(StageError, match="its files changed"):
        execute(outputs)
    assert looks == [False, False] and not artifact.exists()


def test_a_stage_begins_once_the_writer_before_it_has_ended(outputs: Path) -> None:
    """A worker whose parent was killed may still write for a moment."""
    artifact = weights(outputs, "prune").parent
    shutil.rmtree(artifact)
    (outputs / "store" / "partial" / artifact.name).mkdir(parents=True, exist_ok=True)
    written = outputs / "store" / "partial" / artifact.name / "half"
    written.write_text("x")
    store = Store(outputs / "store")
    with store.lock(writer_lock(artifact.name), lambda: None):
        run = threading.Thread(target=execute, args=(outputs,))
        run.start()
        run.join(1)
        assert run.is_alive() and written.is_file()
    run.join()
    assert (artifact / WEIGHTS).is_file() and not (artifact / "half").exists()


def test_what_a_run_uses_counts_as_used_then(outputs: Path) -> None:
    """So that a collection of what is old leaves it."""
    manifests = [weights(outputs, stage).with_name(MANIFEST) for stage in ("load", "prune")]
    for path in manifests:
        os.utime(path, (1.6e9, 1.6e9))
    execute(outputs)
    assert all(time.time() - path.stat().st_mtime < 600 for path in manifests)


def test_no_secret_of_a_recipe_is_in_a_manifest(outputs: Path, monkeypatch) -> None:
    """Where it decides the result, it is in the key."""
    monkeypatch.setattr(Prune, "parameters", lambda _: {"api_key": "hunter2-hunter2"})
    execute(outputs)
    written = weights(outputs, "prune").with_name(MANIFEST).read_text()
    assert "hunter2" not in written and '"api_key": "<redacted>"' in written


def test_the_nan_of_an_older_manifest_is_null_in_records(outputs: Path) -> None:
    """Versions before wrote NaN into JSON; a run that met one ended in a traceback."""
    for path in outputs.glob(f"store/*/{MANIFEST}"):
        about = json.loads(path.read_text())
        del about[SELF]
        about["metrics"]["of_before"] = math.nan
        path.write_text(json.dumps(about))
    assert all(record["cached"] for record in execute(outputs))
    (metrics,) = outputs.glob("runs/*/metrics.json")
    records = json.loads(metrics.read_text(), parse_constant=pytest.fail)
    assert [record["metrics"]["of_before"] for record in records] == [None, None]
