"""What is written down when a run starts: its recipe's parent, and what the command changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml

from compressor.engine.plan import plan
from compressor.engine.provenance import describe_request
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose

TINY = ["model=tiny", "data=bills"]


def _describe(recipe: str, overrides: list[str], folder: Path) -> dict:
    return describe_request(
        plan(compose(recipe, [*overrides, f"outputs={folder}"]), Store.of(str(folder)))
    )


def test_a_recipe_is_held_to_the_one_it_extends(tmp_path: Path) -> None:
    """homework/v2 is v1 and a second round: the pipeline and two stages, as its file says."""
    request = _describe("homework/v2", TINY, tmp_path)
    recipe = yaml.safe_load(Path("recipes/homework/v2.yaml").read_text())
    assert request["parent"]["name"] == "homework/v1"
    differs = {difference["path"]: difference for difference in request["parent"]["differences"]}
    assert set(differs) == {"pipeline", "stages.prune_2", "stages.recover_2"}
    assert differs["pipeline"]["after"] == recipe["pipeline"]
    assert differs["stages.prune_2"]["after"] == recipe["stages"]["prune_2"]
    assert "before" not in differs["stages.prune_2"]
    changed = {difference["path"]: difference for difference in request["changed"]}
    assert changed["data.source"] == {"path": "data.source", "before": "hub", "after": "bills"}
    assert not any(path.startswith(("outputs", "stages")) for path in changed)


def test_a_recipe_without_parent_has_the_commands_changes(tmp_path: Path) -> None:
    """Demo extends no recipe (`/base` and groups are none): the overrides alone."""
    request = _describe("demo", ["seed=3"], tmp_path)
    assert request["parent"] is None
    assert request["changed"] == [{"path": "seed", "before": 0, "after": 3}]
    assert [node["name"] for node in request["nodes"]][:3] == ["load", "base", "prune"]
    assert request["data"]["task"] == "summarization"


def test_a_file_of_ones_own_extends_another(recipe: Callable[..., Path], tmp_path: Path) -> None:
    """Two files in one folder; and a parent that needs an override is not known, which is said."""
    recipe(name="parent.yaml")
    child = tmp_path / "child.yaml"
    child.write_text("defaults: [parent, _self_]\nstages: {finetune: {epochs: 2}}\n")
    request = _describe(str(child), [], tmp_path)
    assert request["parent"] == {
        "name": "parent.yaml",
        "differences": [{"path": "stages.finetune.epochs", "before": 1, "after": 2}],
    }
    needs = tmp_path / "needs.yaml"
    needs.write_text("defaults: [parent, _self_]\nstages: {finetune: {batch_size: '???'}}\n")
    request = _describe(str(needs), ["stages.finetune.batch_size=4"], tmp_path)
    assert request["parent"] == {"name": "parent.yaml", "differences": None}
    assert request["changed"] is None
