"""A recipe, as a user runs it: results, reruns, kills, several processes, failures."""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from compressor import load_model
from compressor.core.files import file_digest
from compressor.core.redaction import redact, redact_text
from tests.harness.command import start
from tests.harness.runs import find_stage, kill, list_processes, losses, wait_for_step, weights

LONGER = ("{epochs: 1}\n  prune", "{epochs: 6}\n  prune")


def test_a_run_leaves_what_explains_it_and_a_second_run_repeats_nothing(recipe, run) -> None:
    """Metrics, resolved recipe, environment, predictions and links; again: all cached, no torch."""
    path = recipe()
    first = run("run", path)
    assert first.code == 0, first.err
    folder = path.parent / first.run_folder
    names = {item.name for item in folder.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.json", "predictions.csv"} <= names
    assert {"report.html", "README.md"} <= names
    records = json.loads((folder / "metrics.json").read_text())
    assert [r["name"] for r in records] == ["load", "finetune", "prune", "recover", "evaluate"]
    assert not any(record["cached"] for record in records)
    assert 0 <= records[-1]["metrics"]["rougeLsum"] <= 1
    assert set(records[-1]["metrics"]["lengths"]) == {"8", "16"}
    again = run("run", path, PYTHONPROFILEIMPORTTIME="1")
    assert again.code == 0
    records = json.loads((path.parent / again.run_folder / "metrics.json").read_text())
    assert all(record["cached"] for record in records)
    assert " torch\n" not in again.err
    edited = run("run", path, "stages.recover.epochs=2")
    records = json.loads((path.parent / edited.run_folder / "metrics.json").read_text())
    assert [r["name"] for r in records if not r["cached"]] == ["recover", "evaluate"]


def test_the_plan_counts_what_the_run_counts(recipe, run) -> None:
    """Parameters and non-zero ratio of every stage, masks kept by training, reload included."""
    path = recipe()
    planned = json.loads(run("plan", path, "--json").out)
    done = run("run", path)
    records = json.loads((path.parent / done.run_folder / "metrics.json").read_text())
    for plan, record in zip(planned, records, strict=True):
        assert record["parameters"] == plan["parameters"], plan["name"]
        assert record["nonzero_ratio"] == pytest.approx(plan["nonzero_ratio"], abs=2e-6)
    recovered = load_file(weights(path.parent / done.run_folder, "recover"))
    masks = load_file(
        weights(path.parent / done.run_folder, "recover").with_name("masks.safetensors")
    )
    assert masks
    assert all(torch.count_nonzero(recovered[name][~mask]) == 0 for name, mask in masks.items())


def test_predictions_score_the_same_a_second_time(recipe, run) -> None:
    """`compressor score` on the run's CSV gives the run's own figures."""
    path = recipe()
    done = run("run", path)
    folder = path.parent / done.run_folder
    scored = json.loads(run("score", folder / "predictions.csv", "--json").out)
    record = json.loads((folder / "metrics.json").read_text())[-1]
    assert scored == record["metrics"]["lengths"]


def test_a_run_killed_five_times_ends_with_the_weights_of_an_undisturbed_one(recipe, run) -> None:
    """SIGKILL at random moments of training, launched again each time: the same SHA-256.

    Its loss curves are the very same, too.
    """
    path = recipe(LONGER, ("tiny", "tiny"))
    undisturbed = run("run", path, "outputs=undisturbed", "model.config.dropout_rate=0.1")
    assert undisturbed.code == 0, undisturbed.err
    expected = file_digest(weights(path.parent / undisturbed.run_folder, "finetune"))
    chance, last, kills = random.Random(5), 0, 0
    while kills < 5:
        process = start("run", path, "model.config.dropout_rate=0.1", cwd=path.parent)
        last = wait_for_step(process, last)
        time.sleep(chance.uniform(0, 0.1))
        kill(process)
        kills += 1
        for manifest in path.parent.glob("outputs/store/*/manifest.json"):
            json.loads(manifest.read_text())
    final = run("run", path, "model.config.dropout_rate=0.1")
    assert final.code == 0, final.err
    assert "goes on from step" in final.out
    assert file_digest(weights(path.parent / final.run_folder, "finetune")) == expected
    for curve in ("train_losses", "validation_curve"):
        one, other = (r.record("finetune")["metrics"][curve] for r in (undisturbed, final))
        assert one == other and len(one) > 5
    assert list((path.parent / "outputs/store/partial").iterdir()) == []


def test_two_processes_give_one_processs_losses_and_masks(recipe, run) -> None:
    """With dropout 0: the loss curve within 1e-4, equal masks, another batch size a rank or not."""
    path = recipe()
    one = run("run", path, "outputs=one")
    two = run("run", path, "outputs=two", "launch.num_processes=2")
    micro = run("run", path, "outputs=micro", "training.micro_batch_size=3")
    assert (one.code, two.code, micro.code) == (0, 0, 0), two.err + micro.err
    folders = [path.parent / result.run_folder for result in (one, two, micro)]
    for name in ("finetune", "recover"):
        curves = [losses(find_stage(folder, name)) for folder in folders]
        assert len(curves[0]) == 8
        for other in curves[1:]:
            assert other == pytest.approx(curves[0], abs=1e-4)
    masks = [load_file(weights(f, "prune").with_name("masks.safetensors")) for f in folders[:2]]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
    validation = [
        next(r for r in json.loads((f / "metrics.json").read_text()) if r["name"] == "finetune")
        for f in folders
    ]
    figures = [record["metrics"]["validation_loss"] for record in validation]
    assert figures[1:] == pytest.approx([figures[0]] * 2, abs=1e-4)


def test_two_processes_killed_go_on_and_leave_nobody_behind(recipe, run) -> None:
    """SIGKILL of the parent alone ends its workers too; the next run has the same weights."""
    path = recipe(LONGER)
    arguments = ("launch.num_processes=2", "model.config.dropout_rate=0.1", "skip=[evaluate]")
    undisturbed = run("run", path, "outputs=undisturbed", *arguments)
    assert undisturbed.code == 0, undisturbed.err
    process = start("run", path, *arguments, cwd=path.parent)
    wait_for_step(process, 3)
    process.send(signal.SIGKILL)
    process.wait()
    final = run("run", path, *arguments)
    assert final.code == 0, final.err
    assert "goes on from step" in final.out
    folders = [path.parent / result.run_folder for result in (undisturbed, final)]
    digests = [file_digest(weights(folder, "finetune")) for folder in folders]
    assert digests[0] == digests[1]
    assert list_processes(path.parent) == []


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_weights(recipe, run) -> None:
    """Exit code 1, one message, no artifact of the failed stage, the last weights kept."""
    path = recipe()
    failed = run("run", path, "training.learning_rate=1e30")
    assert failed.code == 1
    assert re.search("stage 'finetune': the (loss|gradient's norm) is (nan|inf)", failed.err)
    assert "learning_rate" in failed.err
    kept = list(path.parent.glob("outputs/store/partial/*.resume/step-*/tensors"))
    assert len(kept) == 1
    model = {k: v for k, v in load_file(kept[0]).items() if k.startswith("model.")}
    assert len(list(path.parent.glob("outputs/store/*/manifest.json"))) == 1
    assert model


def test_a_damaged_artifact_is_made_again(recipe, run) -> None:
    """A flipped byte in what a stage reads: set aside, made again, and the run ends well."""
    path = recipe()
    first = run("run", path)
    folder = path.parent / first.run_folder
    target = weights(folder, "finetune").resolve()
    before = file_digest(target)
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    second = run("run", path, "stages.prune.amounts.lm_head=0.4")
    assert second.code == 0, second.err
    assert "made again" in second.out
    assert file_digest(target) == before
    assert len(list(path.parent.glob("outputs/store/damaged/*"))) == 1


def test_an_exported_model_loads_with_plain_transformers(recipe, run) -> None:
    """`model/` in the run directory has the int8 model's values, and generates."""
    path = recipe(
        ("recover, evaluate]", "recover, shrink, quantize, export]"),
        ("  evaluate:", "  shrink: {decoder_layers: 1}\n  quantize: {}\n  export: {}\n  evaluate:"),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    folder = path.parent / done.run_folder
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    stored = load_file(weights(folder, "quantize"))
    name = "decoder.block.0.layer.2.DenseReluDense.wo.weight"
    assert stored[name].dtype == torch.int8
    expected = stored[name].float() * stored[f"{name}_scale"]
    assert torch.equal(model.state_dict()[name], expected)
    assert len(model.decoder.block) == 1
    batch = tokenizer(["summarize: An Act."], return_tensors="pt")
    assert model.generate(**batch, max_length=8, do_sample=False).shape[0] == 1


def test_a_packed_export_is_small_and_has_the_weights_of_its_source(recipe, run) -> None:
    """A pruned model in float32 comes back exactly, a quantized one with its int8 values."""
    path = recipe(
        ("recover, evaluate]", "recover, exact, quantize, small]"),
        (
            "  evaluate:",
            "  exact: {stage: export, format: packed, weights: float32}\n  quantize: {}\n"
            "  small: {stage: export, format: packed}\n  evaluate:",
        ),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    folder = path.parent / done.run_folder
    (exact,) = folder.glob("stages/*-exact/model")
    source = load_file(weights(folder, "recover"))
    loaded = load_model(exact)
    assert all(torch.equal(loaded.get_parameter(name), t) for name, t in source.items())
    records = {r["name"]: r for r in json.loads((folder / "metrics.json").read_text())}
    metrics = records["exact"]
    assert metrics["bytes"] == (exact / "packed.safetensors").stat().st_size
    assert metrics["bytes"] < records["recover"]["bytes"]
    assert metrics["metrics"]["logits_difference"] == 0
    tensors = metrics["metrics"]["tensors"]
    masks = load_file(weights(folder, "recover").with_name("masks.safetensors"))
    for name, mask in masks.items():
        kept = int(mask.count_nonzero())
        assert (tensors[name]["kept"], tensors[name]["value_bytes"]) == (kept, 4 * kept), name
        assert tensors[name]["mask_bytes"] == math.ceil(mask.numel() / 8)
    stored = load_file(weights(folder, "quantize"))
    model = load_model(folder / "model")
    name = "decoder.block.0.layer.2.DenseReluDense.wo.weight"
    assert torch.equal(model.get_parameter(name), stored[name].float() * stored[f"{name}_scale"])
    tied = model.lm_head.weight is model.shared.weight
    assert tied == ("lm_head.weight" not in stored)
    batch = AutoTokenizer.from_pretrained(folder / "model")(["An Act."], return_tensors="pt")
    assert model.generate(**batch, max_length=8, do_sample=False).shape[0] == 1


def test_sizes_alone_need_no_data(recipe, run) -> None:
    """With nothing trained or scored, a recipe on a data set of the hub runs without a network."""
    path = recipe(
        ("/data: bills", "/data: billsum"), ("rows: {train: 64, validation: 16, test: 8}, ", "")
    )
    done = run("run", path, "training=none", "model.tokenizer=null")
    assert done.code == 0, done.err


OF_CLUSTERS = [
    "RANK=1 WORLD_SIZE=4 MASTER_ADDR=127.0.0.1 MASTER_PORT=29511",
    "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 GROUP_RANK=2 OMPI_COMM_WORLD_SIZE=4 "
    "PMI_SIZE=4 PMI_RANK=2 PET_NNODES=4 PET_NPROC_PER_NODE=3 ACCELERATE_USE_FSDP=true "
    "FSDP_VERSION=2 ACCELERATE_MIXED_PRECISION=fp16 ACCELERATE_DYNAMO_BACKEND=INDUCTOR "
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=3",
]


def test_what_a_cluster_sets_changes_no_run(recipe, run) -> None:
    """In one process and in two, which torch's launcher starts: the losses are those without."""
    path = recipe(("finetune, prune, recover, evaluate", "finetune"))
    losses = []
    for number, text in enumerate(["", *OF_CLUSTERS]):
        variables = dict(item.split("=") for item in text.split())
        launch = f"launch.num_processes={2 if number == 2 else 1}"
        done = run("run", path, f"outputs=o{number}", launch, **variables)
        assert done.code == 0, done.err
        losses.append(done.record("finetune")["metrics"]["train_loss"])
    assert losses[1] == losses[0]
    assert losses[2] == pytest.approx(losses[0], abs=0.2)  # another dropout


def test_the_store_is_where_outputs_says(recipe, run) -> None:
    """`outputs=` moves store and runs together; nothing else is written in the current folder."""
    path = recipe()
    result = run("run", path, "outputs=elsewhere", "skip=[finetune, evaluate]")
    assert result.code == 0, result.err
    assert {item.name for item in path.parent.iterdir()} == {"mine.yaml", "elsewhere"}
    shutil.rmtree(path.parent / "elsewhere")


def test_a_tracker_of_accelerate_gets_the_losses(recipe, run) -> None:
    """`trackers: [tensorboard]` writes into the run directory, and changes no key."""
    path = recipe()
    done = run("run", path, "training.trackers=[tensorboard]", "skip=[evaluate]")
    assert done.code == 0, done.err
    assert list((path.parent / done.run_folder / "trackers").rglob("events.out.tfevents.*"))
    again = run("run", path, "skip=[evaluate]")
    records = json.loads((path.parent / again.run_folder / "metrics.json").read_text())
    assert all(record["cached"] for record in records)


def test_the_wheel_has_the_recipes_and_runs_them_from_any_folder(tmp_path) -> None:
    """Built, unpacked elsewhere, and started there: the checked-in recipes are inside."""
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    code = (
        "import compressor, sys; print(compressor.__file__); from compressor.cli.main import main; "
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "sys.exit(main(['plan', 'demo']))"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert "evaluate@base" in done.stdout


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("data.api_key=abc=def", "data.api_key=<redacted>"),
        ("+model.token=abc", "+model.token=<redacted>"),
        ("stages.finetune.epochs=3", "stages.finetune.epochs=3"),
        ({"data": {"password": "abc", "rows": 3}}, {"data": {"password": "<redacted>", "rows": 3}}),
        (["see", "hf_" + "a" * 24], ["see", "<redacted>"]),
        ("++hub.access_token=abc", "++hub.access_token=<redacted>"),
        ("~hub.access_token=abc", "~hub.access_token=<redacted>"),
        (
            {"tokens": {"pad_token": "<pad>", "token": "abc"}},
            {"tokens": {"pad_token": "<pad>", "token": "<redacted>"}},
        ),
        (
            {"credentials": {"me": {"name": ["a", 7], "sure": True}}},
            {"credentials": {"me": {"name": ["<redacted>", "<redacted>"], "sure": True}}},
        ),
        ("https://me:pass@host/x", "https://<redacted>@host/x"),
        ({"keys": 7, "max_token_length": 9}, {"keys": 7, "max_token_length": 9}),
    ],
)
def test_a_secret_is_written_to_no_file(given: Any, written: Any) -> None:
    """Neither a recipe's value nor an override of the command that looks like one."""
    assert redact(given) == written


def test_what_the_environment_holds_as_a_secret_is_written_nowhere(monkeypatch) -> None:
    """Wherever it stands, the longer one first; a short value may stand anywhere, and a path is
    none.
    """
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")
    monkeypatch.setenv("OTHER_TOKEN", "abcdefghij")
    monkeypatch.setenv("SHORT_TOKEN", "run")
    monkeypatch.setenv("FILE_TOKEN", "/var/lib/secrets")
    text = "run abcdefgh, abcdefghij of /var/lib/secrets"
    assert redact_text(text) == "run <redacted>, <redacted> of /var/lib/secrets"
    assert redact({"title": text}) == {"title": redact_text(text)}
