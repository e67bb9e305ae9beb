"""Every file that a run opens is in a key by its content, or on a list that says why it is not."""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

import pytest
from transformers import T5Config, T5ForConditionalGeneration

import compressor
from compressor.core.files import hash_file
from compressor.data.bills import make_bills
from compressor.data.tokenizers import train_tokenizer
from tests.engine.opened_files import hook_variables, read_noted, watch_files
from tests.engine.test_plan import plan_recipe
from tests.harness.command import compressor as run

RECIPE = """
defaults: [/base, _self_]
data:
  {source: files, files: {train: inputs/train.jsonl, validation: inputs/dev.jsonl},
   max_source_length: 24, max_target_length: 8}
pipeline: [load, teacher, label, finetune, distill, sensitivity, prune, smooth, slice, shrink,
           quantize, ct2, packed, evaluate, benchmark, baseline]
stages:
  load: {source: inputs/model}
  teacher: {stage: load, source: inputs/teacher, tokenizer: inputs/tokenizer}
  label: {stage: pseudo_label, max_length: 8}
  finetune: {model: load, max_steps: 1, targets: label}
  distill: {teacher: teacher, max_steps: 1, cache_logits: true}
  sensitivity: {amounts: [0.5], rows: 2, only: [encoder.feed_forward], rouge: true}
  prune: {amounts: {encoder: {feed_forward: 0.5}}, importance: wanda, calibration_rows: 2}
  smooth: {calibration_rows: 2}
  slice: {feed_forward: 16}
  shrink: {decoder_layers: 1}
  quantize: {}
  ct2: {stage: export, model: shrink, format: ctranslate2, weights: float32}
  packed: {stage: export, format: packed}
  evaluate: {models: [quantize, ct2], max_length: 8}
  benchmark: {models: [quantize], batch_sizes: [1], input_lengths: [8], texts: 2, warm_up: 0}
  baseline: {}
"""
UNREAD = ("README.md", "trainer_state.json", "training_args.bin", "optimizer.pt")


def write_inputs(folder: Path) -> None:
    """Two models as a trainer leaves them, a tokenizer's folder, and rows."""
    rows = list(make_bills(12, seed=0, split="train"))
    tokenizer = train_tokenizer((row["text"] for row in rows), vocab_size=300)
    tokenizer.chat_template = "{{ messages }}"
    for name in ("model", "teacher"):
        config = T5Config(
            vocab_size=300, d_model=16, d_kv=4, d_ff=32, num_heads=2, num_layers=2,
            decoder_start_token_id=0,
        )  # fmt: skip
        T5ForConditionalGeneration(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        for unread in UNREAD:
            (folder / name / unread).write_text(name)
    tokenizer.save_pretrained(folder / "tokenizer")
    for name, part in (("train", rows[:8]), ("dev", rows[8:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of opened files on Linux")
def test_every_file_that_a_run_opens_is_in_a_key_or_on_the_list(tmp_path, monkeypatch) -> None:
    """Kinds of stages that read in their own ways, and the processes that they start."""
    inputs = tmp_path / "inputs"
    write_inputs(inputs)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name in ("hook", "home", "temporary"):
        (tmp_path / name).mkdir()
    variables = hook_variables(tmp_path / "hook") | {
        "HOME": str(tmp_path / "home"),
        "TMPDIR": str(tmp_path / "temporary"),
    }
    with watch_files(inputs) as opened_below:
        done = run("run", "recipe.yaml", cwd=tmp_path, **variables)
        read = opened_below()
    assert done.code == 0, done.err
    paths = sysconfig.get_paths()
    reasons = {
        Path(compressor.__file__).parent.parent: "code, which a stage's version stands for",
        **{Path(paths[name]): "code" for name in ("stdlib", "purelib", "platlib")},
        Path(sys.base_prefix): "the interpreter and what it is linked with",
        Path(sys.prefix): "the environment: versions of packages are in keys",
        tmp_path / "hook": "this test's",
        tmp_path / "recipe.yaml": "composed: its values are what keys are made of",
        tmp_path / "outputs": "the store, by key and with digests of its own; the run's folder",
        tmp_path / "temporary": "the run's own, gone with it",
        tmp_path / "home" / ".cache" / "huggingface": "rows of files that are in keys, as Arrow",
        Path("/usr/share"): "time zones, types of files",
        Path("/etc"): "the system's settings",
        Path("/proc"): "what the machine is, and how much memory is used",
        Path("/sys"): "what the machine is",
        Path("/dev"): "no files",
    }
    reasons = {path.resolve(): why for path, why in reasons.items()}
    read |= {p for p in read_noted(tmp_path / "hook") if not any(map(p.is_relative_to, reasons))}
    monkeypatch.chdir(tmp_path)
    plan = plan_recipe("recipe.yaml")
    keys = json.dumps([node.key_parts for node in plan.nodes], default=str)
    assert [p for p in sorted(read) if p.is_file() and hash_file(p) not in keys] == []
    names = {path.relative_to(inputs).as_posix() for path in read}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert {"train.jsonl", "dev.jsonl", *(f"model/{name}" for name in expected)} <= names
    assert {
        f"{name}/{unread}" for name in ("model", "teacher") for unread in UNREAD
    } & names == set()
