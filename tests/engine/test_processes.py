"""A recipe in several processes: shared evaluation, other numbers of them, several machines."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from subprocess import STDOUT

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.errors import StageError
from compressor.core.files import list_accelerate_configs
from compressor.core.processes import child_environment
from compressor.data.examples import PSEUDO_LABELS
from compressor.engine.cluster import Follower, lead
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from compressor.training.launch_config import Processes, read_processes
from tests.faults import long_form
from tests.harness.command import Command, compressor, start
from tests.harness.runs import (
    find_stage,
    list_processes,
    wait_for_step,
    weights,
    without_times,
)

SUMMARIES = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, finetune, write, greedy, beams]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 96, validation: 8, test: 140}, max_source_length: 64, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.01, warmup_steps: 2}
stages:
  load: {}
  finetune: {epochs: 8}
  write: {stage: pseudo_label, max_length: 24}
  greedy: {stage: evaluate, max_length: [8, 24], demo_text: "The Secretary shall give grants."}
  beams: {stage: evaluate, max_length: [8, 16], num_beams: 2, min_length: 4}
"""
LABELS = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, finetune, evaluate, exported, scored]
model:
  config: {vocab_size: 400, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,
           intermediate_size: 48}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 96, validation: 270, test: 300}, max_source_length: 64}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2}
stages:
  load: {}
  finetune: {}
  evaluate: {threshold: tuned}
  exported: {stage: export, format: onnx}
  scored: {stage: evaluate, models: [exported]}
"""


def check_same_results(folder: Path, recipe: str, stages: dict[str, str], count: int) -> Command:
    """Run a recipe in one process, and some stages (name → file) again in several: the same."""
    (folder / "mine.yaml").write_text(recipe)
    one = compressor("run", "mine.yaml", "outputs=one", cwd=folder)
    assert one.code == 0, one.err
    shutil.copytree(folder / "one", folder / "two", symlinks=True)
    for name in stages:
        shutil.rmtree(folder / "two/store" / one.record(name)["key"])
    (folder / "temporary").mkdir()
    command = ("run", "mine.yaml", "outputs=two", f"launch.num_processes={count}")
    two = compressor(*command, cwd=folder, TMPDIR=str(folder / "temporary"))
    assert two.code == 0, two.err
    assert {record["name"] for record in two.records() if not record["cached"]} == {*stages}
    assert not list((folder / "temporary").glob("torchelastic*"))
    for name, file in stages.items():
        metrics = [without_times(done.record(name)["metrics"]) for done in (one, two)]
        assert metrics[0] == metrics[1]
        files = [find_stage(done.run_folder, name) / file for done in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes()
    return two


def test_shared_summaries_score_as_one_processs(tmp_path) -> None:
    """Greedy, beams, a demo text and pseudo-labels: all metrics to the last digit, all files to the
    byte. Of three processes one has no batch of the greedy rows, which make two, and two have none
    of the demo text.
    """
    stages = {"write": PSEUDO_LABELS, "greedy": "predictions.csv", "beams": "predictions.csv"}
    metrics = check_same_results(tmp_path, SUMMARIES, stages, 3).record("greedy")["metrics"]
    assert 0 < metrics["rougeLsum"] < 1 and metrics["demo"]["summary"]


@long_form
def test_shared_labels_score_as_one_processs(tmp_path) -> None:
    """Tuned thresholds, loss and all scores; what ONNX Runtime runs stays with one process."""
    pytest.importorskip("onnxruntime")
    stages = dict.fromkeys(("evaluate", "scored@exported"), "predictions.csv")
    done = check_same_results(tmp_path, LABELS, stages, 2)
    assert len(set(done.record("evaluate")["metrics"]["thresholds"].values())) > 1


def kill_after_a_checkpoint(folder: Path, above: int, *overrides: str) -> int:
    """Start a run, and kill it once a checkpoint of a later step is there; that step."""
    process = start("run", "mine.yaml", *overrides, cwd=folder)
    last = wait_for_step(process, above)
    process.send(signal.SIGKILL)  # its workers end themselves
    process.wait()
    return last


@long_form
def test_a_killed_training_goes_on_in_other_processes(recipe, run) -> None:
    """Begun in two processes with FSDP2, gone on in one, and then in two with DDP: the weights of
    an undisturbed run but for rounding, and `environment.json` tells of both changes.
    """
    path = recipe(
        ("{epochs: 1}\n  prune", "{epochs: 12}\n  prune"),
        ("train: 64", "train: 192"),  # longer steps, not more: rounding adds up over these
        ("batch_size: 8", "batch_size: 24"),
        ("learning_rate: 0.003", "learning_rate: 0.0005"),
    )
    only = "skip=[prune, recover, evaluate]"
    undisturbed = run("run", path, "outputs=undisturbed", only)
    assert undisturbed.code == 0, undisturbed.err
    first = kill_after_a_checkpoint(path.parent, 0, only, "launch.config_file=fsdp2")
    second = kill_after_a_checkpoint(path.parent, first + 3, only)
    done = run("run", path, only, "launch.num_processes=2")
    assert done.code == 0, done.err
    assert "goes on from step" in done.out
    folders = [undisturbed.run_folder, done.run_folder]
    expected, tensors = (load_file(weights(folder, "finetune")) for folder in folders)
    assert expected.keys() == tensors.keys()
    for name, tensor in expected.items():
        assert (tensors[name] - tensor).abs().mean() < 1e-4, name
        assert (tensors[name] - tensor).abs().max() < 2e-3, name
    assert any(not torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    about = json.loads((folders[1] / "environment.json").read_text())
    changes = about["resumed"]
    assert [change["stage"] for change in changes] == ["finetune", "finetune"]
    assert [change["processes"] for change in changes] == [[2, 1], [1, 2]]
    assert [change["scheme"] for change in changes] == [
        ["fsdp2", "one process"], ["one process", "ddp"],
    ]  # fmt: skip
    assert first <= changes[0]["at_step"] <= second <= changes[1]["at_step"] < 96
    assert about["processes"] == 2
    assert "resumed" not in json.loads((folders[0] / "environment.json").read_text())


def machine_configs(folder: Path) -> list[str]:
    """Write the checked-in config, as two machines have it: here both are this one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = list_accelerate_configs()["several_machines"].read_text()
    text = text.replace("main_process_port: 29500", f"main_process_port: {port}")
    for rank in (0, 1):
        ranked = text.replace("machine_rank: 0 ", f"machine_rank: {rank} ")
        (folder / f"machine{rank}.yaml").write_text(ranked)
    return [f"launch.config_file=machine{rank}.yaml" for rank in (0, 1)]


def run_on_two_machines(path: Path, *overrides: str) -> tuple[Command, int, str]:
    """Run a recipe on both; what the first says, and the second's exit code and words."""
    first, second = machine_configs(path.parent)
    follower = start("run", path, second, *overrides, cwd=path.parent, stderr=STDOUT)
    leader = compressor("run", path, first, *overrides, cwd=path.parent)
    return leader, follower.wait(60), follower.out


def test_two_machines_make_one_run(recipe, finished) -> None:
    """The same command on both: one run directory, one store, nothing made twice, and what one
    process scores; the second machine ends when the first does, and well.
    """
    path = recipe()
    two, code, text = run_on_two_machines(path)
    assert (two.code, code) == (0, 0), two.err + text
    tasks = [line.split()[-1] for line in text.splitlines() if "takes part" in line]
    assert tasks == ["finetune", "recover", "evaluate"]
    assert len(list(path.parent.glob("outputs/runs/mine/*"))) == 1
    assert list((path.parent / "outputs/store/partial").iterdir()) == []
    for name in ("finetune", "recover"):
        losses = [done.record(name)["metrics"]["train_loss"] for done in (finished, two)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    folders = [find_stage(done.run_folder, "prune") for done in (finished, two)]
    masks = [load_file(folder / "masks.safetensors") for folder in folders]
    assert all(torch.equal(masks[1][name], mask) for name, mask in masks[0].items())


def test_a_machine_says_when_the_first_one_fails(recipe) -> None:
    """A rate that spoils the loss: exit code 1 on both, and nobody left."""
    path = recipe()
    leader, code, text = run_on_two_machines(path, "training.learning_rate=1e30")
    assert leader.code == 1 and "learning rate 1e+30; the weights before that" in leader.err
    assert code == 1 and "machine 0 has ended without all that was planned" in text, text
    assert list_processes(path.parent) == []


def test_a_machine_with_another_plan_says_so(recipe, monkeypatch) -> None:
    """Another seed on the second machine: a StageError that names the first stage it is in."""
    path, said = recipe(), list[str]()
    monkeypatch.chdir(path.parent)
    configs, store = machine_configs(path.parent), Store(path.parent / "outputs/store")

    def plan_on(machine: int, *overrides: str) -> tuple[Plan, Store, Processes]:
        planned = plan(compose(str(path), [configs[machine], *overrides]), store)
        return planned, store, read_processes(planned.composed.recipe.launch)

    with lead(*plan_on(0), said.append) as session:
        assert session is not None
        with pytest.raises(StageError, match="another plan: 'load' is not the same there"):
            Follower(*plan_on(1, "seed=5"), said.append).follow()
    assert said == ["machine 1 of 2: lends 1 processes to machine 0's run"]
    monkeypatch.setattr("compressor.engine.cluster.LEADER_SECONDS", 0.0)
    with pytest.raises(StageError, match="machine 0 has not begun this run"):
        Follower(*plan_on(1), print).follow()


def test_a_wait_for_another_machine_ends_by_a_signal(recipe) -> None:
    """The first of two, whose second never comes: SIGTERM ends it, and what it started, in 15 s."""
    path = recipe(("finetune, prune, recover, evaluate", "finetune"))
    leader = start("run", path, machine_configs(path.parent)[0], cwd=path.parent)
    tasks = path.parent / "outputs/store/partial"
    deadline = time.monotonic() + 300
    while not list(tasks.glob("*.task/launcher")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    began = time.monotonic()
    leader.send(signal.SIGTERM)
    assert leader.wait(60) == 1 and "interrupted" in leader.err
    assert time.monotonic() - began < 15
    assert list_processes(path.parent) == []


def test_a_process_that_dies_ends_the_stage(recipe, run) -> None:
    """SIGKILL of the second of two while they train: one message, exit code 1, nobody left."""
    path = recipe(("{epochs: 1}\n  prune", "{epochs: 40}\n  prune"))
    process = start("run", path, "launch.num_processes=2", cwd=path.parent)
    wait_for_step(process)
    running = list_processes(path.parent)
    launchers = {known.ppid() for known in running}
    *_, worker = (known for known in running if known.pid not in launchers)
    worker.kill()
    assert process.wait(60) == 1
    assert "stage 'finetune': a worker process was killed by signal 9 (SIGKILL)" in process.err
    assert list(path.parent.glob("outputs/store/partial/*.resume/step-*"))


def test_what_was_started_ends_with_who_started_it(tmp_path: Path) -> None:
    """By SIGKILL, which nobody can pass on: a worker ends with its parent, and with the launcher
    between them.
    """
    first = "from compressor.core.processes import end_with_parent; import time"
    works = f"{first}; end_with_parent(); print('works', flush=True); time.sleep(60)"
    launches = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {works!r}])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", launches],
        env=child_environment(),
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert launcher.stdout is not None and launcher.stdout.readline() == b"works\n"
    launcher.kill()
    began = time.monotonic()
    assert launcher.communicate()[0] == b""  # until the worker, too, has let go of it
    assert time.monotonic() - began < 5
