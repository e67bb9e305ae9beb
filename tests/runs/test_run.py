"""A recipe, as a user runs it: results, reruns, kills, several processes, failures."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.files import hash_file
from tests.harness.command import Command, compressor, start
from tests.harness.runs import find_stage, kill, losses, wait_for_step, weights

LONGER = ("{epochs: 1}\n  prune", "{epochs: 6}\n  prune")
TRAINED_ALONE = ("finetune, prune, recover, evaluate", "finetune")
STAGES = ["load", "finetune", "prune", "recover", "evaluate"]


def load_masks(done: Command, name: str) -> dict[str, torch.Tensor]:
    return load_file(find_stage(done.run_folder, name) / "masks.safetensors")


def test_a_run_leaves_what_explains_it_and_a_second_run_repeats_nothing(finished, tmp_path) -> None:
    """Metrics, resolved recipe, environment, predictions and links, all below `outputs`; again: all
    cached, no torch; an edited recipe runs what it changes.
    """
    names = {path.name for path in finished.run_folder.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.json", "predictions.csv"} <= names
    assert {"report.html", "README.md", "stages"} <= names
    assert {path.name for path in finished.cwd.iterdir()} == {"mine.yaml", "outputs"}
    records = finished.records()
    assert [record["name"] for record in records] == STAGES
    assert not any(record["cached"] for record in records)
    assert 0 <= records[-1]["metrics"]["rougeLsum"] <= 1
    assert set(records[-1]["metrics"]["lengths"]) == {"8", "16"}
    shutil.copytree(finished.cwd, tmp_path, symlinks=True, dirs_exist_ok=True)
    again = compressor("run", "mine.yaml", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert again.code == 0 and all(record["cached"] for record in again.records())
    assert " torch\n" not in again.err
    edited = compressor("run", "mine.yaml", "stages.recover.epochs=2", cwd=tmp_path)
    run = [record["name"] for record in edited.records() if not record["cached"]]
    assert run == ["recover", "evaluate"]


def test_the_plan_counts_what_the_run_counts(finished) -> None:
    """Parameters and non-zero ratio of every stage, masks kept by training, reload included."""
    planned = json.loads(compressor("plan", "mine.yaml", "--json", cwd=finished.cwd).out)
    for plan, record in zip(planned, finished.records(), strict=True):
        assert record["parameters"] == plan["parameters"], plan["name"]
        assert record["nonzero_ratio"] == pytest.approx(plan["nonzero_ratio"], abs=2e-6)
    tensors = load_file(weights(finished.run_folder, "recover"))
    masks = load_masks(finished, "recover")
    assert masks
    assert all(torch.count_nonzero(tensors[name][~mask]) == 0 for name, mask in masks.items())
    predictions = finished.run_folder / "predictions.csv"
    scored = json.loads(compressor("score", predictions, "--json").out)
    assert scored == finished.record("evaluate")["metrics"]["lengths"]


def test_a_run_killed_again_and_again_ends_with_the_weights_of_an_undisturbed_one(
    recipe, run, tmp_path
) -> None:
    """SIGKILL at random moments of training, started again each time: the same SHA-256, and the
    very same loss curves.
    """
    path = recipe(LONGER, TRAINED_ALONE)
    arguments = ("run", path, "model.config.dropout_rate=0.1")
    expected = run(*arguments, "outputs=undisturbed")
    assert expected.code == 0, expected.err
    chance, last = random.Random(5), 0
    for _ in range(3):
        process = start(*arguments, cwd=tmp_path)
        last = wait_for_step(process, last)
        time.sleep(chance.uniform(0, 0.1))
        kill(process)
        for manifest in tmp_path.glob("outputs/store/*/manifest.json"):
            json.loads(manifest.read_text())
    final = run(*arguments)
    assert final.code == 0, final.err
    assert "goes on from step" in final.out
    digests = [hash_file(weights(done.run_folder, "finetune")) for done in (expected, final)]
    assert digests[0] == digests[1]
    for curve in ("train_losses", "validation_curve"):
        one, other = (done.record("finetune")["metrics"][curve] for done in (expected, final))
        assert one == other and len(one) > 5
    assert list((tmp_path / "outputs/store/partial").iterdir()) == []


def test_two_processes_give_one_processs_losses_and_masks(finished, recipe, run) -> None:
    """With dropout 0: the loss curve, equal masks, another batch size a rank or not.

    The first loss is equal but for rounding. Then Adam divides each gradient by its own size: where
    that is nearly 0, the order of a sum decides its sign, and a weight moves 0.003 the other way.
    That has made 2e-4 of a later loss.
    """
    path = recipe()
    two = run("run", path, "outputs=two", "launch.num_processes=2", "skip=[evaluate]")
    micro = run("run", path, "outputs=micro", "training.micro_batch_size=3", "skip=[evaluate]")
    assert (two.code, micro.code) == (0, 0), two.err + micro.err
    every = (finished, two, micro)
    for name in ("finetune", "recover"):
        one, *others = (losses(find_stage(done.run_folder, name)) for done in every)
        assert len(one) == 8
        assert all(other == pytest.approx(one, abs=1e-3) for other in others)
        if name == "finetune":
            assert all(other[0] == pytest.approx(one[0], abs=1e-5) for other in others)
    places = [
        weights(done.run_folder, "prune").with_name("masks.safetensors") for done in every[:2]
    ]
    masks = [load_file(place) for place in places]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    figures = [done.record("finetune")["metrics"]["validation_loss"] for done in every]
    assert figures[1:] == pytest.approx([figures[0]] * 2, abs=1e-3)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_weights(
    recipe, run, tmp_path
) -> None:
    """Exit code 1, one message, no artifact of the failed stage, the last weights kept."""
    failed = run("run", recipe(TRAINED_ALONE), "training.learning_rate=1e30")
    assert failed.code == 1
    assert re.search("stage 'finetune': the (loss|gradient's norm) is (nan|inf)", failed.err)
    assert "learning_rate" in failed.err
    (kept,) = tmp_path.glob("outputs/store/partial/*.resume/step-*/tensors")
    assert any(name.startswith("model.") for name in load_file(kept))
    assert len(list(tmp_path.glob("outputs/store/*/manifest.json"))) == 1


def test_sizes_alone_need_no_data(recipe, run, tmp_path) -> None:
    """With nothing trained or scored, a recipe on a data set of the hub runs without a network;
    `outputs=` moves store and runs together.
    """
    path = recipe(
        ("/data: bills", "/data: billsum"), ("rows: {train: 64, validation: 16, test: 8}, ", "")
    )
    done = run("run", path, "training=none", "model.tokenizer=null", "outputs=elsewhere")
    assert done.code == 0, done.err
    assert {item.name for item in tmp_path.iterdir()} == {"mine.yaml", "elsewhere"}


OF_CLUSTERS = [
    "RANK=1 WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511",
    "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 GROUP_RANK=2 OMPI_COMM_WORLD_SIZE=4 "
    "PMI_SIZE=4 PMI_RANK=2 PET_NNODES=4 PET_NPROC_PER_NODE=3 ACCELERATE_USE_FSDP=true "
    "FSDP_VERSION=2 ACCELERATE_MIXED_PRECISION=fp16 ACCELERATE_DYNAMO_BACKEND=INDUCTOR "
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=3",
]


@pytest.mark.parametrize("processes", [1, 2])
def test_what_a_cluster_sets_changes_no_run(finished, recipe, run, processes) -> None:
    """In one process and in two, which torch's launcher starts: the losses are those without."""
    path = recipe(TRAINED_ALONE)
    variables = dict(item.split("=") for item in OF_CLUSTERS[processes - 1].split())
    done = run("run", path, f"launch.num_processes={processes}", **variables)
    assert done.code == 0, done.err
    loss, expected = (d.record("finetune")["metrics"]["train_loss"] for d in (done, finished))
    assert loss == expected if processes == 1 else loss == pytest.approx(expected, abs=1e-4)


def test_a_tracker_of_accelerate_gets_the_losses(recipe, run) -> None:
    """`trackers: [tensorboard]` writes into the run directory, and changes no key."""
    path = recipe(TRAINED_ALONE)
    done = run("run", path, "training.trackers=[tensorboard]")
    assert done.code == 0, done.err
    assert list((done.run_folder / "trackers").rglob("events.out.tfevents.*"))
    planned = json.loads(run("plan", path, "--json").out)
    assert all(stage["cached"] for stage in planned)


def test_the_wheel_has_the_recipes_and_runs_them_from_any_folder(tmp_path) -> None:
    """Built, unpacked elsewhere, and started there: the checked-in recipes are inside."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    done = subprocess.run(
        [sys.executable, "-m", "compressor", "plan", "demo"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "evaluate@base" in done.stdout
