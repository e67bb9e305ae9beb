"""A distillation as a user runs it, kills it, and gets it wrong. Its loss: test_distillation."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.files import hash_file
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.models.checkpoint import Checkpoint
from compressor.recipe.compose import compose
from compressor.training.teacher_cache import LOGITS
from tests.harness.command import Command, compressor, start
from tests.harness.recipes import RECIPE as PICO_RECIPE
from tests.harness.runs import find_stage, kill, losses, wait_for_step

RECIPE = PICO_RECIPE.replace("prune, recover, evaluate]", "small, shrink, prune, distill]")
RECIPE = RECIPE[: RECIPE.index("  prune:")]
RECIPE += """  small:
    stage: load
    config:
      {model_type: t5, vocab_size: 400, d_model: 24, d_kv: 8, d_ff: 48, num_layers: 2,
       num_heads: 2, dropout_rate: 0.0, decoder_start_token_id: 0}
  shrink: {decoder_layers: 1}
  prune: {amounts: {encoder: {feed_forward: 0.5}}}
  distill:
    teacher: finetune
    epochs: 2
    losses: {hidden: 0.5, attention: 5.0}
    layers: {encoder: {0: 0, 1: 1}}
    prune: {amounts: {decoder: {feed_forward: 0.4}}, times: 3}
"""


HALF = {"labels": 0.5, "logits": 0.5, "hidden": 0.0, "attention": 0.0}


@pytest.mark.parametrize(
    ("settings", "before", "expected"),
    [
        ("", "prune", [{**HALF, "labels": 0.0, "logits": 1.0, "features": 1.0}, 1.0, False]),
        (
            ", temperature: 3",
            "prune",
            [{**HALF, "labels": 0, "logits": 1, "features": 1}, 3, False],
        ),
        (", losses: {labels: 0.5}", "prune", [HALF, 2.0, None]),
        (", cache_logits: true", "prune", [HALF, 2.0, None]),
        ("", "prune, shrink", [HALF, 2.0, None]),
    ],
)
def test_what_a_student_learns_by_default(tmp_path, settings, before, expected) -> None:
    """Of its teacher's shapes, the teacher's states and logits, without dropout; else, or with
    `losses` named, what it always did, under the key that it always had.
    """
    text = PICO_RECIPE.replace("prune, recover, evaluate]", f"{before}, distill]")
    text = text.replace("  recover: {stage: finetune, epochs: 1}", "  shrink: {decoder_layers: 1}")
    text += f"  distill: {{teacher: finetune{settings}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    result = plan(compose(str(tmp_path / "mine.yaml")), Store(tmp_path / "store"))
    parameters = result.node("distill").stage.parameters()
    assert [parameters.get(k) for k in ("losses", "temperature", "dropout")] == expected
    assert bool(result.node("distill").stage.choice) == (expected[0] != HALF)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, and everything but the distillation in its store."""
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", "skip=[distill]", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "mine"))


def distill(folder: Path, *overrides: str) -> tuple[Command, Path, dict[str, Any]]:
    """Run the recipe; the command, the folder of the distilled model, and its record."""
    done = compressor("run", "mine.yaml", *overrides, cwd=folder)
    assert done.code == 0, done.err
    return done, find_stage(done.run_folder, "distill"), done.record("distill")


def test_a_distillation_as_a_user_runs_it(folder: Path, monkeypatch) -> None:
    """Teacher untouched, loss falls, masks kept, planned counts true, all cached again."""
    monkeypatch.chdir(folder)
    (teacher,) = folder.glob("outputs/runs/*/*/stages/*-finetune/model.safetensors")
    before = hash_file(teacher)
    planned = {n.name: n for n in plan(compose("mine.yaml"), Store(Path("outputs/store"))).nodes}
    _, stage, record = distill(folder)
    assert hash_file(teacher) == before
    curve = losses(stage)
    assert len(curve) == 16
    assert sum(curve[-4:]) < 0.92 * sum(curve[:4])
    facts = planned["distill"].facts
    assert facts is not None
    assert record["parameters"] == facts.parameters
    assert record["nonzero_ratio"] == pytest.approx(facts.nonzero_ratio, abs=2e-6)
    weights, masks = (load_file(stage / f"{name}.safetensors") for name in ("model", "masks"))
    assert any(name.startswith("decoder") for name in masks)
    assert all(torch.count_nonzero(weights[name][~mask]) == 0 for name, mask in masks.items())
    assert not [name for name in weights if "projection" in name]
    layers = {"encoder": {"0": 0, "1": 1}, "decoder": {"0": 1}}
    assert record["metrics"]["layers"] == layers
    assert record["metrics"]["validation_loss"] < math.log(400)  # of the labels alone
    *_, again = distill(folder)
    assert again["cached"]


CACHED = "stages.distill.cache_logits=true"
LOGITS_ALONE = ("stages.distill.losses.hidden=0", "stages.distill.losses.attention=0")


def test_a_killed_distillation_goes_on_to_the_same_bits(folder: Path) -> None:
    """SIGKILL in the middle, with dropout and projections in play: the same SHA-256."""
    more = ("stages.small.config.dropout_rate=0.1", "stages.distill.epochs=4")
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    _, stage, _ = distill(other, *more)
    expected = hash_file(stage / "model.safetensors")
    process = start("run", "mine.yaml", *more, cwd=folder)
    wait_for_step(process, -1)  # where a disk is slow, a later one may come after the last step
    kill(process)
    # Killed between two renames it may have left the one before as well; the last is what counts.
    checkpoints = folder.glob("outputs/store/partial/*.resume/step-*/tensors")
    saved = load_file(max(checkpoints, key=lambda path: int(path.parent.name[5:])))
    for stack in ("encoder", "decoder"):
        assert saved[f"model.loss.projections.{stack}.weight"].shape == (32, 24)
        assert f"optimizer.loss.projections.{stack}.weight.exp_avg" in saved
    assert not [name for name in saved if "teacher" in name]
    done, stage, _ = distill(folder, *more)
    assert "goes on from step" in done.out
    assert hash_file(stage / "model.safetensors") == expected


def test_two_processes_with_micro_batches_give_one_processs_losses(folder: Path) -> None:
    """Without and with cached logits: the first loss but for rounding; later ones within 1e-3,
    since Adam divides a gradient by its own size, also where that is rounding. The cache's size is
    told, and it is gone after.
    """
    (small,) = folder.glob("outputs/runs/*/*/stages/*-small")
    data = compose(str(folder / "mine.yaml")).recipe.data
    rows = Checkpoint.load(small).tokenize_rows(data.load("train"), data)
    tokens = sum(map(len, rows.targets))
    two = ("launch.num_processes=2", "stages.distill.micro_batch_size=3")
    for alone, others in (((), two), (LOGITS_ALONE, (*LOGITS_ALONE, CACHED, *two))):
        curves, records = [], []
        for overrides in (alone, others):
            _, stage, record = distill(folder, *overrides)
            curves.append(losses(stage))
            records.append(record)
            shutil.rmtree(folder / "outputs" / "store" / record["key"])
        assert len(curves[0]) == 16 and curves[1] == pytest.approx(curves[0], abs=1e-3)
        assert curves[1][0] == pytest.approx(curves[0][0], abs=1e-5)
        validation = [record["metrics"]["validation_loss"] for record in records]
        assert validation[1] == pytest.approx(validation[0], abs=1e-3)
    assert records[0]["key"] != records[1]["key"] and not list(folder.rglob(LOGITS))
    assert records[1]["metrics"]["cached_logits_bytes"] == tokens * 400 * 4
    assert "cached_logits_bytes" not in records[0]["metrics"]


def test_another_tokenizer_is_refused_before_the_first_step(folder: Path) -> None:
    """The same number of pieces, but others: no token of one means the other's."""
    data = "{source: bills, seed: 5, rows: {train: 64, validation: 16, test: 8}}"
    override = f"stages.small.tokenizer={{vocab_size: 400, data: {data}}}"
    result = compressor("run", "mine.yaml", override, cwd=folder)
    assert result.code == 1
    assert "has another tokenizer" in result.err
    assert not list(folder.glob("outputs/store/partial/*.resume"))


GPT2 = "{model_type: gpt2, vocab_size: 400, n_embd: 24, n_layer: 2, n_head: 2}"
BART = (
    "{model_type: bart, vocab_size: 400, d_model: 24, encoder_layers: 2, decoder_layers: 2, "
    "encoder_attention_heads: 2, decoder_attention_heads: 2}"
)
SMALL = RECIPE[RECIPE.index("      {model_type: t5") : RECIPE.index("  shrink:")]
TEACHER = "teacher: finetune"
ALIKE = "layers: {encoder: {0: 0, 1: 1}}"
CACHING = (TEACHER, f"{TEACHER}\n    cache_logits: true")
LOSSES = "{hidden: 0.5, attention: 5.0}"
INT8 = ("  shrink:", "  int8: {stage: quantize}\n  shrink:")
MEASURE = ("  shrink:", "  measure: {stage: benchmark}\n  shrink:")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(TEACHER, "teacher: finetun")], "distill.teacher: no stage 'finetun'; did you mean"),
        ([(TEACHER, "teacher: distill")], "distill.teacher: 'distill' comes later"),
        ([("prune, distill]", "distill, prune]"), (TEACHER, "teacher: prune")], "comes later"),
        ([("small, shrink", "measure, small, shrink"), (TEACHER, "teacher: measure"), MEASURE],
         "distill.teacher: 'measure' gives no model"),
        ([("    teacher: finetune\n", "")], "distill.teacher: is missing"),
        ([("{model_type: t5, vocab_size: 400", "{model_type: t5, vocab_size: 401")],
         "has a vocabulary of 400, the student one of 401"),
        ([(SMALL, f"      {GPT2}\n    head: causal_lm\n")], "has the head 'seq2seq_lm'"),
        ([(SMALL, f"      {BART}\n")], "losses.attention: the teacher is a t5, the student a bart"),
        ([("prune, distill]", "int8, distill]"), INT8],
         "stages.distill: cannot train an int8 model"),
        ([(ALIKE, "layers: {decoder: {0: 2}}")], "decoder.0: 2 is outside 0 … 1, the teacher"),
        ([(ALIKE, "layers: {decoder: {1: 0}}")], "decoder.1: 1 is outside 0 … 0, the student"),
        ([(ALIKE, "layers: {encoder: {}, decoder: {}}")], "leaves no layer"),
        ([(ALIKE, "layers: {encode: {0: 1}}")],
         "layers.encode: no such key; did you mean 'encoder'?"),
        ([("{hidden: 0.5", "{hiden: 0.5")], "losses.hiden: no such key; did you mean 'hidden'?"),
        ([(LOSSES, "{labels: 0, logits: 0}")], "all weights are zero"),
        ([CACHING],
         "distill.cache_logits: hidden states and attention maps need the teacher in every step"),
        ([CACHING, (LOSSES, "{labels: 1.0, logits: 0}")],
         "distill.cache_logits: there is nothing to cache: losses.logits is 0"),
        ([(TEACHER, f"{TEACHER}\n    temperature: 0")],
         "distill.temperature: expected more than 0, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_found_while_planning(plan_errors, changes, expected) -> None:
    """One message with the key's path, what was expected, and the valid range or name."""
    told = plan_errors(*changes, text=RECIPE)
    assert expected in told and "stages.distill" in told


def test_the_teacher_is_part_of_the_key(recipe: Callable[..., Path]) -> None:
    """Another teacher, another key; its name, and what has no weight, change nothing. Skipped, it
    is the model before it, as for every stage that refers to it.
    """

    def planned(*changes: tuple[str, str]) -> Plan:
        path = recipe(*changes, text=RECIPE)
        return plan(compose(str(path)), Store(path.parent / "none"))

    def key(*changes: tuple[str, str]) -> str | None:
        return planned(*changes).node("distill").key

    assert key() != key(("finetune: {epochs: 1}", "finetune: {epochs: 2}"))
    assert key() == key(
        ("load, finetune", "load, big"),
        ("finetune: {epochs: 1}", "big: {stage: finetune, epochs: 1}"),
        (TEACHER, "teacher: big"),
    )
    labels = (LOSSES, "{labels: 1.0, logits: 0.0}")
    assert key(labels) == key(labels, (TEACHER, f"{TEACHER}\n    temperature: 3.0"))
    assert key() != key((TEACHER, f"{TEACHER}\n    temperature: 3.0"))
    logits = (LOSSES, "{}")
    assert key(logits) != key(logits, CACHING)
    skipping = planned(("stages:\n", "skip: [finetune]\nstages:\n"))
    assert skipping.node("distill").artifacts == {"teacher": "load"}
