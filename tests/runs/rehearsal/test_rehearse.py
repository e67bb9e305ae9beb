"""`compressor run … --rehearse` as a user gives it: what it says, keeps, and finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Command, compressor

ROOT = Path(__file__).parent.parent.parent.parent
RECIPE = """
defaults: [/base, /model: t5_small, /data: {data}, _self_]
pipeline: [load, finetune, shrink, distill, prune, recover, quantize, evaluate, export]
training: {{batch_size: 8, learning_rate: 1.0e-3}}
launch: {{num_processes: 1}}
stages:
  load: {{}}
  finetune: {{epochs: 20}}
  shrink: {{decoder_layers: 3}}
  distill: {{teacher: finetune, losses: {{hidden: 0.5}}, layers: {{decoder: {{2: 5}}}}}}
  prune: {{amounts: {{encoder: {{feed_forward: 0.5}}, lm_head: 0.3}}}}
  recover: {{stage: finetune, epochs: 10, quantization_aware: int8}}
  quantize: {{}}
  evaluate: {{models: [recover, quantize], max_length: [8, 500]}}
  export: {{model: recover}}
"""
TWO = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, {stage}]
stages: {{load: {{}}, {stage}: {{}}}}
"""


def rehearse(folder: Path, *arguments: str, package: Path = ROOT) -> Command:
    """Rehearse `mine.yaml`, with a folder for temporary files that can be looked into."""
    temporary = folder / "temporary"
    temporary.mkdir()
    done = compressor(
        "run", "mine.yaml", "--rehearse", *arguments,
        cwd=folder, TMPDIR=str(temporary), PYTHONPATH=str(package),
    )  # fmt: skip
    assert not (folder / "outputs").exists()
    return done


def line(done: Command, stage: str) -> str:
    """What the table says of a stage, with the lines below its name."""
    rows = [row for row in done.out.splitlines() if row.startswith("│")]
    start = next(i for i, row in enumerate(rows) if row.split("│")[1].strip() == stage)
    more = (i for i in range(start + 1, len(rows)) if rows[i].split("│")[1].strip())
    return " ".join(row.split("│", 2)[2] for row in rows[start : next(more, len(rows))])


def kept(folder: Path) -> list[Path]:
    return list((folder / "temporary").glob("compressor-rehearsal-*"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be changed."""
    copy = tmp_path / "copy"
    for part in ("compressor", "recipes"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, copy / part, ignore=ignored)
    return copy


def test_a_chain_of_the_hub_passes_without_it(tmp_path: Path) -> None:
    """Each stage is run; the int8 model writes; the export is loaded. What differs from the run is
    told, generated rows first of all, and nothing stays behind.
    """
    (tmp_path / "mine.yaml").write_text(RECIPE.format(data="billsum"))
    done = rehearse(tmp_path)
    assert done.code == 0, done.err
    assert "✗" not in done.out
    for training in ("finetune", "distill", "recover"):
        assert "3 steps, losses finite" in line(done, training)
    assert "max_length 8, 64" in line(done, "evaluate@quantize")
    assert "as planned" in line(done, "prune")
    assert "saved, loaded again, wrote 7 tokens" in line(done, "quantize")
    assert "export huggingface: loaded in a fresh process, 4 rows: 100% of" in line(done, "export")
    assert "generated rows in the place of the recipe's: dataset 'FiscalNote/billsum'" in done.out
    assert "2 + 2 layers, " in done.out and "6 + 6 layers, 60.51 M parameters" in done.out
    assert "decoder_layers: 3 → 1 (shrink)" in done.out
    assert "epochs: 20 → 1 (finetune)" in done.out
    assert "warning" in done.err and "billsum" in done.err
    assert not kept(tmp_path)


def test_targets_that_are_empty_are_found_before_anything_runs(tmp_path: Path) -> None:
    """Three of four rows of a file have nothing in the column that is learned."""
    (tmp_path / "mine.yaml").write_text(RECIPE.format(data="files"))
    rows = [{"text": f"bill {i}", "digest": "short" if i % 4 == 0 else " "} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("data.files.train=rows.jsonl", "data.files.validation=rows.jsonl")
    done = rehearse(tmp_path, *files, "data.summary=digest", "data.empty=keep")
    assert done.code == 1
    assert "30 of 40 rows of train that were looked at have a target length of 0" in done.err
    assert "'digest'" in done.err
    assert "✗" in line(done, "(rows)")
    (folder,) = kept(tmp_path)
    assert str(folder) in done.err


def test_a_tokenizer_that_cannot_be_read_is_told_by_its_stage(tmp_path: Path) -> None:
    """Of a local directory, in a file that is half there."""
    (tmp_path / "mine.yaml").write_text(TWO.format(stage="evaluate"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tokenizer.json").write_text('{"broken')
    (tmp_path / "own/config.json").write_text('{"model_type": "t5"}')
    done = rehearse(tmp_path, "model.tokenizer=own")
    assert done.code == 1
    assert "the tokenizer of 'load' cannot be read: " in done.err


def test_one_that_is_interrupted_leaves_nothing_and_promises_nothing(tmp_path: Path) -> None:
    """Its folder goes; unlike a run's, the same command does not go on from there."""
    (tmp_path / "mine.yaml").write_text(TWO.format(stage="evaluate"))
    (tmp_path / "temporary").mkdir()
    begun = subprocess.Popen(
        [sys.executable, "-m", "compressor", "run", "mine.yaml", "--rehearse"],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    limit = time.monotonic() + 60
    while not kept(tmp_path) and time.monotonic() < limit:
        time.sleep(0.05)
    time.sleep(0.3)  # until what removes the folder is in charge of it
    begun.send_signal(signal.SIGINT)
    _, err = begun.communicate(timeout=60)
    # CPython ends itself by the signal where that met a dataclass being made, handled or not.
    assert begun.returncode in (1, -signal.SIGINT)
    assert err.splitlines()[-1] == "interrupted"
    assert not kept(tmp_path)


def test_an_export_that_is_damaged_is_found(tmp_path: Path, package: Path) -> None:
    """One tensor of what transformers is to load is written as zeros."""
    stage = package / "compressor/stages/export.py"
    text = stage.read_text()
    write = "        save_pretrained(model, folder)\n"
    damage = (
        "        from safetensors.torch import load_file, save_file\n"
        "        tensors = load_file(folder / 'model.safetensors')\n"
        "        tensors['decoder.final_layer_norm.weight'].zero_()\n"
        "        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})\n"
    )
    assert write in text
    stage.write_text(text.replace(write, write + damage))
    (tmp_path / "mine.yaml").write_text(TWO.format(stage="export"))
    done = rehearse(tmp_path, package=package)
    assert done.code == 1
    assert "stage 'export': the exported model's decoder.final_layer_norm.weight" in done.err
    assert "✗" in line(done, "export") and "✓" in line(done, "load")
    assert kept(tmp_path)


def test_a_recipe_that_is_wrong_is_not_rehearsed(tmp_path: Path) -> None:
    """The real recipe's own errors, and no sweep."""
    (tmp_path / "mine.yaml").write_text(RECIPE.format(data="bills"))
    done = rehearse(tmp_path, "stages.shrink.decoder_layers=7")
    assert done.code == 2 and "7 is outside 1 … 6" in done.err
    again = compressor("run", "mine.yaml", "--rehearse", "-m", "seed=1,2", cwd=tmp_path)
    assert again.code == 2 and "--rehearse is of one run" in again.err
    assert not kept(tmp_path)
