"""Weights in shards: two processes train what one trains, whatever lies where."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.training.launch_config import Scheme
from tests.harness.once import make_once
from tests.training import sharded

ONE = Scheme()
STOPPED = {"not_a_number", "overflown", "left_over"}
ITS_OWN_DROPOUT = {"with_dropout", "gone_on"}
T5 = "t5-seq2seq_lm"
WITHIN = {"aware": 1e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Every case in this one process."""

    def train(folder: Path) -> Path:
        for name in sharded.TRAININGS:
            sharded.run(name, folder, ONE, first=True)
        return folder

    return make_once(tmp_path_factory, "trained-alone", train)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Every case of every scheme in two processes of one launch."""
    return make_once(tmp_path_factory, "trained-in-pairs", train_in_pairs)


def train_in_pairs(folder: Path) -> Path:
    for kind in sharded.SCHEMES:
        sharded.interrupt(sharded.start("t5"), folder / kind / "taken_over.resume", ONE)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("--log-dir", str(folder / "logs"), "-m", "tests.training.sharded"),
        str(folder),
    ]
    # 40 seconds on two idle cores, several minutes where others use them.
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(params=sharded.SCHEMES)
def pair(request, pairs) -> Path:
    return pairs / request.param


def told(folder: Path, name: str) -> dict:
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.parametrize("name", sorted(sharded.TRAININGS.keys() - STOPPED - ITS_OWN_DROPOUT))
def test_two_processes_train_what_one_trains(alone, pair, name) -> None:
    """Losses, validation losses, weights and masks: momentum, decay, clipping and micro-batches
    included. Rounded weights may round apart, and then a loss differs a little more.
    """
    if name in sharded.WHOLE and pair.name != "ddp":
        pytest.skip("planning refuses it")
    one, two = told(alone, name), told(pair, name)
    assert len(one["losses"]) == 6
    for losses in ("losses", "validation"):
        assert two[losses] == pytest.approx(one[losses], abs=WITHIN.get(name, 2e-5))
    mine, theirs = (load_file(folder / f"{name}.safetensors") for folder in (alone, pair))
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        if key.startswith("mask."):
            assert torch.equal(theirs[key], tensor), key
        else:  # Adam divides by a gradient's own size: where that is nearly 0, rounding shows
            apart = (theirs[key] - tensor).abs()
            mean = 1e-2 if name == "bfloat16" else 1e-4
            assert apart.mean() < mean and apart.max() < 6e-2, key


def test_tables_of_fixed_positions_stay_as_they_are(alone, pair) -> None:
    """To the bit, though they ask for a gradient: without one there is no step and no decay."""
    fixed = [name for name in sharded.FAMILIES if name.startswith(("marian", "pegasus"))]
    assert len(fixed) >= 2
    for name in fixed:
        kind, changes, head = sharded.FAMILIES[name]
        start = sharded.start(kind, head, **changes).model
        for folder in (alone, pair):
            trained = load_file(folder / f"{name}.safetensors")
            for key in (
                "model.encoder.embed_positions.weight",
                "model.encoder.layers.0.fc1.weight",
            ):
                assert torch.equal(trained[key], start.get_parameter(key)) == ("positions" in key)


def test_interrupted_it_goes_on_to_the_same_bits(pair) -> None:
    """With dropout, in as many processes as before; another dropout gives other weights."""
    mine, theirs = (load_file(pair / f"{n}.safetensors") for n in ("with_dropout", "gone_on"))
    assert all(torch.equal(theirs[name], tensor) for name, tensor in mine.items())
    assert told(pair, "with_dropout")["losses"] == told(pair, "gone_on")["losses"]
    assert told(pair, "with_dropout")["losses"] != told(pair, T5)["losses"]


def test_what_two_processes_leave_one_goes_on_from(alone, pair, tmp_path) -> None:
    """Weights and the optimizer's averages, gathered from all shards (`taken_over` is the other
    way round).
    """
    (checkpoint,) = (pair / "left_over.resume").glob("step-*")
    assert 1 <= int(checkpoint.name[5:]) <= 3
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    model = sharded.start("t5")
    assert sharded.train(model, tmp_path, ONE)["losses"] == pytest.approx(
        told(alone, T5)["losses"], abs=2e-5
    )
    expected = load_file(alone / f"{T5}.safetensors")
    for name, parameter in model.model.named_parameters():
        assert (parameter - expected[name]).abs().mean() < 1e-4, name


def test_gradual_pruning_chooses_the_same_entries(alone, pair) -> None:
    """Global thresholds while weights lie in shards: the very masks of one process, and the other
    weights to the bit, since a rate of 1e-30 moves nothing.
    """
    mine, theirs = (load_file(folder / "gradual.safetensors") for folder in (alone, pair))
    masks = [key for key in mine if key.startswith("mask.")]
    assert len(masks) == 2 * 2 + 2 * 4 + 1
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    gone = sum(int((~mine[key]).sum()) for key in masks)
    sizes = {"feed_forward": 2 * 2 * 16 * 24, "self_attention": 2 * 4 * 16 * 12, "head": 50 * 16}
    shares = (0.5, 0.4, 0.3)
    assert gone == sum(
        round(size * part) for size, part in zip(sizes.values(), shares, strict=True)
    )


def test_what_is_pruned_stays_zero(pair) -> None:
    """Half of every matrix, at a high rate with momentum and decay; the rest has moved."""
    state = load_file(pair / "masked.safetensors")
    masks = {key.removeprefix("mask."): state[key] for key in state if key.startswith("mask.")}
    assert len(masks) > 20
    for name, mask in masks.items():
        assert not mask.all()
        assert torch.equal(state[name] != 0, mask)


def test_what_is_not_finite_stops_all_processes(alone, pair) -> None:
    """A loss, and a gradient: before its step, and with the same words as in one process."""
    loss, gradient = (told(pair, name)["error"] for name in ("not_a_number", "overflown"))
    assert loss.startswith("the loss is nan at step 1") and "weights before that step" in loss
    assert loss == told(alone, "not_a_number")["error"]
    assert gradient.startswith(("the gradient's norm is inf at", "the gradient's norm is nan at"))
    assert gradient == told(alone, "overflown")["error"]
