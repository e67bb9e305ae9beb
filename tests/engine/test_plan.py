"""Planning: exact counts without weights, keys that change with what matters, all errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import RecipeError
from compressor.core.machine import list_gpus
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose
from compressor.recipe.files import list_recipes

TRAINED = {"finetune", "prune", "recover", "evaluate"}
FRESH = ("model=t5_small_fresh", "training=none")


def plan_recipe(recipe: str | Path, *overrides: str, store: Path = Path("/nonexistent")) -> Plan:
    return plan(compose(str(recipe), overrides), Store(store))


@pytest.mark.parametrize("name", list_recipes())
def test_every_checked_in_recipe_plans(name: str) -> None:
    """Without a network too, each recipe plans, with the facts of every model known."""
    nodes = plan_recipe(name).nodes
    assert nodes
    assert all(node.facts is not None for node in nodes if node.kind != "baseline")


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("homework/v6", [0.7729, 0.6056, 0.4812, 0.3877, 0.3167, 0.2989]),
        ("homework/auto", [0.7729, 0.6056, 0.4812, 0.3877, 0.3167, 0.2989]),
        ("homework/four_groups", [0.2626]),
    ],
)
def test_pruned_models_have_their_published_ratios(name: str, published: list[float]) -> None:
    """Non-zero ratio of the whole model after each prune (system B), or the last (system C, where
    self-attention is one group over both stacks); exact by counting.
    """
    nodes = plan_recipe(name, *FRESH).nodes
    ratios = [round(n.facts.nonzero_ratio, 4) for n in nodes if n.kind == "prune" and n.facts]
    assert ratios[-len(published) :] == published
    assert all(node.facts and node.facts.exact for node in nodes)


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("sft/headlines_half_decoder", {"load": 60.5, "shrink": 47.9}),
        ("sft/headlines_half_both", {"load": 60.5, "shrink": 38.5}),
        (
            "sft/headlines",
            {"shrink": 47.9, "quantize": 47.9, "shrink_both": 38.5, "quantize_both": 38.5},
        ),
    ],
)
def test_shrunk_t5_small_has_its_exact_size(recipe: str, millions: dict[str, float]) -> None:
    """60.5 M parameters at 6+6 layers, 47.9 M at 6+3, 38.5 M at 3+3 (system A), and an int8 model
    of each student.
    """
    result = plan_recipe(recipe, *FRESH)
    facts = {name: result.node(name).facts for name in millions}
    assert {n: f and round(f.parameters / 1e6, 1) for n, f in facts.items()} == millions
    assert [n for n, f in facts.items() if f and f.int8] == [n for n in facts if "quantize" in n]
    assert result.warnings == ()


def test_a_share_of_layers_is_so_many_of_whatever_there_are() -> None:
    """Half of T5-small's 6 are the layers 0, 2 and 4; of 1 layer half is that one."""

    def plan_half(half: float, *overrides: str) -> Plan:
        changes = (*FRESH, f"stages.shrink.decoder_layers={half}", *overrides)
        return plan_recipe("sft/headlines_half_decoder", *changes)

    assert plan_half(0.5).node("shrink").facts == plan_half(3).node("shrink").facts
    single = plan_half(0.5, "model.config.num_decoder_layers=1").node("shrink").facts
    assert single is not None and single.list_stacks()["decoder"].layers == 1
    with pytest.raises(RecipeError, match="share in"):
        plan_half(1.5)


def test_version_6_shares_every_key_of_version_5() -> None:
    """Running v6 after v5 trains one stage, not seven: the keys of the rest are equal."""
    v5, v6 = (
        {node.name: node.key for node in plan_recipe(name, "model=tiny", "data=bills").nodes}
        for name in ("homework/v5", "homework/v6")
    )
    assert [n for n in v6 if v6[n] != v5.get(n)] == ["prune_6", "recover_6", "evaluate"]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("stages.recover.epochs=3", {"recover", "evaluate"}),
        ("stages.prune.amounts.lm_head=0.5", {"prune", "recover", "evaluate"}),
        ("data.rows.test=7", {"evaluate"}),
        ("training.checkpoint_seconds=1", set()),
        ("launch.num_processes=2", set()),
        ("stages.prune.label=smaller", set()),
        ("seed=1", {"load", *TRAINED}),
        ("data.max_target_length=31", TRAINED),
        ("training.max_epochs=1", set()),
        ("training.precision=fp32", TRAINED if list_gpus() else set()),
    ],
)
def test_a_change_makes_new_keys_for_what_depends_on_it_alone(recipe, override, changed) -> None:
    """Edit one number: only what changed, and what depends on it, has another key."""
    before, after = (
        {node.name: node.key for node in plan_recipe(recipe(), *overrides).nodes}
        for overrides in ((), (override,))
    )
    assert {name for name in after if after[name] != before[name]} == changed


def test_all_errors_of_a_recipe_are_told_at_once_with_line_and_nearest_name(recipe) -> None:
    """A misspelt key, group and stage, and an amount outside [0, 1], in one message."""
    path = recipe(
        ("recover: {stage: finetune, epochs: 1}", "recover: {stage: finetun, epochs: 1}"),
        ("feed_forward: 0.5", "feed_foward: 1.3"),
        ("finetune: {epochs: 1}", "finetune: {epoch: 1}"),
        ("max_length: [8, 16]", "max_lenght: [8, 16]"),
    )
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path)
    problems = {problem.path: problem for problem in caught.value.problems}
    for key, part in {
        "stages.recover.stage": "did you mean 'finetune'?",
        "stages.finetune.epoch": "did you mean 'epochs'?",
        "stages.evaluate.max_lenght": "did you mean 'max_length'?",
        "stages.prune.amounts.encoder.feed_foward": "got 1.3",
    }.items():
        assert part in problems[key].message
    lines = path.read_text().splitlines()
    assert all(problem.file == path for problem in problems.values())
    assert "finetun," in lines[(problems["stages.recover.stage"].line or 0) - 1]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (  # not a group of another stack
            ("feed_forward: 0.5", "feed_foward: 0.5"),
            "stages.prune.amounts.encoder.feed_foward: no such group; in 'encoder': did you mean "
            "'feed_forward'?",
        ),
        (  # the same weights cannot be counted twice
            ("lm_head: 0.3", "feed_forward: 0.3"),
            "stages.prune.amounts.feed_forward: shares weights with the group "
            "'encoder.feed_forward'",
        ),
        (
            ("prune: {", "prune: {model: recover, "),
            "stages.prune.model: 'recover' comes later in the pipeline; 'prune' cannot take it",
        ),
    ],
)
def test_a_name_that_cannot_be_meant_is_the_one_problem(recipe, change, expected) -> None:
    """An unknown group, one that shares weights, a model of a later stage."""
    with pytest.raises(RecipeError) as caught:
        plan_recipe(recipe(change))
    (problem,) = caught.value.problems
    assert str(problem).endswith(expected)


@pytest.mark.parametrize("name", ["prune", "evaluate"])
def test_a_skipped_model_with_none_before_it_is_reported(recipe, name) -> None:
    """Wherever it is named, and not only that of the stage before."""
    path = recipe((f"{name}: {{", f"{name}: {{model: load, "))
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path, "skip=[load]")
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert problems[f"stages.{name}.model"] == "'load' is skipped, and gives no model"
    assert "no stage before it gives one" in problems["stages.finetune"]


def test_a_group_given_for_all_stacks_is_one_group(recipe) -> None:
    """`feed_forward: 0.5` prunes encoder and decoder together, with one threshold."""
    path = recipe(("encoder: {feed_forward: 0.5}", "feed_forward: 0.5"))
    facts = plan_recipe(path).node("prune").facts
    assert facts is not None
    names, count = facts.masked[0]
    assert count == round(0.5 * facts.count_entries(names))
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}


def test_evaluating_several_models_gives_a_node_each_and_reuses_the_one_compared_with(recipe):
    """`models: [...]`, `against: x` is one node a model, keyed apart, in the order of the list."""
    path = recipe(("{max_length: [8, 16]}", "{models: [recover, prune], against: finetune}"))
    result = plan_recipe(path)
    names = [f"evaluate@{model}" for model in ("finetune", "recover", "prune")]
    assert [node.name for node in result.nodes[-3:]] == names
    assert result.node("evaluate@prune").artifacts == {"against": "evaluate@finetune"}


def test_a_stage_outside_the_pipeline_is_a_warning(recipe) -> None:
    """It does nothing, which may be what a child recipe wants."""
    result = plan_recipe(recipe(("recover, evaluate]", "evaluate]")))
    assert [warning.path for warning in result.warnings] == ["stages.recover"]


FILES_OF_A_RECIPE = {
    "mine.yaml": "defaults: [family/parent, _self_]\nseed: 3\n",
    "family/parent.yaml": "# @package _global_\ndefaults:\n  - grandparent\n"
    "  - override /training: quick\n"
    "  - _self_\npipeline: [load, finetune]\n",
    "family/grandparent.yaml": "# @package _global_\n"
    "defaults: [/base, /model: tiny, /data: few, _self_]\nstages: {load: {}, finetune: {}}\n",
    "data/few.yaml": "# @package _global_\ndefaults: [/data/bills@data]\n"
    "data: {rows: {train: 7, validation: 5}}\n",
    "training/quick.yaml": "batch_size: 4\n",
}


def test_a_byte_order_mark_and_crlf_change_nothing_in_any_file_of_a_recipe(tmp_path) -> None:
    """Regression: before a parent's `# @package _global_` the mark made Hydra overlook it."""
    composed = []
    for kind, mark, line_end in (("plain", "", "\n"), ("windows", "\ufeff", "\r\n")):
        for name, text in FILES_OF_A_RECIPE.items():
            path = tmp_path / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((mark + text.replace("\n", line_end)).encode())
        composed.append(compose(str(tmp_path / kind / "mine.yaml")).values)
    plain, windows = composed
    assert windows == plain
    # `data=` or `outputs=` beside a folder of that name is no choice of a group.
    mine = str(tmp_path / "plain/mine.yaml")
    (tmp_path / "plain/outputs").mkdir()
    assert compose(mine, ["outputs=elsewhere"]).recipe.outputs == "elsewhere"
    assert plain["data"]["rows"]["train"] == 7 and plain["training"]["batch_size"] == 4
    assert plain["pipeline"] == ["load", "finetune"]
