"""A recipe in several processes: shared evaluation, other numbers of them, several machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from subprocess import STDOUT
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from compressor.core.errors import StageError
from compressor.core.files import accelerate_configs, recipes_folder
from compressor.core.processes import child_environment
from compressor.core.ranks import Ranks
from compressor.data.examples import FILE
from compressor.engine.cluster import POLL_SECONDS, Follower, lead
from compressor.engine.plan import plan
from compressor.engine.store.store import MACHINE_LOCKS, Store
from compressor.recipe.compose import compose
from compressor.training.launch_config import Launch, Processes, Scheme, read_processes
from tests.harness.command import Command, compressor, start
from tests.harness.runs import list_processes, wait_for_step

SUMMARIES = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, finetune, write, greedy, beams]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 200, validation: 8, test: 190}, max_source_length: 128, max_target_length: 32}
training: {batch_size: 8, learning_rate: 0.01, warmup_steps: 2}
stages:
  load: {}
  finetune: {epochs: 4}
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
data: {rows: {train: 96, validation: 400, test: 500}, max_source_length: 96}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2}
stages:
  load: {}
  finetune: {}
  evaluate: {threshold: tuned}
  exported: {stage: export, format: onnx}
  scored: {stage: evaluate, models: [exported]}
"""
TIMES = {"samples_per_second", "seconds"}


def without_times(metrics: Any) -> Any:
    if isinstance(metrics, dict):
        return {key: without_times(v) for key, v in metrics.items() if key not in TIMES}
    return metrics


def once_more(folder: Path, first: Command, names: set[str], *arguments: str) -> Command:
    """Run again in `two/`, with all artifacts of `one/` but those of the named stages."""
    shutil.copytree(folder / "one", folder / "two", symlinks=True)
    for name in names:
        shutil.rmtree(folder / "two/store" / first.record(name)["key"])
    temporary = folder / "temporary"
    temporary.mkdir()
    again = compressor(
        "run", "mine.yaml", "outputs=two", *arguments, cwd=folder, TMPDIR=str(temporary)
    )
    assert again.code == 0, again.err
    fresh = {record["name"] for record in again.records() if not record["cached"]}
    assert fresh == names
    assert not list(temporary.glob("torchelastic*"))
    return again


def artifact(done: Command, name: str, file: str) -> bytes:
    (found,) = done.run_folder.glob(f"stages/*-{name}/{file}")
    return found.read_bytes()


def test_shared_summaries_score_as_one_processs(tmp_path) -> None:
    """Greedy, beams, a demo text and pseudo-labels: all metrics to the last digit, all files to the
    byte. Of three processes one has no batch of the greedy rows, which make two, and two have none
    of the demo text. No folder of torch's launcher stays behind.
    """
    (tmp_path / "mine.yaml").write_text(SUMMARIES)
    one = compressor("run", "mine.yaml", "outputs=one", cwd=tmp_path)
    assert one.code == 0, one.err
    names = {"write", "greedy", "beams"}
    two = once_more(tmp_path, one, names, "launch.num_processes=3")
    for name in names:
        metrics = [without_times(done.record(name)["metrics"]) for done in (one, two)]
        assert metrics[0] == metrics[1]
    assert 0 < one.record("greedy")["metrics"]["rougeLsum"] < 1
    assert two.record("greedy")["metrics"]["demo"]["summary"]
    for name in names - {"write"}:
        assert artifact(one, name, "predictions.csv") == artifact(two, name, "predictions.csv")
    assert artifact(one, "write", FILE) == artifact(two, "write", FILE)


def test_shared_labels_score_as_one_processs(tmp_path) -> None:
    """Tuned thresholds, loss and all scores; what ONNX Runtime runs stays with one process."""
    pytest.importorskip("onnxruntime")
    (tmp_path / "mine.yaml").write_text(LABELS)
    one = compressor("run", "mine.yaml", "outputs=one", cwd=tmp_path)
    assert one.code == 0, one.err
    two = once_more(tmp_path, one, {"evaluate", "scored@exported"}, "launch.num_processes=2")
    for name in ("evaluate", "scored@exported"):
        metrics = [without_times(done.record(name)["metrics"]) for done in (one, two)]
        assert metrics[0] == metrics[1]
        assert artifact(one, name, "predictions.csv") == artifact(two, name, "predictions.csv")
    assert len(set(one.record("evaluate")["metrics"]["thresholds"].values())) > 1


def test_every_batch_is_one_processs() -> None:
    """Shares of 5 batches among 3: none twice, none left out; bars move by what all have done."""
    batches = [[0, 1], [2, 3, 4], [5], [6, 7], [8]]
    shares = [list(Ranks(rank, 3).shares(batches)) for rank in range(3)]
    assert [[batch for batch, _ in share] for share in shares] == [
        [[0, 1], [6, 7]], [[2, 3, 4], [8]], [[5]],
    ]  # fmt: skip
    assert [[done for _, done in share] for share in shares] == [[6, 3], [6, 3], [6]]
    assert list(Ranks(6, 7).shares(batches)) == []


def kill_after_a_checkpoint(folder: Path, above: int, *overrides: str) -> int:
    """Start a run, and kill it once a checkpoint of a later step is there; that step."""
    process = start("run", "mine.yaml", *overrides, cwd=folder)
    last = wait_for_step(process, above)
    process.send(signal.SIGKILL)  # its workers end themselves
    process.wait()
    return last


def test_a_killed_training_goes_on_in_other_processes(recipe, run) -> None:
    """Begun in two processes with FSDP2, gone on in one, and then in two with DDP: the weights of
    an undisturbed run but for rounding, and `environment.json` tells of both changes.
    """
    path = recipe(
        ("{epochs: 1}\n  prune", "{epochs: 30}\n  prune"),
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
    folders = [path.parent / result.run_folder for result in (undisturbed, done)]
    mine, theirs = (load_file(f / "stages/01-finetune/model.safetensors") for f in folders)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (theirs[name] - tensor).abs().mean() < 1e-4, name
        assert (theirs[name] - tensor).abs().max() < 2e-3, name
    assert any(not torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    about = json.loads((folders[1] / "environment.json").read_text())
    changes = about["resumed"]
    assert [change["stage"] for change in changes] == ["finetune", "finetune"]
    assert [change["processes"] for change in changes] == [[2, 1], [1, 2]]
    assert [change["scheme"] for change in changes] == [
        ["fsdp2", "one process"], ["one process", "ddp"],
    ]  # fmt: skip
    assert first <= changes[0]["at_step"] <= second <= changes[1]["at_step"] < 240
    assert about["processes"] == 2
    assert "resumed" not in json.loads((folders[0] / "environment.json").read_text())


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def machine_configs(folder: Path) -> list[str]:
    """The checked-in config, as two machines have it: here both are this one."""
    text = accelerate_configs()["several_machines"].read_text()
    text = text.replace("main_process_port: 29500", f"main_process_port: {free_port()}")
    for rank in (0, 1):
        own = text.replace("machine_rank: 0 ", f"machine_rank: {rank} ")
        (folder / f"machine{rank}.yaml").write_text(own)
    return [f"launch.config_file=machine{rank}.yaml" for rank in (0, 1)]


def test_two_machines_make_one_run(recipe, run) -> None:
    """The same command on both: one run directory, one store, nothing made twice, and what one
    process scores; the second machine ends when the first does, and well.
    """
    path = recipe()
    one = run("run", path, "outputs=one")
    configs = machine_configs(path.parent)
    helper = start("run", path, configs[1], cwd=path.parent, stderr=STDOUT)
    leader = run("run", path, configs[0])
    code, told = helper.wait(60), helper.out
    assert leader.code == 0, leader.err + told
    assert code == 0, told
    assert [line.split()[-1] for line in told.splitlines() if "takes part" in line] == [
        "finetune", "recover", "evaluate",
    ]  # fmt: skip
    assert len(list(path.parent.glob("outputs/runs/mine/*"))) == 1
    assert list((path.parent / "outputs/store/partial").iterdir()) == []
    for name in ("finetune", "recover"):
        losses = [done.record(name)["metrics"]["train_loss"] for done in (one, leader)]
        assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    masks = [load_file(done.run_folder / "stages/02-prune/masks.safetensors") for done in
             (one, leader)]  # fmt: skip
    assert all(torch.equal(masks[1][name], mask) for name, mask in masks[0].items())


def test_a_machine_says_when_the_first_one_fails(recipe, run) -> None:
    """A rate that spoils the loss: exit code 1 on both, and nobody left."""
    path = recipe()
    configs = machine_configs(path.parent)
    spoils = "training.learning_rate=1e30"
    helper = start("run", path, configs[1], spoils, cwd=path.parent, stderr=STDOUT)
    leader = run("run", path, configs[0], spoils)
    code, told = helper.wait(60), helper.out
    assert leader.code == 1 and "learning rate 1e+30; the weights before that" in leader.err
    assert code == 1, told
    assert "machine 0 has ended without all that was planned" in told
    assert list_processes(path.parent) == []


def test_a_machine_with_another_plan_is_told(recipe, monkeypatch) -> None:
    """Another seed on the second machine: a StageError that names the first stage it is in."""
    path = recipe()
    monkeypatch.chdir(path.parent)
    configs = machine_configs(path.parent)
    store = Store(path.parent / "outputs/store")
    planned = plan(compose(str(path), [configs[0]]), store)
    found = read_processes(planned.composed.recipe.launch)
    told: list[str] = []
    with lead(planned, store, found, told.append) as session:
        assert session is not None
        mine = plan(compose(str(path), [configs[1], "seed=5"]), store)
        with pytest.raises(StageError, match="another plan: 'load' is not the same there"):
            Follower(mine, store, read_processes(mine.composed.recipe.launch), told.append).follow()
    assert told == ["machine 1 of 2: lends 1 processes to machine 0's run"]


def test_a_machine_does_not_wait_for_ever_for_the_first(recipe, monkeypatch) -> None:
    """Which nobody started: a StageError that says what to do."""
    path = recipe()
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr("compressor.engine.cluster.LEADER_SECONDS", 0.0)
    (path.parent / "outputs").mkdir()
    mine = plan(compose(str(path), machine_configs(path.parent)[1:]), Store(path.parent / "store"))
    helper = Follower(
        mine, Store(path.parent / "store"), read_processes(mine.composed.recipe.launch), print
    )
    with pytest.raises(StageError, match="machine 0 has not begun this run"):
        helper.follow()


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
    process = start("run", path, "launch.num_processes=2", cwd=path.parent, fresh=True)
    wait_for_step(process)
    workers = subprocess.run(
        ["pgrep", "-f", "--", f"-u -m compressor.engine.worker {path.parent}"],
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
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


def test_a_machine_that_came_and_went_is_noted(recipe, monkeypatch) -> None:
    """While it is there nothing is; where it comes again that is taken back."""
    path = recipe()
    monkeypatch.chdir(path.parent)
    store = Store(path.parent / "outputs/store")
    planned = plan(compose(str(path), machine_configs(path.parent)[:1]), store)
    started = read_processes(planned.composed.recipe.launch)
    lock = store.folder / "locks" / f"{MACHINE_LOCKS}{started.address}-{started.port}.1.lock"
    with lead(planned, store, started, print) as session:
        assert session is not None
        seen = []
        for is_held in (False, True, False, True):
            with FileLock(lock) if is_held else nullcontext():
                time.sleep(3 * POLL_SECONDS)
                seen.append((set(session.gone), session.one_is_gone.is_set()))
    assert seen == [(set(), False), (set(), False), ({1}, True), (set(), False)]


def test_checked_in_configs_mean_what_they_say() -> None:
    """Each is read; a number of processes replaces its own; a path is taken too."""
    configs = accelerate_configs()
    assert list(configs) == ["ddp", "fsdp2", "several_machines"]
    assert read_processes(Launch(num_processes=3)) == Processes(3)
    found = read_processes(Launch(config_file="fsdp2", num_processes=4))
    assert (found.count, found.here, found.several) == (4, 4, True)
    assert found.scheme == Scheme(kind="fsdp2", reshard_after_forward=True)
    assert read_processes(Launch(config_file="ddp")).scheme.kind == "ddp"
    found = read_processes(Launch(config_file=str(configs["several_machines"])))
    assert (found.count, found.here, found.machines, found.machine) == (2, 1, 2, 0)
    assert (found.address, found.port) == ("127.0.0.1", 29500)
    assert recipes_folder() in configs["ddp"].parents


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no file and no checked-in config 'fsdp'; did you mean 'fsdp2'?"),
        ("use_cpu: true", "Accelerate starts one process where use_cpu is true"),
        ("distributed_type: MULTI_CPU", "set distributed_type: MULTI_GPU and use_cpu: false"),
        ("distributed_type: FDSP", "distributed_type: no 'FDSP' here; did you mean 'FSDP'?"),
        ("distributed_type: FSDP", "fsdp_config.fsdp_version: only 2 is offered"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, fsdp_offload_params: true}",
            "fsdp_config.fsdp_offload_params is not offered",
        ),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}",
            "DeepSpeed's ZeRO is not supported: take the config fsdp2",
        ),
        ("mixed_precision: fp16", "mixed_precision: only `training.precision` decides"),
        ("num_machines: 2\nnum_processes: 4", "main_process_ip: several machines need"),
        ("num_machines: 2\nmachine_rank: 2", "machine_rank is 2, of 2 machines"),
        ("num_processes: many", "num_processes is 'many', not a number"),
        ("[1, 2]", "expected a mapping, as `accelerate config` writes"),
        (
            "num_machines: 2\nnum_processes: 3\nmain_process_ip: a",
            "3 processes do not divide over 2 machines",
        ),
    ],
)
def test_a_config_that_is_wrong_is_told_when_planning(tmp_path, text, expected) -> None:
    """With what is offered instead, or the nearest name."""
    name = "fsdp"
    if text is not None:
        (tmp_path / "mine.yaml").write_text(text)
        name = str(tmp_path / "mine.yaml")
    with pytest.raises(ValueError, match=re.escape(expected)):
        read_processes(Launch(config_file=name))


def test_the_command_tells_of_a_wrong_config_and_does_not_list_them(recipe, run) -> None:
    """Exit code 2, the key's path, no traceback; no config is shown as a recipe."""
    told = run("plan", recipe(), "launch.config_file=fsdp")
    assert told.code == 2
    assert "launch.config_file: no file and no checked-in config 'fsdp'" in told.err
    told = run("plan", recipe(), "launch.config_file=zero3")
    assert told.code == 2
    assert "launch.config_file: zero3: DeepSpeed's ZeRO is not supported" in told.err
    assert "accelerate" not in run("recipes").out
