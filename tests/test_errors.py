"""What a user sees of a mistake: one message with place and cure, and never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.errors import StageError
from compressor.plan import plan
from compressor.recipe import compose
from compressor.store import Store
from tests.conftest import RECIPE


def files(tmp_path: Path, rows: int = 4, **columns: str) -> Path:
    """A JSON-lines file with the given columns."""
    path = tmp_path / "rows.jsonl"
    names = columns or {"text": "A bill to fund parks.", "summary": "Funds parks."}
    path.write_text("".join(json.dumps(names) + "\n" for _ in range(rows)))
    return path


FILES = "data: {source: files, files: {train: rows.jsonl, validation: rows.jsonl}}"
BILLS = next(line for line in RECIPE.splitlines() if line.startswith("data: "))


def with_files(recipe) -> Path:
    return recipe(("/data: bills", "/data: files"), (BILLS, FILES))


def test_a_broken_yaml_names_file_and_line(recipe, run) -> None:
    """Hydra's own traceback for this is 60 lines long."""
    path = recipe(("load: {}", "load: {"))
    result = run("run", path)
    assert result.code == 2
    assert f"{path}:" in result.err
    assert "not valid YAML" in result.err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("format: packed, weights: int4", ["export.weights", "'float32', 'bfloat16'"]),
        ("format: pack", ["export.format", "'huggingface', 'packed'"]),
        ("weights: int8", ["export.weights", "'huggingface' cannot store 'int8'; valid: "]),
        ("format: packed, weights: float16", ["'packed' cannot store", "did you mean 'bfloat16'"]),
        ("format: packed, weights: float32", ["export.weights", "is int8 already", "'float32'"]),
    ],
)
def test_an_export_that_cannot_be_is_found_while_planning(recipe, run, settings, expected) -> None:
    """Weights that a format does not have, and a second rounding of an int8 model."""
    stages = f"  quantize: {{}}\n  export: {{{settings}}}\n  evaluate:"
    path = recipe(("recover, evaluate]", "quantize, export]"), ("  evaluate:", stages))
    result = run("plan", path)
    assert result.code == 2, result.out + result.err
    for part in expected:
        assert part in result.err, result.err


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("pipeline: [load,", "pipelin: [load,", ["pipelin", "did you mean 'pipeline'?"]),
        ("recover: {stage: finetune", "recover: {stage: finetunes", ["did you mean 'finetune'?"]),
        ("prune, recover,", "prune, recovr,", ["pipeline.3", "did you mean 'recover'?"]),
        ("{epochs: 1}\n  prune", "{epochs: many}\n  prune", ["stages.finetune.epochs", "'many'"]),
        ("{epochs: 1}\n  prune", "{epochs: -1}\n  prune", ["stages.finetune.epochs", "-1"]),
        ("encoder: {feed_forward", "encodr: {feed_forward", ["amounts.encodr.feed_forward"]),
        ("lm_head: 0.3", "lm_head: 1.3", ["stages.prune.amounts.lm_head", "1.3"]),
        ("batch_size: 8", "batchsize: 8", ["training.batchsize", "did you mean 'batch_size'?"]),
        ("/model: tiny", "/model: tinny", ["did you mean 'tiny'?"]),
        ("max_source_length", "max_sourc_length", ["did you mean 'max_source_length'?"]),
        ("[8, 16]", "[0, 16]", ["stages.evaluate.max_length", "at least 2"]),
        ("load: {}", "load: {source: ./nowhere}", ["no directory 'nowhere'"]),
        ("load: {}", "load: {source: google-t5/t5-small}", ["hub cannot be reached"]),
        ("d_model: 32", "model_type: gpt5", ["model_type", "no architecture 'gpt5'"]),
        ("load: {}", "load: {tokenizer: {vocab: 3}}", ["tokenizer.vocab", "vocab_size"]),
        ("load: {}", "load: {config: '${oc.env:HOME}'}", ["not allowed"]),
        ("num_layers: 2,", "num_layers: two,", ["config.num_layers", "whole number", "'two'"]),
        ("num_layers: 2,", "num_layers: -2,", ["config.num_layers", "whole number", "-2"]),
        (
            "stages:\n",
            "hydra: {callbacks: {x: {_target_: os.system}}}\nstages:\n",
            ["hydra.callbacks", "not allowed"],
        ),
        ("load: {}", "load: {config: '${oc.${description}:HOME}'}", ["not allowed"]),
        ("[/base,", "['/${oc.env:HOME}', /base,", ["defaults", "not allowed"]),
        (
            "stages:\n",
            "<<: {hydra: {callbacks: {x: {_target_: os.system}}}}\nstages:\n",
            ["hydra.callbacks", "not allowed"],
        ),
        (
            "stages:\n",
            "hydra: {sweeper: {params: {+hydra.job.env_set.X: a}}}\nstages:\n",
            ["hydra.sweeper.params", "not allowed"],
        ),
        (
            "stages:\n",
            "hydra: {launcher: {_target_: os.system}}\nstages:\n",
            ["hydra.launcher._target_", "not allowed"],
        ),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_cure(recipe, run, old, new, expected) -> None:
    """Exit code 2; the key's path, what was expected, the nearest name; nothing is written."""
    path = recipe((old, new))
    result = run("run", path)
    assert result.code == 2, result.out + result.err
    assert str(path) in result.err
    for text in expected:
        assert text in result.err
    assert not (path.parent / "outputs").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"defaults: [mine]\n", "among its own defaults"),
        (b"\xff\xfe\x00", "mine.yaml"),
        (b"- a\n- b\n", "not a list"),
        (b"", "pipeline"),
        (b"a:\n\t- b\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, run, content, expected) -> None:
    """Recursion, bytes, a list, nothing, a tab: one message each."""
    (tmp_path / "mine.yaml").write_bytes(content)
    result = run("plan", "mine.yaml")
    assert result.code == 2
    assert expected in result.err


def test_a_recipe_called_hydra_is_checked_as_any_other(recipe, run) -> None:
    """Neither its name nor a group of that name hides a section that would run code."""
    section = ("stages:\n", "hydra: {callbacks: {x: {_target_: os.system}}}\nstages:\n")
    result = run("plan", recipe(section, name="hydra_x.yaml"))
    assert result.code == 2
    assert "hydra.callbacks" in result.err


def test_a_tokenizer_that_is_not_there_is_told(recipe, run) -> None:
    """While planning, not by an assertion in the run."""
    result = run("plan", recipe(), "model.tokenizer=./nowhere/at/all")
    assert result.code == 2
    assert "model.tokenizer: no directory './nowhere/at/all'" in result.err


def test_outputs_that_are_a_file_are_refused(recipe, run, tmp_path) -> None:
    """Exit code 2, not the operating system's own words."""
    (tmp_path / "taken").write_text("")
    result = run("run", recipe(), "outputs=taken/here")
    assert result.code == 2
    assert "is a file, not a folder" in result.err


def test_an_artifact_is_no_source_of_a_model(recipe, run) -> None:
    """Plain loading would lose masks; the message says what to take instead."""
    path = recipe()
    done = run("run", path, "skip=[finetune, evaluate]")
    (folder,) = (path.parent / done.run_folder).glob("stages/*-prune")
    result = run("plan", path, f"model.source={folder.resolve()}")
    assert result.code == 2
    assert "is an artifact of a run" in result.err


def test_a_folder_whose_config_is_no_config_is_refused(recipe, run, tmp_path) -> None:
    """Not JSON, not UTF-8, not an object, a width of no width."""
    (tmp_path / "mine").mkdir()
    for content, expected in (
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[]", "holds no object"),
        (b'{"model_type": "t5", "d_model": 0}', "whole number"),
        (b'{"model_type": "t6"}', "no architecture 't6'"),
    ):
        (tmp_path / "mine" / "config.json").write_bytes(content)
        result = run("plan", recipe(("load: {}", "load: {source: ./mine}")))
        assert result.code == 2
        assert expected in result.err


def test_weights_that_are_cut_off_are_found_while_planning(recipe, run, tmp_path) -> None:
    """A copy that was broken off, in its header or behind it; the same file whole is planned."""
    folder, path = tmp_path / "mine", recipe(("load: {}", "load: {source: ./mine}"))
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "t5", "d_model": 32, "num_layers": 1}')
    header = b'{"a": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(32)
    for length in (40, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        result = run("plan", path)
        assert result.code == 2
        assert f"model.safetensors' is cut off: {length} of " in result.err
    assert f"{length} of {len(whole)} bytes; copy it again" in result.err
    (folder / "model.safetensors").write_bytes(whole)
    assert "cut off" not in run("plan", path).err


def test_names_with_spaces_and_brackets_are_only_names(recipe, run) -> None:
    """A recipe's file name and a label go through Hydra and the tables as they are."""
    path = recipe(("prune: {", "prune: {label: '[bold]x[/nothing]', "), name="my (1st), it's.yaml")
    result = run("run", path, "skip=[finetune, evaluate]")
    assert result.code == 2  # a run's folder takes the recipe's name
    assert "name: " in result.err
    result = run("run", path, "name=mine", "skip=[finetune, evaluate]")
    assert result.code == 0, result.err
    assert "[bold]x[/nothing]" in result.out


def test_a_missing_data_file_is_found_while_planning(recipe, run, tmp_path) -> None:
    """With the nearest file beside it."""
    path = with_files(recipe)
    (tmp_path / "row.jsonl").write_text("{}\n")
    result = run("plan", path)
    assert result.code == 2
    assert "data.files.train" in result.err
    assert "did you mean 'row.jsonl'?" in result.err


def test_a_missing_column_is_found_while_planning(recipe, run, tmp_path) -> None:
    """With the columns that are there."""
    files(tmp_path, txt="a", summary="b")
    result = run("plan", with_files(recipe))
    assert result.code == 2
    assert "no column 'text'" in result.err
    assert "did you mean 'txt'?" in result.err


def test_an_empty_split_is_an_error(recipe, run, tmp_path) -> None:
    """An empty file is found while planning."""
    files(tmp_path, rows=0)
    result = run("run", with_files(recipe))
    assert result.code == 2
    assert "empty" in result.err


def test_a_value_that_is_no_text_names_its_row(recipe, run, tmp_path) -> None:
    """Found while planning, before anything is made."""
    path = files(tmp_path)
    path.write_text(path.read_text() + '{"text": 5, "summary": "b"}\n')
    result = run("run", with_files(recipe))
    assert result.code == 2
    assert "row 4, column 'text': int 5, not text" in result.err
    assert not list((tmp_path / "outputs").glob("store/*/manifest.json"))


def test_rows_that_change_under_a_run_are_noticed(recipe, tmp_path) -> None:
    """A key says what was read: rows edited between plan and run are not stored under it."""
    path = files(tmp_path)
    edited = with_files(recipe).read_text().replace("rows.jsonl", str(path))
    (tmp_path / "mine.yaml").write_text(edited)
    made = plan(compose(str(tmp_path / "mine.yaml")), Store(tmp_path / "store"))
    node = made.node("finetune")
    made.require_unchanged(node)
    path.write_text(path.read_text() + '{"text": "a", "summary": "b"}\n')
    with pytest.raises(StageError, match="train rows have changed"):
        made.require_unchanged(node)


def test_a_json_array_is_read_as_rows(recipe, run, tmp_path) -> None:
    """`.json` with one array of objects, as many tools write it."""
    rows = [{"text": "A bill to fund parks.", "summary": "Funds parks."}] * 24
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    path = recipe(("/data: bills", "/data: files"), (BILLS, FILES.replace("jsonl", "json")))
    result = run("run", path, "skip=[finetune]", "stages.evaluate.max_length=8")
    assert result.code == 0, result.err


def test_your_own_rows_run_end_to_end(recipe, run, tmp_path) -> None:
    """The same recipe on a JSON-lines file of one's own."""
    files(tmp_path, rows=24)
    result = run("run", with_files(recipe), "stages.evaluate.max_length=8")
    assert result.code == 0, result.err


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("mine.yaml", "mine", "did you mean 'mine.yaml'?"),
        ("my mine.yaml", "my mine.yaml", "the file's name, where no `name:` is set"),
    ],
)
def test_a_recipe_that_is_named_wrongly_is_told(recipe, run, name, given, expected) -> None:
    """Its ending is left out; its file's name is none for a folder of runs."""
    recipe(name=name)
    result = run("plan", given)
    assert result.code == 2
    assert expected in result.err
