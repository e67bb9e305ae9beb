"""Tasks of lm_eval on a stage's model: its own scores of it, or one sentence while planning."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compressor.core.errors import RecipeError
from compressor.recipe.objective import Goal
from tests.engine.test_plan import plan_recipe
from tests.harness.command import compressor
from tests.harness.runs import find_stage
from tests.stages.test_decoders import ALONE

HARNESS = "evaluate: {models: [finetune, quantize], harness: [./quiz.yaml], trust_remote_code: true"
RECIPE = ALONE.replace("evaluate: {models: [finetune, prune, distill, quantize]", HARNESS)
TASK = """
task: quiz
dataset_path: json
dataset_kwargs: {data_files: {test: quiz.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}} Answer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
CHOICES = ["schools", "the states and the rivers", "parks"]
SKIP = ["skip=[curves, prune, half, thin, distill]", "stages.quantize.model=finetune"]
PACKED = [
    "pipeline=[load, ct2, evaluate]",
    "stages.ct2={stage: export, format: ctranslate2}",
    "stages.evaluate.models=[ct2]",
]

T5 = ["model.head=seq2seq_lm", "model.config={model_type: t5, d_model: 32, vocab_size: 400}"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe, a task, and the task's rows."""
    rows = [
        {"question": f"Act {number} gives grants to", "choices": CHOICES, "answer": number % 3}
        for number in range(12)
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "quiz.yaml").write_text(TASK)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find_key(node: str) -> str:
    """A process reads a task once, so each plan has one of its own."""
    stages = json.loads(compressor("plan", "mine.yaml", "--json", *SKIP).out)
    (key,) = (stage["key"] for stage in stages if stage["name"] == node)
    return str(key)


def test_scores_are_those_of_lm_eval(folder: Path) -> None:
    """Called by itself on the stage's folder; what they rest on is in the key; a table has them."""
    lm_eval = pytest.importorskip("lm_eval", reason="needs the extra `harness`")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    done = compressor("run", "mine.yaml", *SKIP, cwd=folder)
    assert done.code == 0, done.err
    about: Any = {"batch_size": 8, "device": "cpu"}
    reader = HFLM(pretrained=str(find_stage(done.run_folder, "finetune")), **about)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    about = {"task_manager": manager, "log_samples": False}
    expected = lm_eval.simple_evaluate(reader, tasks=["quiz"], **about)["results"]["quiz"]
    metrics = done.record("evaluate@finetune")["metrics"]
    names = ("acc", "acc_stderr", "acc_norm", "acc_norm_stderr")
    assert metrics["harness"] == {"quiz": {name: expected[f"{name},none"] for name in names}}
    assert "quiz.acc_norm" in done.out and "stderr" not in done.out
    quantized = done.record("evaluate@quantize")["metrics"]
    assert quantized["perplexity"] == pytest.approx(metrics["perplexity"], rel=0.01)

    goals = ("evaluate@finetune.harness.quiz.acc_norm", "evaluate.bytes", "evaluate.loss")
    values = [Goal(path, "maximize").find_value(done.records()) for path in goals]
    assert values == [metrics["harness"]["quiz"]["acc_norm"], done.record("quantize")["bytes"],
                      quantized["loss"]]  # fmt: skip
    goal = "+objective.maximize=evaluate.harness.quiz.acc_norm"
    assert compressor("plan", "mine.yaml", goal, *SKIP, cwd=folder).code == 0

    rehearsed = compressor("run", "mine.yaml", "--rehearse", *SKIP, cwd=folder)
    assert rehearsed.code == 0 and "harness: ['./quiz.yaml'] → []" in rehearsed.out, rehearsed.err

    key = find_key("evaluate@quantize")
    assert key == done.record("evaluate@quantize")["key"]
    (folder / "quiz.yaml").write_text(f"# a comment\n{TASK}")
    assert find_key("evaluate@quantize") == key
    for name, change in {"quiz.jsonl": "\n", "quiz.yaml": "num_fewshot: 1\n"}.items():
        (folder / name).write_text((folder / name).read_text() + change)
        assert find_key("evaluate@quantize") != key
        key = find_key("evaluate@quantize")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+objective.maximize=evaluate.harness.quiz.f1"], "leaves no number 'harness.quiz.f1'"),
        (["stages.evaluate.trust_remote_code=false"], "harness.0: './quiz.yaml' may run the code"),
        (["stages.evaluate.harness=[./quiz.yml.yaml]"], "harness.0: no file './quiz.yml.yaml'"),
        (["stages.evaluate.harness=[arc_easi]"], "harness.0: lm_eval has no task 'arc_easi'; did"),
        (["stages.evaluate.harness=[arc_easy]"], "harness.0: dataset 'allenai/ai2_arc' is not on"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused(
    folder: Path, overrides: list[str], expected: str
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra `harness`")
    done = compressor("run", "mine.yaml", *SKIP, *overrides, cwd=folder)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert expected in done.err


def test_without_lm_eval_the_plan_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(RecipeError, match="harness: lm_eval is not installed: pip install"):
        plan_recipe("mine.yaml", *SKIP)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stages.evaluate.harness=[]"], "trust_remote_code: means nothing"),
        (PACKED, "harness: scores what torch runs, and ctranslate2 runs this"),
        (T5, "harness: scores decoders, and the model has the head 'seq2seq_lm'"),
    ],
)
def test_other_models_are_refused(folder: Path, overrides: list[str], expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan_recipe("mine.yaml", *overrides)
    assert expected in str(error.value)
