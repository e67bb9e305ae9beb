"""The schemas of recipes: they accept what a plan accepts, and the checked-in files are theirs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from omegaconf import OmegaConf
from pydantic import ValidationError

from compressor.fields import Fields, described
from compressor.files import recipes_folder
from compressor.form import form_problems
from compressor.recipe import compose
from compressor.recipe_files import recipe_names
from compressor.schema import Group, composed_schema, file_schema, group_schema, text
from compressor.stage import stage_class, stage_kinds
from tests.recipe_values import as_json, changed, fitting

OFFLINE = ("model=tiny", "data=bills")
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "300"))
"""Of each fuzz test; `SCHEMA_EXAMPLES=10000` draws other ones each time."""


def _ecma_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """In JSON Schema `$` is the end of the text; Python's is also before a last line break."""
    if pattern.endswith("$"):
        pattern = pattern[:-1] + r"\Z"
    return Draft7Validator.VALIDATORS["pattern"](validator, pattern, instance, schema)


Validator = extend(Draft7Validator, {"pattern": _ecma_pattern})
SCHEMA = composed_schema()
COMPOSED = Validator(SCHEMA)
FILE = Validator(file_schema())
ROOT = recipes_folder()
RECIPES = {
    f"{name} {' '.join(overrides)}": as_json(compose(name, overrides).values)
    for name in recipe_names()
    for overrides in ((), OFFLINE)
}
UNSAID = (
    "expected start < end",
    "expected unstructured or N:M with N < M",
    "stands twice",
)
"""What a schema cannot say, being about two values of one recipe: whether a gradual prune starts
before it ends, N < M of a pattern, and the same number under `maximize` and `minimize`."""

PARTS = {
    name: fitting(SCHEMA["definitions"][name], SCHEMA["definitions"])
    for name in (*stage_kinds(), "model", "training", "Bills", "Messages", "Files", "Hub")
} | {"objective": fitting(SCHEMA["properties"]["objective"], SCHEMA["definitions"])}
PARTS |= {"search": fitting(SCHEMA["properties"]["search"], SCHEMA["definitions"])}

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SCHEMA_EXAMPLES" not in os.environ,
    database=None,
    phases=[Phase.generate] if "SCHEMA_EXAMPLES" not in os.environ else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)


def agree(values: dict[str, Any]) -> None:
    """Assert that schema and form say the same of composed values."""
    problems = form_problems(values)
    if problems and all(any(each in message for each in UNSAID) for _, message in problems):
        event("what a schema cannot say")
        return
    errors = [
        f"{list(each.absolute_path)}: {each.message}" for each in COMPOSED.iter_errors(values)
    ]
    event("accepted" if not problems else "refused")
    assert bool(problems) == bool(errors), f"form: {problems}\nschema: {errors}\nvalues: {values}"


@fuzz
@given(st.sampled_from(sorted(RECIPES)).flatmap(lambda name: changed(RECIPES[name])))
def test_a_changed_recipe_is_accepted_by_the_schema_if_and_only_if_by_planning(values: Any) -> None:
    """Keys dropped, renamed and added, other types, numbers out of range: one verdict."""
    agree(as_json(values))


@fuzz
@given(st.data())
def test_settings_of_a_stage_are_accepted_by_the_schema_if_and_only_if_by_planning(
    data: Any,
) -> None:
    """Any stage, with fields drawn from its schema; the rules between fields decide."""
    kind = data.draw(st.sampled_from(sorted(PARTS)))
    settings = data.draw(PARTS[kind])
    values = dict(RECIPES["demo model=tiny data=bills"])
    if kind in values or kind[0].isupper():
        values["data" if kind[0].isupper() else kind] = settings
    else:
        stage = settings | {"stage": kind} if isinstance(settings, dict) else settings
        values["stages"] = {"one": stage, kind: settings}
    agree(as_json(values))


def loaded(file: Path) -> Any:
    """A file's own values, as an editor sees them."""
    return as_json(OmegaConf.to_container(OmegaConf.load(file)))


def test_what_a_schema_cannot_say_is_refused_by_planning_alone() -> None:
    """The exceptions to the rule, each by an example, so that none outlives its reason."""
    demo = RECIPES["demo model=tiny data=bills"]
    for changes, expected in (
        ({"stages": {"finetune": {"prune": {"amounts": {"lm_head": 1}, "start": 0.8}}}}, UNSAID[0]),
        ({"stages": {"prune": {"pattern": "4:4"}}}, UNSAID[1]),
        ({"objective": {"maximize": "a.b", "minimize": ["a.b"]}}, UNSAID[2]),
    ):
        values = as_json({**demo, **changes})
        ((_, message),) = form_problems(values)
        assert expected in message
        assert COMPOSED.is_valid(values)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_checked_in_recipe_is_accepted(name: str) -> None:
    """As a file, and composed, also with another model and data."""
    errors = [each.message for each in COMPOSED.iter_errors(RECIPES[name])]
    assert errors == []
    errors = [
        e.message for e in FILE.iter_errors(loaded(ROOT / f"{name.split(maxsplit=1)[0]}.yaml"))
    ]
    assert errors == []


def checked_in() -> list[Path]:
    """Every file that names a schema: all but Hydra's, Accelerate's, and what all extend."""
    others = ("hydra", "accelerate", "base.yaml")
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*.yaml"))
    return sorted(path for path in files if path.parts[0] not in others)


@pytest.mark.parametrize("file", checked_in(), ids=str)
def test_a_checked_in_file_names_its_schema_and_follows_it(file: Path) -> None:
    """The comment is where the YAML extension reads it, and Hydra still its own before it."""
    first = [line for line in (ROOT / file).read_text().splitlines()[:2] if "$schema=" in line]
    assert len(first) == 1
    schema = (ROOT / file).parent / first[0].removeprefix("# yaml-language-server: $schema=")
    assert schema.resolve().parent == (ROOT / "schema").resolve()
    validator = Validator(json.loads(schema.read_text()))
    assert [each.message for each in validator.iter_errors(loaded(ROOT / file))] == []


def test_the_checked_in_schemas_are_current() -> None:
    """`make schema` would change nothing. They stand where no recipe is looked for."""
    made = {"recipe": file_schema()} | {group: group_schema(group) for group in get_args(Group)}
    for name, schema in made.items():
        assert (ROOT / "schema" / f"{name}.json").read_text() == text(schema), "run: make schema"
    assert not any(name.startswith("schema") for name in recipe_names())


def test_the_schemas_are_of_draft_7_and_have_its_keywords_alone() -> None:
    """A keyword that is none checks nothing, in silence."""
    schemas = [SCHEMA, file_schema(), *(group_schema(group) for group in get_args(Group))]
    for schema in schemas:
        Draft7Validator.check_schema(schema)
        known = {*Draft7Validator.VALIDATORS, "$schema", "definitions", "description", "default"}
        assert keywords(schema) <= known | {"then", "else"}


def keywords(schema: Any) -> set[str]:
    """The keywords of a schema and of the schemas in it."""
    if not isinstance(schema, dict):
        return set()
    found = set(schema)
    for key, value in schema.items():
        inside: list[Any] = [value]
        if key in ("properties", "definitions"):
            inside = list(value.values())
        elif key in ("default", "const", "enum"):
            inside = []
        elif isinstance(value, list):
            inside = value
        for each in inside:
            found |= keywords(each)
    return found


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ("stages: {finetune: {epochz: 3}}", "stages.finetune"),
        ("stages: {finetune: {epochs: three}}", "stages.finetune.epochs"),
        ("stages: {finetune: {epochs: -1}}", "stages.finetune.epochs"),
        (
            "stages: {prune_1: {stage: prune, amounts: {lm_head: 2}}}",
            "stages.prune_1.amounts.lm_head",
        ),
        ("stages: {again: {stage: finetun}}", "stages.again.stage"),
        ("stages: {again: {no_stage_has_this: 1}}", "stages.again"),
        ("stages: {export: {format: ggml}}", "stages.export.format"),
        ("data: {source: bill}", "data.source"),
        ("data: {source: bills, dataset: x}", "data"),
        ("training: {batchsize: 8}", "training"),
        ("seed: true", "seed"),
        ("launcher: {}", ""),
        ("hydra: {run: {dir: x}}", "hydra"),
    ],
)
def test_an_editor_marks_a_mistake_where_it_is(recipe: str, place: str) -> None:
    """The key that is wrong, or for a key that there is not, what it stands in."""
    values = as_json(yaml.safe_load(recipe))
    found = [best_match([each]) for each in FILE.iter_errors(values)]
    assert [".".join(map(str, each.absolute_path)) for each in found if each] == [place]


@pytest.mark.parametrize(
    "recipe",
    [
        "stages: {finetune: {epochs: '${stages.base.epochs}'}}",
        "stages: {finetune: {epochs: 2}, p: {amounts: {lm_head: '???'}}, distill: {epochs: 1}}",
        "stages: {prune: null, evaluate: {max_length: ['${data.max_target_length}', 8]}}",
        "stages: '${other.stages}'",
        "data: {files: {train: '???'}, holdout: 0.2}",
        "defaults: [/base, /model: tiny, override /data: files, hydra/launcher: x, _self_]",
        "hydra: {sweeper: {params: {stages.prune.amounts.lm_head: '0.1,0.2'}}, mode: MULTIRUN}",
        "pipeline: []",
        "{}",
    ],
)
def test_a_file_may_leave_to_others_what_they_say(recipe: str) -> None:
    """A part of a stage whose kind its parent names, `???`, `${…}`, and what is Hydra's."""
    assert [each.message for each in FILE.iter_errors(as_json(yaml.safe_load(recipe)))] == []


def test_a_number_is_one_however_it_is_written_and_nothing_else_is() -> None:
    """1e3 and 3.0 are whole numbers, 1 is a float; a text, and true, are no numbers, nor 1 true."""
    finetune = stage_class("finetune")
    made = finetune.model_validate({"max_steps": 1e3, "epochs": 3.0, "clip_norm": 1}).model_dump()
    types = [type(made[name]) for name in ("max_steps", "epochs", "clip_norm")]
    assert types == [int, int, float]
    for wrong in (
        {"epochs": "3"},
        {"epochs": True},
        {"epochs": 2.5},
        {"learning_rate": "1e-3"},
        {"learning_rate": True},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"gradient_checkpointing": 1},
        {"gradient_checkpointing": "yes"},
        {"trackers": "wandb"},
        {"label": 3},
    ):
        with pytest.raises(ValidationError):
            finetune.model_validate(wrong)


def test_one_and_one_point_zero_are_one_unit_and_all() -> None:
    """Where a whole number counts and a float is a share, 1.0 is a share and 2.0 two."""
    found = stage_class("slice").model_validate({"heads": 1.0, "feed_forward": 2.0, "layers": 1})
    assert [(each, type(each)) for each in (found.heads, found.feed_forward, found.layers)] == [
        (1.0, float), (2, int), (1, int)
    ]  # fmt: skip
    values = {"encoder_layers": [0.0, 2], "decoder_layers": 1.0}
    layers = stage_class("shrink").model_validate(values).model_dump()
    assert (layers["encoder_layers"], type(layers["decoder_layers"])) == ([0, 2], float)


def test_a_stage_is_the_same_after_the_way_to_another_process() -> None:
    """A worker reads its stage as JSON: lists for tuples, texts for the numbers of layers."""
    for values in (
        {"teacher": "t", "layers": {"decoder": {0: 1, 1: 3}}, "quantization_aware": "int8"},
        {
            "teacher": "t",
            "prune": {"amounts": {"encoder": {"feed_forward": 0.5}}},
            "betas": [0, 0.9],
        },
    ):
        stage = stage_class("distill").model_validate(values)
        assert type(stage).model_validate(as_json(stage.model_dump(mode="json"))) == stage


@pytest.mark.parametrize("kind", stage_kinds())
def test_a_stage_prints_its_settings_on_80_columns(kind: str) -> None:
    """Every field, nested ones too, with its default; no line is longer, but an example's word."""
    printed = described(kind, 80)
    for field in Fields().of(kind):
        assert re.search(rf"^{re.escape(field.path)}( |$)", printed, re.MULTILINE), field.path
        assert field.description or field.path.startswith(("rows.", "data."))
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("|"))


def test_a_setting_is_told_in_plain_words() -> None:
    """Type, range and default of fields of several kinds."""
    told = {
        (kind, each.path): (each.form, each.default)
        for kind in ("finetune", "prune", "distill", "evaluate")
        for each in Fields().of(kind)
    }
    assert told["finetune", "epochs"] == ("whole number ≥ 0", "1")
    assert told["finetune", "max_steps"] == ("whole number ≥ 1", "-")
    assert told["finetune", "prune.end"] == ("number > 0, ≤ 1", "0.7")
    assert told["prune", "amounts"] == ("{name: number or {name: number}}, ≥ 0, ≤ 1", "-")
    assert told["prune", "target.values"] == ("int8, bfloat16, float32", '"int8"')
    assert told["prune", "only"] == ("list of texts", "[]")
    assert told["distill", "teacher"] == ("text", "required")
    assert told["distill", "losses"] == ("mapping", "as below")
    assert told["distill", "layers"] == ("{name: {name: whole number}}", "{}")
    whole_numbers = "whole number ≥ 2 or list of whole numbers, 1 or more, each ≥ 2"
    assert told["evaluate", "max_length"] == (whole_numbers, "128")


def test_the_commands_import_no_torch() -> None:
    """`schema`, `stages prune` and `new` answer at once."""
    code = (
        "import sys; from compressor.cli import main; codes = [main(each) for each in ("
        "['schema', '--composed', '--output', 'x.json'], ['stages', 'prune'], ['stages', '--json'],"
        " ['new', 'mine.yaml'])]; heavy = {'torch', 'transformers', 'datasets', 'numpy'}; "
        "print(codes, sorted(heavy & set(sys.modules)))"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder
        )
        assert json.loads((Path(folder) / "x.json").read_text()) == SCHEMA
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] []"
