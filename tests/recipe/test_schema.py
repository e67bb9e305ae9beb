"""The schemas of recipes: an editor finds a mistake by them, and calls no good recipe wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonschema import Draft7Validator
from jsonschema.exceptions import best_match
from omegaconf import OmegaConf
from pydantic import ValidationError

from compressor.core.files import find_recipes_folder
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe import schema
from compressor.recipe.compose import compose
from compressor.recipe.describe import list_fields, render_stage
from compressor.recipe.files import list_recipes
from compressor.stages.base import stage_class, stage_kinds
from tests.recipe.recipe_values import as_json

COMPOSED = Draft7Validator(schema.build_composed_schema())
FILE = Draft7Validator(schema.build_file_schema())
ROOT = find_recipes_folder()
FILES = sorted(
    path
    for path in ROOT.rglob("*.yaml")
    if path.relative_to(ROOT).parts[0] not in ("hydra", "accelerate", "base.yaml")
)
"""Every file that names a schema: all but Hydra's, Accelerate's, and what all extend."""


def list_errors(validator: Any, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(values)]


def load(file: Path) -> Any:
    """Read a file's own values, as an editor sees them."""
    return as_json(OmegaConf.to_container(OmegaConf.load(file)))


def test_checked_in_recipes_and_files_follow_the_schemas_that_they_name() -> None:
    """The comment is where the YAML extension reads it, and Hydra still its own before it."""
    for name in list_recipes():
        assert list_errors(COMPOSED, as_json(compose(name).values)) == [], name
    for file in FILES:
        first = [line for line in file.read_text().splitlines()[:2] if "$schema=" in line]
        assert len(first) == 1, file
        path = file.parent / first[0].removeprefix("# yaml-language-server: $schema=")
        assert path.resolve().parent == (ROOT / "schema").resolve()
        assert list_errors(Draft7Validator(json.loads(path.read_text())), load(file)) == [], file


def test_the_checked_in_schemas_are_current_and_of_draft_7() -> None:
    """`make schema` would change nothing, and a keyword of a later draft would check nothing."""
    groups = {group: schema.build_group_schema(group) for group in get_args(schema.Group)}
    for name, built in {"recipe": schema.build_file_schema(), **groups}.items():
        text = schema.to_text(built)
        assert (ROOT / "schema" / f"{name}.json").read_text() == text, "run: make schema"
        assert not re.search(r'"(\$defs|prefixItems|discriminator|dependent\w+)":', text)
        Draft7Validator.check_schema(built)
    assert not any(name.startswith("schema") for name in list_recipes())


@pytest.mark.parametrize(
    ("recipe", "place"),
    [
        ("stages: {finetune: {epochz: 3}}", "stages.finetune"),
        ("stages: {finetune: {epochs: three}}", "stages.finetune.epochs"),
        ("stages: {finetune: {epochs: -1}}", "stages.finetune.epochs"),
        ("stages: {prune_1: {stage: prune, amounts: {head: 2}}}", "stages.prune_1.amounts.head"),
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
    marks = [best_match([error]) for error in FILE.iter_errors(as_json(yaml.safe_load(recipe)))]
    assert [".".join(map(str, mark.absolute_path)) for mark in marks if mark] == [place]


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
    assert list_errors(FILE, as_json(yaml.safe_load(recipe))) == []


def test_a_number_is_one_however_it_is_written_and_nothing_else_is() -> None:
    """1e3 and 3.0 are whole numbers, 1 is a float; a text, and true, are no numbers, nor 1 true.
    Where a whole number counts and a float is a share, 1.0 is a share and 2.0 two.
    """
    finetune, narrow, shrink = map(stage_class, ("finetune", "slice", "shrink"))
    stage = finetune.model_validate({"max_steps": 1e3, "epochs": 3.0, "clip_norm": 1}).model_dump()
    types = [type(stage[name]) for name in ("max_steps", "epochs", "clip_norm")]
    assert types == [int, int, float]
    for wrong in (
        *({"epochs": "3"}, {"epochs": True}, {"epochs": 2.5}, {"learning_rate": "1e-3"}),
        *({"learning_rate": True}, {"learning_rate": float("nan")}, {"trackers": "wandb"}),
        *({"learning_rate": float("inf")}, {"gradient_checkpointing": 1}, {"label": 3}),
        {"gradient_checkpointing": "yes"},
    ):
        with pytest.raises(ValidationError):
            finetune.model_validate(wrong)
    widths = narrow.model_validate({"heads": 1.0, "feed_forward": 2.0, "layers": 1}).model_dump()
    values = [widths[name] for name in ("heads", "feed_forward", "layers")]
    assert [(value, type(value)) for value in values] == [(1.0, float), (2, int), (1, int)]
    layers = {"encoder_layers": [0.0, 2], "decoder_layers": 1.0}
    dumped = shrink.model_validate(layers).model_dump()
    assert (dumped["encoder_layers"], type(dumped["decoder_layers"])) == ([0, 2], float)


def test_two_layers_are_two_however_they_are_written() -> None:
    """2.0 was refused of a model's config, while every stage takes 3.0."""
    keys = set()
    for layers in ("2", "2.0", "2e0"):
        overrides = "model=tiny", "data=bills", f"model.config.num_layers={layers}"
        node = plan(compose("demo", overrides), Store(Path("nowhere"))).node("base")
        assert node.facts is not None and node.facts.config["num_layers"] == 2
        keys.add(node.key)
    assert len(keys) == 1


def test_a_stage_is_the_same_after_the_way_to_another_process() -> None:
    """A worker reads its stage as JSON: lists for tuples, texts for the numbers of layers."""
    layers = {"layers": {"decoder": {0: 1, 1: 3}}, "quantization_aware": "int8"}
    pruning = {"prune": {"amounts": {"encoder": {"feed_forward": 0.5}}}, "betas": [0, 0.9]}
    for values in (layers, pruning):
        stage = stage_class("distill").model_validate({"teacher": "t", **values})
        assert type(stage).model_validate(as_json(stage.model_dump(mode="json"))) == stage


def test_a_stage_prints_its_settings_on_80_columns() -> None:
    """Every field, nested ones too, with its default; no line is longer, but a table's."""
    for kind in stage_kinds():
        printed = render_stage(kind, 80)
        for field in list_fields(kind):
            assert re.search(rf"^{re.escape(field.path)}( |$)", printed, re.MULTILINE), field.path
            assert field.description or field.path.startswith(("rows.", "data."))
        assert all(len(line) <= 80 for line in printed.splitlines() if line[:1] != "|")


def test_a_setting_is_described_in_plain_words() -> None:
    """Type, range and default of fields of several kinds."""
    whole_numbers = "whole number ≥ 2 or list of whole numbers, 1 or more, each ≥ 2"
    for kind, path, form, default in (
        ("finetune", "epochs", "whole number ≥ 0", "1"),
        ("finetune", "max_steps", "whole number ≥ 1", "-"),
        ("finetune", "prune.end", "number > 0, ≤ 1", "0.7"),
        ("prune", "amounts", "{name: number or {name: number}}, ≥ 0, ≤ 1", "-"),
        ("prune", "target.values", "int8, bfloat16, float32", '"int8"'),
        ("prune", "only", "list of texts", "[]"),
        ("distill", "teacher", "text", "required"),
        ("distill", "losses", "mapping", "as below"),
        ("distill", "layers", "{name: {name: whole number}}", "{}"),
        ("evaluate", "max_length", whole_numbers, "128"),
    ):
        (field,) = (field for field in list_fields(kind) if field.path == path)
        assert (field.form, field.default) == (form, default)
