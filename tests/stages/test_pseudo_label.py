"""A teacher writes, a student learns what it wrote; and what a recipe may say of it."""

from __future__ import annotations

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
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.evaluation.rouge import score_rows
from compressor.models.checkpoint import Checkpoint
from compressor.recipe.compose import compose
from compressor.reports.tables import list_models
from compressor.training.loop import mean_loss
from compressor.training.losses import LabelLoss
from tests.harness.command import Command, compressor
from tests.harness.runs import find_stage, losses

RECIPE = """
defaults: [/base, /model: tiny, /data: bills, _self_]
pipeline: [load, teacher, write, small, student, half, distill]
model:
  config: {vocab_size: 400, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2}
  tokenizer: {vocab_size: 400}
data: {rows: {train: 32, validation: 8, test: 8}, max_source_length: 64, max_target_length: 24}
training: {batch_size: 8, learning_rate: 0.003, warmup_steps: 2}
stages:
  load: {}
  teacher: {stage: finetune, epochs: 2}
  write: {stage: pseudo_label, model: teacher, max_length: 20, min_length: 4}
  small:
    stage: load
    config:
      {model_type: t5, vocab_size: 300, d_model: 24, d_kv: 8, d_ff: 48, num_layers: 1,
       num_heads: 2, dropout_rate: 0.0, decoder_start_token_id: 0}
    tokenizer: {vocab_size: 300}
  student: {stage: finetune, targets: write, max_steps: 2}
  half: {stage: shrink, model: teacher, decoder_layers: 1}
  distill: {teacher: teacher, targets: write, max_steps: 2, losses: {labels: 1.0, logits: 0.0}}
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A run of the recipe."""
    folder = tmp_path_factory.mktemp("pseudo")
    (folder / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", cwd=folder)
    assert done.code == 0, done.err
    return done


def data_of(done: Command) -> Any:
    return compose(str(done.run_folder / "recipe.yaml")).recipe.data


def test_the_texts_are_what_generate_gives(done: Command) -> None:
    """Row by row transformers' own greedy search, with both limits; the figures follow from it."""
    teacher, data = Checkpoint.load(find_stage(done.run_folder, "teacher")), data_of(done)
    rows = data.load("train")
    expected = []
    for ids in teacher.tokenize_rows(rows, data).sources:
        limits = {"max_length": 20, "min_length": 4, "do_sample": False}
        (out,) = teacher.model.generate(torch.tensor([ids]), **limits)
        ends = out[-1].item() == teacher.tokenizer.eos_token_id
        text = teacher.tokenizer.decode(out, skip_special_tokens=True)
        expected.append(GeneratedSummary(text, len(out) - 1, not ends))
    labels = read_pseudo_labels(find_stage(done.run_folder, "write") / PSEUDO_LABELS)
    assert labels == expected
    assert min(label.tokens for label in labels) >= 3  # the start token counts, as in transformers
    metrics = done.record("write")["metrics"]
    assert metrics["gen_len"] == pytest.approx(sum(x.tokens for x in expected) / 32)
    assert metrics["cut_off"] == pytest.approx(sum(x.cut_off for x in expected) / 32)
    assert metrics["empty"] == sum(not x.summary.strip() for x in expected)
    scores = score_rows([x.summary for x in expected], rows.summaries)
    assert metrics["rougeLsum"] == pytest.approx(scores["rougeLsum"][:, 2].mean())
    assert metrics["samples_per_second"] == pytest.approx(32 / metrics["seconds"])


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


def test_a_stage_that_gives_no_model_has_no_row_in_the_table(done: Command) -> None:
    """Only models have rows; the one that wrote has its own."""
    rows = list_models(done.records())
    names = ["load", "teacher", "small", "student", "half", "distill"]
    assert [row["model"] for row in rows] == names


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


def plan_recipe(tmp_path: Path, *replacements: tuple[str, str]) -> Plan:
    text = RECIPE
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "mine.yaml").write_text(text)
    return plan(compose(str(tmp_path / "mine.yaml")), Store(tmp_path / "none"))


def test_a_students_key_has_what_it_learns(tmp_path: Path) -> None:
    """Another teacher or another way of decoding is another key; another name is the same."""

    def key(*changes: tuple[str, str]) -> str | None:
        return plan_recipe(tmp_path, *changes).node("student").key

    node = plan_recipe(tmp_path).node("student")
    assert node.artifacts == {"targets": "write"} and node.model == "small"
    assert plan_recipe(tmp_path).node("distill").artifacts == {
        "teacher": "teacher",
        "targets": "write",
    }
    assert key() != key(("{stage: finetune, targets: write,", "{stage: finetune,"))
    assert key() != key(("finetune, epochs: 2", "finetune, epochs: 3"))
    assert key() != key(("min_length: 4}", "min_length: 4, num_beams: 2}"))
    assert key() == key(("write", "say"))


GPT2 = "{model_type: gpt2, vocab_size: 400, n_embd: 24, n_layer: 2, n_head: 2}"
STUDENT = "{stage: finetune, targets: write, max_steps: 2}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(STUDENT, STUDENT.replace("write", "wrote"))],
         "stages.student.targets: no stage 'wrote' before it; did you mean 'write'?"),
        ([("write, small, student", "small, student, write")],
         "stages.student.targets: 'write' comes later in the pipeline, or is skipped"),
        ([("stages:\n", "skip: [write]\nstages:\n")],
         "stages.student.targets: 'write' comes later in the pipeline, or is skipped"),
        ([(STUDENT, STUDENT.replace("write", "small"))],
         "stages.student.targets: expected a 'pseudo_label' stage, and 'small' is a 'load'; "
         "valid: write"),
        ([("distill: {teacher: teacher, targets: write", "distill: {teacher: teacher, targets: x")],
         "stages.distill.targets: no stage 'x' before it; valid: write"),
        ([("{teacher: teacher", "{teacher: write")],
         "stages.distill.teacher: 'write' gives no model"),
        ([("{stage: pseudo_label, model: teacher", "{stage: pseudo_label, model: student")],
         "stages.write.model: 'student' comes later"),
        ([("write, small", "gpt, write, small"), ("model: teacher, max", "model: gpt, max"),
          ("  small:", f"  gpt: {{stage: load, config: {GPT2}, head: causal_lm}}\n  small:")],
         "stages.write: writes with sequence-to-sequence models only"),
        ([("max_length: 20", "max_length: 1")], "stages.write.max_length"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_found_while_planning(tmp_path, changes, expected) -> None:
    """One message, at the key that is wrong, with the nearest valid name."""
    with pytest.raises(RecipeError) as error:
        plan_recipe(tmp_path, *changes)
    assert expected in str(error.value)
    assert len({problem.path for problem in error.value.problems}) <= 2


def test_nothing_is_written_where_nothing_is_trained(tmp_path: Path) -> None:
    """`training=none` leaves it out with the stages that would learn from it."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    nodes = plan(compose(str(tmp_path / "mine.yaml"), ["training=none"]), Store(tmp_path)).nodes
    assert [node.name for node in nodes] == ["load", "small", "half"]
