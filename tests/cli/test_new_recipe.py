"""`compressor new`: what it writes is the recipe that it is made from, commented or not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from compressor.cli.new_recipe import write_new_recipe
from compressor.core.errors import RecipeError
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import ComposedRecipe, compose
from compressor.recipe.files import list_recipes
from compressor.recipe.schema import build_file_schema
from tests.faults import LONG
from tests.recipe.recipe_values import as_json

SCHEMA = Draft7Validator(build_file_schema())
SETTING = re.compile(r"^( *)#(?=\S|  )", re.MULTILINE)


def keys(composed: ComposedRecipe) -> dict[str, str | None]:
    nodes = plan(composed, Store(Path("/nonexistent"))).nodes
    return {node.name: node.key for node in nodes}


def values(composed: ComposedRecipe) -> dict[str, Any]:
    """What a recipe says, without its name and with each stage's kind."""
    stages = composed.recipe.stages.items()
    kinds = {name: {"stage": name} | (settings or {}) for name, settings in stages}
    return {**as_json(composed.values), "name": "", "stages": kinds}


FEW = ["demo_search", "homework/v6", "bert/emotions", "sft/headlines_half_decoder", "deploy"]


@pytest.mark.parametrize("name", list_recipes() if LONG else FEW)
def test_a_new_recipe_plans_to_the_keys_of_the_one_it_extends(name: str, tmp_path: Path) -> None:
    """As it is written, and with the # of every setting taken away; and its schema accepts both."""
    file, original = tmp_path / "mine.yaml", compose(name)
    expected = keys(original)
    write_new_recipe(file, name)
    extended = compose(str(file))
    assert values(extended) == values(original)
    assert keys(extended) == expected
    assert SCHEMA.is_valid(as_json(OmegaConf.to_container(OmegaConf.load(file))))
    text = SETTING.sub(r"\1", file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    uncommented = compose(str(file))
    assert keys(uncommented) == expected
    assert {**values(uncommented), "stages": 0} == {**values(original), "stages": 0}
    assert SCHEMA.is_valid(as_json(OmegaConf.to_container(OmegaConf.load(file))))


@pytest.mark.parametrize("name", ["demo", "demo_search", "homework/v6", "bert/emotions"])
def test_a_full_recipe_says_all_of_the_one_it_is_made_from(name: str, tmp_path: Path) -> None:
    """It extends `base` alone; also what it says to Hydra is there."""
    file = tmp_path / "mine.yaml"
    write_new_recipe(file, name, full=True)
    assert "\ndefaults: [/base, _self_]\n" in file.read_text()
    assert values(compose(str(file))) == values(compose(name))
    assert ("hydra" in OmegaConf.load(file)) == (name == "demo_search")


def test_a_new_recipe_still_takes_other_groups(tmp_path: Path) -> None:
    """Nothing in it stands over `model=`, `data=` and `training=` of the command line."""
    file, overrides = tmp_path / "mine.yaml", ("model=tiny", "data=bills", "training=quick")
    write_new_recipe(file, "homework/v3")
    expected = keys(compose("homework/v3", overrides))
    assert None not in expected.values()
    assert keys(compose(str(file), overrides)) == expected


def test_new_refuses_what_would_not_work(tmp_path: Path) -> None:
    """A file that is there, another ending, an unknown recipe, one that would extend itself, also
    as the parent of its parent, and a name that no recipe can have.
    """
    (tmp_path / "there.yaml").write_text("seed: 1\n")
    for file, parent, expected in (
        ("there.yaml", "demo", "--force"),
        ("mine.yml", "demo", "ends in .yaml"),
        ("mine.yaml", "homework/v7", "did you mean 'homework/v"),
        ("nowhere/mine.yaml", "demo", "no folder"),
        ("demo.yaml", "demo", "extend itself"),
        ("base.yaml", "demo", "extend itself, not the checked-in 'base'"),
        ("my recipe.yaml", "demo", "called as its file is, with letters"),
        ("größe.yaml", "demo", "called as its file is, with letters"),
    ):
        with pytest.raises(RecipeError, match=expected):
            write_new_recipe(tmp_path / file, parent)
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    write_new_recipe(tmp_path / "there.yaml", "demo", force=True)
    assert "defaults: [/demo, _self_]" in (tmp_path / "there.yaml").read_text()
