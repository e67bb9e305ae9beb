"""Planning: exact counts without weights, keys that change with what matters, all errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.errors import RecipeError
from compressor.machine import gpus
from compressor.plan import Plan, plan
from compressor.recipe import compose
from compressor.recipe_files import recipe_names
from compressor.store import Store

TRAINED = {"finetune", "prune", "recover", "evaluate"}
FRESH = ("model=t5_small_fresh", "training=none")


def planned(recipe: str | Path, *overrides: str, store: Path = Path("/nonexistent")) -> Plan:
    return plan(compose(str(recipe), overrides), Store(store))


@pytest.mark.parametrize("name", recipe_names())
def test_every_checked_in_recipe_plans(name: str) -> None:
    """Without a network too, each recipe plans, with the facts of every model known."""
    nodes = planned(name).nodes
    assert nodes
    assert all(node.facts is not None for node in nodes if node.kind != "baseline")


@pytest.mark.parametrize("name", ["homework/v6", "homework/auto"])
def test_versions_1_to_6_of_the_homework_have_their_published_ratios(name: str) -> None:
    """Non-zero ratio of the whole model after each prune, exact by counting (system B)."""
    nodes = planned(name, *FRESH).nodes
    ratios = [round(n.facts.nonzero_ratio, 4) for n in nodes if n.kind == "prune" and n.facts]
    assert ratios == [0.7729, 0.6056, 0.4812, 0.3877, 0.3167, 0.2989]
    assert all(node.facts and node.facts.exact for node in nodes)


def test_four_groups_ends_at_its_published_ratio() -> None:
    """System C's exact final ratio; self-attention is one group over both stacks."""
    last = planned("homework/four_groups", *FRESH).nodes[-1]
    assert last.facts is not None
    assert round(last.facts.nonzero_ratio, 4) == 0.2626


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [("sft/headlines_half_decoder", 47.9), ("sft/headlines_half_both", 38.5)],
)
def test_shrunk_t5_small_has_its_exact_size(recipe: str, millions: float) -> None:
    """60.5 M parameters at 6+6 layers, 47.9 M at 6+3, 38.5 M at 3+3 (system A)."""
    result = planned(recipe, *FRESH)
    load, shrink = result.node("load").facts, result.node("shrink").facts
    assert load is not None and shrink is not None
    assert (round(load.parameters / 1e6, 1), round(shrink.parameters / 1e6, 1)) == (60.5, millions)


def test_headlines_has_both_students_of_one_original() -> None:
    """System A whole: 60.5 M, 47.9 M and 38.5 M, each student with an int8 model of its own."""
    result = planned("sft/headlines", *FRESH)
    sizes = {}
    for name in ("load", "shrink", "quantize", "shrink_both", "quantize_both"):
        facts = result.node(name).facts
        assert facts is not None
        sizes[name] = round(facts.parameters / 1e6, 1), bool(facts.int8)
    assert sizes == {
        "load": (60.5, False),
        "shrink": (47.9, False), "quantize": (47.9, True),
        "shrink_both": (38.5, False), "quantize_both": (38.5, True),
    }  # fmt: skip
    assert result.warnings == ()


def test_a_share_of_layers_is_so_many_of_whatever_there_are() -> None:
    """Half of T5-small's 6 are the layers 0, 2 and 4; of 1 layer half is that one."""
    by_share, by_count = (
        planned("sft/headlines_half_decoder", *FRESH, f"stages.shrink.decoder_layers={half}")
        for half in (0.5, 3)
    )
    assert by_share.node("shrink").facts == by_count.node("shrink").facts
    single = planned(
        "sft/headlines_half_decoder", *FRESH, "model.config.num_decoder_layers=1"
    ).node("shrink")
    assert single.facts is not None and single.facts.stacks()["decoder"].layers == 1
    with pytest.raises(RecipeError, match="share in"):
        planned("sft/headlines_half_decoder", *FRESH, "stages.shrink.decoder_layers=1.5")


def test_version_6_shares_every_key_of_version_5() -> None:
    """Running v6 after v5 trains one stage, not seven: the keys of the rest are equal."""
    overrides = ("model=tiny", "data=bills")
    v5 = {node.name: node.key for node in planned("homework/v5", *overrides).nodes}
    v6 = {node.name: node.key for node in planned("homework/v6", *overrides).nodes}
    shared = [name for name in v6 if name in v5 and v6[name] == v5[name]]
    assert [name for name in v6 if name not in shared] == ["prune_6", "recover_6", "evaluate"]


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
        ("training.precision=fp32", TRAINED if gpus() else set()),
    ],
)
def test_a_change_makes_new_keys_for_what_depends_on_it_alone(recipe, override, changed) -> None:
    """Edit one number: only what changed, and what depends on it, has another key."""
    path = recipe()
    before = {node.name: node.key for node in planned(path).nodes}
    after = {node.name: node.key for node in planned(path, override).nodes}
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
        planned(path)
    told = {problem.path: problem for problem in caught.value.problems}
    assert "did you mean 'finetune'?" in told["stages.recover.stage"].message
    assert "did you mean 'epochs'?" in told["stages.finetune.epoch"].message
    assert "did you mean 'max_length'?" in told["stages.evaluate.max_lenght"].message
    assert "got 1.3" in told["stages.prune.amounts.encoder.feed_foward"].message
    lines = path.read_text().splitlines()
    assert all(p.file == path for p in told.values())
    assert "finetun," in lines[(told["stages.recover.stage"].line or 0) - 1]


def test_an_unknown_group_is_named_with_the_nearest_in_its_stack(recipe) -> None:
    """`encoder.feed_foward` → `feed_forward`, not a group of another stack."""
    with pytest.raises(RecipeError) as caught:
        planned(recipe(("feed_forward: 0.5", "feed_foward: 0.5")))
    (problem,) = caught.value.problems
    assert problem.path == "stages.prune.amounts.encoder.feed_foward"
    assert "in 'encoder': did you mean 'feed_forward'?" in problem.message


def test_overlapping_groups_are_refused(recipe) -> None:
    """The same weights cannot be counted in two groups of one prune."""
    with pytest.raises(RecipeError, match=r"shares weights with the group 'encoder.feed_forward'"):
        planned(recipe(("lm_head: 0.3", "feed_forward: 0.3")))


def test_a_group_given_for_all_stacks_is_one_group(recipe) -> None:
    """`feed_forward: 0.5` prunes encoder and decoder together, with one threshold."""
    path = recipe(("encoder: {feed_forward: 0.5}", "feed_forward: 0.5"))
    facts = planned(path).node("prune").facts
    assert facts is not None
    names, count = facts.masked[0]
    assert count == round(0.5 * facts.numel(names))
    assert {name.split(".")[0] for name in names} == {"encoder", "decoder"}


def test_evaluating_several_models_gives_a_node_each_and_reuses_the_one_compared_with(recipe):
    """`models: [...]`, `against: x` is one node a model, keyed apart, in the order of the list."""
    path = recipe(("{max_length: [8, 16]}", "{models: [recover, prune], against: finetune}"))
    result = planned(path)
    assert [node.name for node in result.nodes[-3:]] == [
        "evaluate@finetune", "evaluate@recover", "evaluate@prune",
    ]  # fmt: skip
    assert result.node("evaluate@prune").artifacts == {"against": "evaluate@finetune"}


def test_a_stage_outside_the_pipeline_is_a_warning(recipe) -> None:
    """It does nothing, which may be what a child recipe wants."""
    result = planned(recipe(("recover, evaluate]", "evaluate]")))
    assert [warning.path for warning in result.warnings] == ["stages.recover"]


def test_a_model_that_comes_later_cannot_be_taken(recipe) -> None:
    """A reference forward is told as one."""
    with pytest.raises(RecipeError, match="comes later in the pipeline"):
        planned(recipe(("prune: {", "prune: {model: recover, ")))


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
    assert plain["data"]["rows"]["train"] == 7 and plain["training"]["batch_size"] == 4
    assert plain["pipeline"] == ["load", "finetune"]
