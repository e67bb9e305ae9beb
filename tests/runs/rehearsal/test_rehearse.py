"""`compressor run … --rehearse`: what it says, keeps, and finds."""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from compressor.cli.main import main
from compressor.core.console import Console
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.models.checkpoint import Checkpoint
from compressor.recipe.compose import compose
from compressor.runs.rehearsal.rehearse import rehearse
from compressor.stages.base import Context, Inputs
from compressor.stages.prune import Prune

RECIPE = """
defaults: [/base, /model: t5_small, /data: {data}, _self_]
pipeline: [load, finetune, shrink, distill, prune, recover, quantize, evaluate, export]
training: {{batch_size: 8, learning_rate: 1.0e-3}}
launch: {{num_processes: 1}}
stages:
  load: {{}}
  finetune: {{epochs: 20}}
  shrink: {{decoder_layers: 1}}
  distill: {{teacher: finetune, losses: {{hidden: 0.5}}, layers: {{decoder: {{0: 1}}}}}}
  prune: {{amounts: {{encoder: {{feed_forward: 0.5}}, lm_head: 0.3}}}}
  recover: {{stage: finetune, epochs: 10, quantization_aware: int8}}
  quantize: {{}}
  evaluate: {{models: [recover, quantize], max_length: [8, 500]}}
  export: {{model: recover}}
"""


@dataclass(frozen=True)
class Rehearsed:
    """What a rehearsal in this process came to."""

    passed: bool
    out: str
    err: str

    def line(self, stage: str) -> str:
        """What the table says of a stage, with the lines below its name."""
        rows = [row for row in self.out.splitlines() if row.startswith("│")]
        start = next(i for i, row in enumerate(rows) if row.split("│")[1].strip() == stage)
        more = (i for i in range(start + 1, len(rows)) if rows[i].split("│")[1].strip())
        return " ".join(row.split("│", 2)[2] for row in rows[start : next(more, len(rows))])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Rehearse a recipe's text in this process, in a folder of its own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)

    def call(text: str, *overrides: str) -> Rehearsed:
        (tmp_path / "mine.yaml").write_text(text)
        composed = compose("mine.yaml", overrides)
        console = Console(file=io.StringIO(), width=160)
        passed = rehearse(plan(composed, Store.of(composed.recipe.outputs)), console)
        assert not (tmp_path / "outputs").exists()
        return Rehearsed(passed, console.file.getvalue(), capsys.readouterr().err)

    return call


def list_kept(folder: Path) -> list[Path]:
    return list((folder / "temporary").glob("compressor-rehearsal-*"))


def test_a_chain_of_the_hub_passes_without_it(run, tmp_path: Path) -> None:
    """Each stage is run, and what it saves is loaded again."""
    done = run(RECIPE.format(data="billsum"))
    assert done.passed, done.err
    assert "✗" not in done.out
    for stage in ("finetune", "distill", "quantize"):
        assert "loaded again, read a text" in done.line(stage)
    assert "✓" in done.line("evaluate@quantize")
    assert "export huggingface: a fresh process gives the same for 4 rows" in done.line("export")
    assert "generated rows instead of the recipe's: dataset 'FiscalNote/billsum'" in done.out
    assert "2 + 2 layers, " in done.out and "6 + 6 layers, 60.51 M parameters" in done.out
    assert "epochs: 20 → 1 (finetune)" in done.out
    assert "max_length: [8, 500] → [8, 16] (evaluate)" in done.out
    assert "warning" in done.err and "billsum" in done.err
    assert not list_kept(tmp_path)


LABELS = """
defaults: [/base, /model: tiny_bert, /data: messages, _self_]
pipeline: [load, trim_vocabulary, sensitivity, prune, evaluate]
stages:
  load: {}
  trim_vocabulary: {size: 900}
  sensitivity: {}
  prune: {target: {nonzero_ratio: 0.4}}
  evaluate: {}
"""


def test_one_of_labels_passes(run, tmp_path: Path) -> None:
    """A classifier, whose vocabulary and target are other ones than the recipe's."""
    done = run(LABELS)
    assert done.passed, done.err
    assert "searched for empty rows: 200 of train" in done.line("(rows)")
    assert "size: 900 → 1000 (trim_vocabulary)" in done.out
    assert not list_kept(tmp_path)


PRUNED = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, prune, evaluate]
stages: {load: {}, prune: {amounts: {feed_forward: 0.5}}, evaluate: {}}
"""


def test_a_stage_that_is_not_as_planned_is_found(run, tmp_path: Path, monkeypatch) -> None:
    """One that prunes more than its plan says; those after it are not reached."""
    real = Prune.run

    def prune_more(stage: Prune, inputs: Inputs, context: Context) -> Checkpoint:
        checkpoint = real(stage, inputs, context)
        name, mask = next(iter(checkpoint.masks.items()))
        mask[tuple(mask.nonzero()[0])] = False
        checkpoint.get_parameter(name).data *= mask
        return checkpoint

    monkeypatch.setattr(Prune, "run", prune_more)
    done = run(PRUNED)
    assert not done.passed
    assert "error: stage 'prune': the model is not the one that was planned: " in done.err
    assert "✓" in done.line("load") and "✗" in done.line("prune")
    assert "not reached" in done.line("evaluate")
    (folder,) = list_kept(tmp_path)
    assert str(folder) in done.err


def test_targets_that_are_empty_are_found_before_anything_runs(run, tmp_path: Path) -> None:
    """Three of four rows of a file have nothing in the column that is learned."""
    rows = [{"text": f"bill {i}", "digest": "short" if i % 4 == 0 else " "} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ("data.files.train=rows.jsonl", "data.files.validation=rows.jsonl")
    done = run(RECIPE.format(data="files"), *files, "data.summary=digest", "data.empty=keep")
    assert not done.passed
    assert "30 of the first 40 rows of train have a target length of 0: column 'digest'" in done.err
    assert "✗" in done.line("(rows)")
    assert list_kept(tmp_path)


def test_an_interrupted_one_leaves_nothing_and_promises_nothing(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its folder goes; unlike a run's, the same command does not go on from there."""
    (tmp_path / "mine.yaml").write_text(PRUNED)
    seen = []

    def interrupt(*_: object) -> None:
        seen.extend(list_kept(tmp_path))
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.runs.rehearsal.rehearse.sample_rows", interrupt)
    assert main(["run", "mine.yaml", "--rehearse"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert seen and not list_kept(tmp_path)
    assert main(["run", "demo", "--rehearse", "-m", "seed=1,2"]) == 2
    assert "--rehearse is of one run" in capsys.readouterr().err
