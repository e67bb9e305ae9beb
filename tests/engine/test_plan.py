"""Planning: exact counts without weights, keys that change with what matters, all errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.core.errors import RecipeError
from compressor.core.machine import list_gpus
from compressor.engine.plan import Node, Plan, plan
from compressor.engine.store.store import Store
from compressor.recipe.compose import compose

TRAINED = {"finetune", "prune", "recover", "evaluate"}
FRESH = ("model=t5_small_fresh", "training=none")


def plan_recipe(recipe: str | Path, *overrides: str, store: Path = Path("/nonexistent")) -> Plan:
    return plan(compose(str(recipe), overrides), Store(store))


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


@pytest.mark.parametrize("name", ["prune", "evaluate"])
def test_a_skipped_model_with_none_before_it_is_reported(recipe, name) -> None:
    """Wherever it is named, and not only that of the stage before."""
    path = recipe((f"{name}: {{", f"{name}: {{model: load, "))
    with pytest.raises(RecipeError) as caught:
        plan_recipe(path, "skip=[load]")
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert problems[f"stages.{name}.model"] == "'load' is skipped, and gives no model"
    assert "no stage before it gives one" in problems["stages.finetune"]


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


@pytest.mark.parametrize("source", ["bills", "files"])
def test_a_warmup_as_long_as_the_training_is_a_warning(tmp_path, recipe, source: str) -> None:
    """Its learning rate would never be reached: 100 steps of warm-up in 63 learned nothing. Rows
    are counted where they are generated, or in a small file; a share of the steps is shorter.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a b", "summary": "a"}\n' * 64)
    files = ", ".join(f"{split}: {rows}" for split in ("train", "validation", "test"))
    limits = "rows: {train: 64, validation: 16, test: 8}"
    change = ("/data: bills", "/data: files"), (limits, f"files: {{{files}}}")
    path = recipe(*(change if source == "files" else ()))
    for warmup, warned in {"8": ["training.warmup_steps"], "7": [], "0.99": []}.items():
        result = plan_recipe(path, f"training.warmup_steps={warmup}")
        assert [problem.path for problem in result.warnings] == warned, warmup
    warnings = plan_recipe(path, "training.warmup_steps=30", "stages.finetune.max_steps=4").warnings
    assert sorted(problem.message.split(":")[0] for problem in warnings) == [
        f"30 steps of warm-up are no fewer than the training's {steps}" for steps in "48"
    ]


def test_a_byte_order_mark_and_crlf_change_nothing_in_a_parent(tmp_path, recipe) -> None:
    """Regression: before a parent's `# @package _global_` the mark made Hydra overlook it."""
    lines = ["# @package _global_", *recipe(name="parent.yaml").read_text().splitlines()]
    (tmp_path / "mine.yaml").write_text("defaults: [family/parent, _self_]\nseed: 3\n")
    composed = []
    for mark, line_end in (("", "\n"), ("\ufeff", "\r\n")):
        (tmp_path / "family").mkdir(exist_ok=True)
        (tmp_path / "family/parent.yaml").write_bytes((mark + line_end.join(lines)).encode())
        composed.append(compose(str(tmp_path / "mine.yaml")).values)
    assert composed[0] == composed[1] and composed[0]["pipeline"][0] == "load"


def test_what_a_recipe_leaves_open_is_chosen_by_what_is_there(tmp_path: Path) -> None:
    """Slicing goes by the loss where training rows have one, as if the recipe said so, and by
    magnitude where the model is untrained, or has no head for the rows; the plan says why.
    """
    recipe = tmp_path / "sliced.yaml"
    recipe.write_text(
        "defaults: [/base, /model: tiny, /data: bills, _self_]\n"
        "pipeline: [load, finetune, slice]\n"
        "stages: {load: {}, finetune: {epochs: 1}, slice: {feed_forward: 0.5}}\n"
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "summary": "b"}\n')

    def plan_slice(*overrides: str) -> Node:
        return plan_recipe(recipe, *overrides).node("slice")

    chosen = plan_slice()
    assert chosen.key == plan_slice("stages.slice.importance=obs").key
    assert chosen.stage.choice == "importance: obs (chosen: training rows have a loss)"
    no_rows = ("data=files", f"data.files.validation={rows}", "data.files.train=null")
    for overrides, reason in (
        ((), "the model is not trained yet"),
        ((*no_rows, "model.tokenizer=null"), "there are no rows to train on: nothing for"),
        (("model=tiny_bert", "model.head=sequence_classification"), "the model has no loss"),
    ):
        plain = plan_slice(*overrides, "skip=[finetune]")
        explicit = ("skip=[finetune]", "stages.slice.importance=magnitude")
        assert plain.key == plan_slice(*overrides, *explicit).key
        assert f"importance: magnitude (chosen: {reason}" in plain.stage.choice
