"""What a newcomer reads after a mistake is enough to mend it: `wrong_recipes.yaml` has the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from compressor.cli.main import main
from compressor.core.errors import RecipeError, StageError
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from tests.harness.recipes import RECIPE

LIST = Path(__file__).with_name("wrong_recipes.yaml")
CASES: list[dict[str, Any]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))
ROW = json.dumps({"text": "A bill to fund parks.", "summary": "Parks."})
FILES = "data.files.train=rows.jsonl", "data.files.validation=rows.jsonl"


def replace(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
        text = text.replace(old, new)
    return text


def list_problems(recipe: str, *overrides: str) -> list[str]:
    """List what planning says is wrong; nothing where all is well."""
    try:
        composed = compose(recipe, overrides)
        plan(composed, Store.of(composed.recipe.outputs)).require_reachable()
    except RecipeError as error:
        return [str(problem) for problem in error.problems]
    return []


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A newcomer's folder, with a recipe and rows in it."""
    (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(f"{ROW}\n" * 20, encoding="utf-8")
    number = json.dumps({"text": "A bill.", "summary": 7})
    (tmp_path / "numbers.jsonl").write_text(f"{ROW}\n{number}\n", encoding="utf-8")
    (tmp_path / "blank.csv").write_text("text,summary\na,b\nc,\nd, \n", encoding="utf-8")
    (tmp_path / "empty.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["mistake"].replace(" ", "-"))
def test_the_message_is_all_that_one_needs(case: dict[str, Any]) -> None:
    """It says what is wrong, where, and what to write; then the recipe plans."""
    path = Path("mine.yaml")
    wrong = replace(RECIPE, case.get("wrong", {}))
    path.write_text(wrong, encoding="utf-8")
    messages = list_problems("mine.yaml", *case.get("arguments", []))
    assert messages, "the mistake was not noticed"
    for part in case["says"]:
        assert any(part in message for message in messages), messages
    assert len(messages) == 1, "one mistake, one message"
    mended, arguments = replace(wrong, case.get("mend", {})), case.get("mended", [])
    if (mended, arguments) != (RECIPE, []):
        path.write_text(mended, encoding="utf-8")
        assert list_problems("mine.yaml", *arguments) == []


def test_the_command_tells_several_mistakes_at_once(place: Path, capsys: Any) -> None:
    """As somebody sees it: exit code 2, a line for each, no traceback; nothing is written. Of the
    top, `data` and `training` as well as of the stages.
    """
    changes = {
        "pipeline": "seeed: 1\npipeline", "max_source_length": "max_length",
        "batch_size": "batchsize", "finetune: {epochs": "finetune: {epoch",
        "stage: finetune": "stage: finetun", "lm_head: 0.3": "lm_head: 30",
    }  # fmt: skip
    (place / "mine.yaml").write_text(replace(RECIPE, changes), encoding="utf-8")
    assert main(["run", "mine.yaml"]) == 2
    *errors, last = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in errors] == [
        "data.max_length", "seeed", "training.batchsize", "stages.finetune.epoch",
        "stages.prune.amounts.lm_head", "stages.recover.stage",
    ]  # fmt: skip
    assert last == "6 errors"
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xff\xfe\x00", "mine.yaml: not UTF-8 text"),
        (b"- a\n- b\n", "not a list"),
        (b"", "pipeline"),
        (b"a: 1\nb: 2\na: 3\n", "mine.yaml:3: not valid YAML: found duplicate key a"),
        (b"[" * 500, "too many levels"),
        # It took 8 s of going round.
        *(((f"defaults: {parents}\n").encode(), "among its own defaults")
          for parents in ("[mine]", "[/base, ./mine]", "[/base, {/: mine}]", "[other]")),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused(content: bytes, expected: str) -> None:
    """Bytes, a list, nothing, a key that stands twice, brackets without end: one message each."""
    Path("other.yaml").write_text("defaults: [mine]\n")
    Path("mine.yaml").write_bytes(content)
    assert any(expected in problem for problem in list_problems("mine.yaml"))


@pytest.mark.parametrize(
    ("name", "recipe", "expected"),
    [
        ("mine.yaml", "mine", "did you mean 'mine.yaml'?"),
        ("my mine.yaml", "my mine.yaml", "the file's name, where no `name:` is set"),
        ("tiny.yaml", "tiny.yaml", ""),  # called as a group's option is
    ],
)
def test_a_recipe_that_is_named_wrongly_is_refused(name: str, recipe: str, expected: str) -> None:
    """Its ending is left out; its file's name is none for a folder of runs."""
    Path("mine.yaml").rename(name)
    problems = "".join(list_problems(recipe))
    assert expected in problems and bool(expected) == bool(problems)


@pytest.mark.parametrize(
    ("written", "decimal"),
    [("010", "10"), ("-0_17", "-17"), ("0", None), ("00", None), ("'010'", None), ("0x10", None)],
)
def test_a_number_is_what_it_looks_like(written: str, decimal: str | None) -> None:
    """`batch_size: 010` used to be 8, which YAML 1.1 reads in base 8."""
    text = RECIPE.replace("batch_size: 8", f"batch_size: {written}")
    Path("mine.yaml").write_text(text, encoding="utf-8-sig")  # a byte order mark is none of it
    problems = "".join(list_problems("mine.yaml"))
    assert ("base 8" in problems) == (decimal is not None)
    assert decimal is None or f"mine.yaml:8: {written} is" in problems
    assert decimal is None or f"write {decimal}, or" in problems


def test_a_folder_that_is_no_model_is_refused() -> None:
    """Without a config, with one that is none, and an artifact, whose masks would be lost. Weights
    that are cut off, in their header or behind it, are found while planning.
    """
    assert "no directory 'nowhere'" in list_problems("mine.yaml", "model.source=./nowhere")[0]

    def problems() -> str:
        return "".join(list_problems("mine.yaml", "model.source=./model", "~model.config"))

    Path("model").mkdir()
    for content, expected in (
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "holds no object"),
        (b'{"model_type": "t5", "d_model": 0}', "whole number"),
        (b'{"model_type": "t6"}', "no architecture 't6'"),
    ):
        Path("model/config.json").write_bytes(content)
        assert expected in problems()
    Path("model/config.json").write_text('{"model_type": "t5", "d_model": 32, "num_layers": 1}')
    header = b'{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(32)
    for length, cure in ((40, ""), (len(content) - 1, f"{len(content)} bytes; copy it again")):
        Path("model/model.safetensors").write_bytes(content[:length])
        assert f"model.safetensors' is cut off: {length} of {cure}" in problems()
    Path("model/model.safetensors").write_bytes(content)
    assert "cut off" not in problems()
    Path("model/manifest.json").write_text("{}")
    assert "is an artifact of a run" in problems()


def test_a_model_of_an_unreachable_hub_is_planned_and_not_run() -> None:
    """The plan itself only warns of it."""
    overrides = "model.source=google-t5/t5-small", "~model.config"
    assert "hub cannot be reached" in "".join(list_problems("mine.yaml", *overrides))
    planned = plan(compose("mine.yaml", overrides), Store(Path("store")))
    assert planned.unreached and planned.node("load").key is None


def test_names_with_spaces_and_brackets_are_only_names(recipe: Any, capsys: Any) -> None:
    """A recipe's file name and a label go through Hydra and the tables as they are."""
    path = recipe(("prune: {", "prune: {label: '[bold]x[/nothing]', "), name="my (1st), it's.yaml")
    assert main(["run", str(path), "name=mine", "skip=[finetune, recover, evaluate]"]) == 0
    assert "[bold]x[/nothing]" in capsys.readouterr().out


def test_rows_that_change_under_a_run_are_noticed() -> None:
    """A key says what was read: rows edited between plan and run are not stored under it."""
    planned = plan(compose("mine.yaml", ["data=files", *FILES]), Store(Path("store")))
    planned.require_unchanged(planned.node("finetune"))
    Path("rows.jsonl").write_text(f"{ROW}\n" * 21)
    with pytest.raises(StageError, match="train rows have changed"):
        planned.require_unchanged(planned.node("finetune"))


def test_your_own_rows_run_end_to_end() -> None:
    """The same recipe on a file of one's own: one JSON array of objects, as many tools write it."""
    Path("rows.json").write_text(json.dumps([json.loads(ROW)] * 24, indent=1))
    data = ["data=files", *(setting.replace("jsonl", "json") for setting in FILES)]
    quick = ["skip=[finetune]", "stages.evaluate.max_length=8"]
    assert main(["run", "mine.yaml", "-q", *data, *quick]) == 0
