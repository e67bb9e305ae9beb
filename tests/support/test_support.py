"""Each cell of the README's table: as near to plain transformers as it says, or refused in a plan.

A number is the largest difference, as a share of the largest value of the reference. The target
`test-faults` tries all families, and all graphs of ONNX; `make test` some families of each kind.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from compressor.backends.formats import FORMATS
from compressor.engine.launcher import run_processes
from compressor.models.facts import _MODULES, load_architecture
from compressor.stages.base import stage_kinds
from compressor.training.launch_config import Processes
from tests.faults import LONG
from tests.support import reload
from tests.support.cells import INFINITE, STAGES, Subject, difference
from tests.support.families import AUTO, FAMILIES

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TOGETHER = ("2 processes", "reload")
"""Columns that one pair of processes, and one fresh process, fill for all families."""
NO_REFERENCE = {"baseline": "it reads no model", "benchmark": "it gives seconds and bytes"}
OF_SENTENCEPIECE = ("sentencepiece", "marian", "marian_two")
"""Tokenizers that are made with that package."""
SAVED = ("load", "shrink", "slice", "heads", "trim")
TRIED = FAMILIES if LONG else (
    "T5 v1.1", "BART untied", "Marian, 2 vocabularies", "BERT", "RoBERTa of words", "GPT-2",
    "Qwen3 classifier",
)  # fmt: skip
TRIED_TOGETHER = FAMILIES if LONG else ("LongT5", "Pegasus", "Llama")


def read_table() -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Family → column → cell, and the reason that stands behind each letter."""
    (section,) = re.findall(
        r"^## What each family can do$(.+?)^## ", README, re.DOTALL | re.MULTILINE
    )
    cells: dict[str, dict[str, str]] = {}
    header: list[str] = []
    for line in section.splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or set(row[-1]) <= set(":-"):
            header = header if line.startswith("|") else []
        elif not header:
            header = row
        else:
            cells.setdefault(row[0], {}).update(zip(header[1:], row[1:], strict=True))
    return cells, dict(re.findall(r"^- `(\w)`: (.+)$", section, re.MULTILINE))


CELLS, REASONS = read_table()


def check(name: str, column: str, outcome: float | str) -> list[str]:
    """Say what is wrong with a cell."""
    cell = CELLS[name][column]
    if isinstance(outcome, str) and "which is not installed" in outcome and cell not in REASONS:
        return []
    is_right = isinstance(outcome, float) and cell not in REASONS and outcome <= float(cell)
    if cell in REASONS:
        is_refused = str(outcome).startswith("refused at planning: ")
        is_right = is_refused and REASONS[cell] in str(outcome)
    return [] if is_right else [f"{name}, {column}: expected {cell}, got {outcome}"]


def list_columns(name: str) -> list[str]:
    """List the columns to try of a family; tracing ONNX's graphs takes longest."""
    return [c for c in STAGES if LONG or c[:4] != "onnx" or CELLS[name][c] in REASONS]


@pytest.mark.parametrize("name", TRIED)
def test_a_family_is_as_near_to_its_reference_as_the_table_says(name: str, tmp_path: Path) -> None:
    """Or a plan refuses it, with the reason; nothing fails in a run."""
    if FAMILIES[name].tokenizer in OF_SENTENCEPIECE:
        pytest.importorskip("sentencepiece")
    columns = list_columns(name)
    subject = Subject(FAMILIES[name], tmp_path, columns)
    assert [wrong for c in columns for wrong in check(name, c, subject.outcome(c))] == []


def test_two_processes_train_the_same_and_plain_transformers_loads_what_was_saved(tmp_path) -> None:
    """Families, one after the other in one pair of processes, and in one fresh process."""
    is_there = find_spec("sentencepiece") is not None
    names = [n for n in TRIED_TOGETHER if is_there or FAMILIES[n].tokenizer not in OF_SENTENCEPIECE]
    columns = ("finetune", *SAVED)
    subjects = {
        name: Subject(FAMILIES[name], tmp_path / str(index), columns, left_out=["finetune"])
        for index, name in enumerate(names)
    }
    outcomes = two_processes(subjects, tmp_path), reloaded(subjects, tmp_path)
    wrong = [
        problem
        for column, results in zip(TOGETHER, outcomes, strict=True)
        for name, outcome in results.items()
        for problem in check(name, column, outcome)
    ]
    assert wrong == []


def two_processes(subjects: Mapping[str, Subject], folder: Path) -> dict[str, float | str]:
    """Compare what two processes train with the reference."""
    tasks = {n: s.task("finetune", folder / f"task {n}") for n, s in subjects.items()}
    listed, logs = folder / "tasks.json", folder / "logs"
    listed.write_text(json.dumps([str(task) for task in tasks.values()]), encoding="utf-8")
    logs.mkdir()
    code = run_processes(listed, Processes(2), logs, lambda _: None, module="tests.support.pair")
    assert code == 0, (logs / "log").read_text(errors="replace")[-3000:]
    return {
        name: subjects[name].trained(Path(json.loads(task.read_text())["folder"]))
        for name, task in tasks.items()
    }


def reloaded(subjects: Mapping[str, Subject], folder: Path) -> dict[str, float | str]:
    """Compare what plain transformers loads of stages' folders with their models."""
    saved = {
        (name, column): subject.path(column)
        for name, subject in subjects.items()
        for column in SAVED
        if column not in subject.refused
    }
    listed = folder / "folders.json"
    loads = [(AUTO[FAMILIES[name].head], str(path)) for (name, _), path in saved.items()]
    listed.write_text(json.dumps(loads), encoding="utf-8")
    subprocess.run([sys.executable, reload.__file__, str(listed)], check=True, capture_output=True)
    outcomes: dict[str, float | str] = {}
    for (name, column), path in saved.items():
        if (path / reload.REASON).is_file():
            outcomes[name] = f"{column}: {(path / reload.REASON).read_text()}"
        elif not isinstance(outcomes.get(name), str):
            result = torch.load(path / reload.LOGITS, weights_only=True)
            apart = difference(result, reload.fingerprint(subjects[name].model(column)))
            outcomes[name] = max(apart, float(outcomes.get(name, 0.0)))
    return outcomes


def test_the_table_has_every_family_stage_and_format() -> None:
    """Each model type with each head that can be trained; no cell is empty."""
    kinds = {(family.model_type, family.head) for family in FAMILIES.values()}
    known = {(m, h) for m in _MODULES for h in load_architecture(m).HEADS}
    assert kinds == {(m, h) for m, h in known if h != "none"}
    stages = {str(s.get("stage", c.replace(" ", "_"))) for c, s in STAGES.items()}
    assert stages | NO_REFERENCE.keys() == set(stage_kinds())
    assert {str(s["format"]) for s in STAGES.values() if s.get("stage") == "export"} == set(FORMATS)
    assert list(CELLS) == list(FAMILIES)
    for name, row in CELLS.items():
        assert row.keys() == {*STAGES, *TOGETHER}
        assert all(cell in REASONS or float(cell) < INFINITE for cell in row.values()), name
