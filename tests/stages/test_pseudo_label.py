"""A teacher writes, a student learns what it wrote; and what a recipe may say of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import RecipeError, StageError
from compressor.data.batching import global_batches
from compressor.data.examples import (
    PSEUDO_LABELS,
    GeneratedSummary,
    read_pseudo_labels,
    replace_summaries,
    write_pseudo_labels,
)
from compressor.data.sources import Rows
from compressor.engine.plan import Plan
from compressor.evaluation.rouge import score_rows
from compressor.models.checkpoint import Checkpoint
from compressor.recipe.compose import compose
from compressor.reports.tables import list_models
from compressor.training.losses import LabelLoss, mean_loss
from tests.engine.test_plan import plan_recipe
from tests.harness.command import Command
from tests.harness.once import run_once
from tests.harness.recipes import RECIPE
from tests.harness.runs import find_stage, losses

STAGES = """
stages:
  load: {}
  teacher: {stage: finetune, epochs: 2}
  write: {stage: pseudo_label, model: teacher, max_length: 20, min_length: 4}
  small:
    stage: load
    config: {model_type: t5, vocab_size: 300, d_model: 24, d_kv: 8, d_ff: 48, num_layers: 1,
             num_heads: 2, dropout_rate: 0.0, decoder_start_token_id: 0}
    tokenizer: {vocab_size: 300}
  student: {stage: finetune, targets: write, max_steps: 2}
  half: {stage: shrink, model: teacher, decoder_layers: 1}
  distill: {teacher: teacher, targets: write, max_steps: 2, losses: {labels: 1.0, logits: 0.0}}
"""
PICO = RECIPE.replace("[load, finetune, prune, recover, evaluate]",
                      "[load, teacher, write, small, student, half, distill]")  # fmt: skip
TEXT = PICO.replace("train: 64, validation: 16", "train: 32, validation: 8").partition("stages:")[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return run_once(tmp_path_factory, "pseudo", TEXT + STAGES)


def data_of(done: Command) -> Any:
    return compose(str(done.run_folder / "recipe.yaml")).recipe.data


def test_the_figures_follow_from_the_texts(done: Command) -> None:
    """Which are those of `generate`, as the README's table has it."""
    references = data_of(done).load("train").summaries
    labels = read_pseudo_labels(find_stage(done.run_folder, "write") / PSEUDO_LABELS)
    assert min(label.tokens for label in labels) >= 3  # the start token counts, as in transformers
    metrics = done.record("write")["metrics"]
    assert metrics["gen_len"] == pytest.approx(sum(x.tokens for x in labels) / 32)
    assert metrics["cut_off"] == pytest.approx(sum(x.cut_off for x in labels) / 32)
    assert metrics["empty"] == sum(not x.summary.strip() for x in labels)
    scores = score_rows([x.summary for x in labels], references)
    assert metrics["rougeLsum"] == pytest.approx(scores["rougeLsum"][:, 2].mean())
    names = [row["model"] for row in list_models(done.records())]
    assert names == ["load", "teacher", "small", "student", "half", "distill"]  # those of models


@pytest.mark.parametrize(("name", "before"), [("student", "small"), ("distill", "half")])
def test_a_student_learns_the_texts_and_is_validated_on_references(done, name, before) -> None:
    """The first step's loss is that of the texts, with the student's own tokenizer too."""
    data, checkpoint = data_of(done), Checkpoint.load(find_stage(done.run_folder, before))
    rows = data.load("train")
    labels = read_pseudo_labels(find_stage(done.run_folder, "write") / PSEUDO_LABELS)
    written = [label.summary for label in labels]
    assert all(written) and written != rows.summaries
    examples = checkpoint.tokenize_rows(Rows(rows.texts, written), data)
    lengths = examples.lengths(), [len(target) for target in examples.targets]
    batch = global_batches(*lengths, batch_size=8, seed=0, epoch=0)[0]
    with torch.no_grad():
        summed = LabelLoss(checkpoint.model)(examples.batch(batch, checkpoint.pad_id)).item()
    first, *_ = losses(find_stage(done.run_folder, name))
    tokens = sum(len(examples.targets[row]) for row in batch)
    assert first == pytest.approx(summed / tokens, abs=1e-4)

    trained = Checkpoint.load(find_stage(done.run_folder, name))
    validation = trained.tokenize_rows(data.load("validation"), data)
    loss = LabelLoss(trained.model)
    expected = mean_loss(loss, validation, trained.pad_id, torch.device("cpu"))
    assert done.record(name)["metrics"]["validation_loss"] == pytest.approx(expected, abs=1e-4)


def test_labels_come_back_as_they_were_written_and_stand_beside_their_rows(tmp_path: Path) -> None:
    """Line ends of every kind, quotes; where nothing was written the reference is learned, since
    an empty text would teach silence. Another number of rows is refused.
    """
    texts = ('a\nb\r\n"c"', "\u2028\x85 \N{GRINNING FACE}", "", " \n")
    labels = [GeneratedSummary(text, 3, False) for text in texts]
    write_pseudo_labels(tmp_path / PSEUDO_LABELS, labels)
    assert read_pseudo_labels(tmp_path / PSEUDO_LABELS) == labels
    rows = Rows(["a", "b", "c", "d"], ["one", "two", "three", "four"])
    assert replace_summaries(rows, labels) == Rows(rows.texts, [*texts[:2], "three", "four"])
    with pytest.raises(StageError, match="1 pseudo-labels for 4 training rows"):
        replace_summaries(rows, labels[:1])


@pytest.fixture
def plan_changed(tmp_path: Path) -> Callable[..., Plan]:
    """Plan the recipe with overrides."""
    (tmp_path / "mine.yaml").write_text(TEXT + STAGES)
    return partial(plan_recipe, tmp_path / "mine.yaml")


def test_a_students_key_has_what_it_learns(plan_changed) -> None:
    """Another teacher or another way of decoding is another key. Without training nothing is
    written to learn from.
    """
    plan = plan_changed()
    node, distill = plan.node("student"), plan.node("distill")
    assert node.artifacts == {"targets": "write"} and node.model == "small"
    assert distill.artifacts == {"teacher": "teacher", "targets": "write"}
    for change in (
        "stages.student.targets=null", "stages.teacher.epochs=3", "+stages.write.num_beams=2",
    ):  # fmt: skip
        assert plan_changed(change).node("student").key != node.key
    assert [n.name for n in plan_changed("training=none").nodes] == ["load", "small", "half"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("stages.student.targets=wrote",
         "stages.student.targets: no stage 'wrote' before it; did you mean 'write'?"),
        ("pipeline=[load,teacher,small,student,write]",
         "stages.student.targets: 'write' comes later in the pipeline, or is skipped"),
        ("skip=[write]",
         "stages.student.targets: 'write' comes later in the pipeline, or is skipped"),
        ("stages.student.targets=small",
         "stages.student.targets: expected a 'pseudo_label' stage, and 'small' is a 'load'; "
         "valid: write"),
        ("stages.distill.teacher=write", "stages.distill.teacher: 'write' gives no model"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_found_while_planning(
    plan_changed, change, expected
) -> None:
    """One message, at the key that is wrong, with the nearest valid name."""
    with pytest.raises(RecipeError) as error:
        plan_changed(change)
    assert expected in str(error.value)
    assert len({problem.path for problem in error.value.problems}) <= 2
