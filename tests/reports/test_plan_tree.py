"""A plan as a tree."""

from __future__ import annotations

import io
from pathlib import Path

from compressor.core.console import Console
from compressor.engine.plan import plan
from compressor.engine.store.store import Store
from compressor.engine.store.timings import StageTimings
from compressor.recipe.compose import compose
from compressor.reports.plan_tree import list_rows, print_plan


def draw_tree(recipe: str | Path, outputs: Path, *overrides: str) -> list[str]:
    composed = compose(str(recipe), [f"outputs={outputs}", *overrides])
    made = plan(composed, Store.of(composed.recipe.outputs))
    return [row.rail + row.node.name for row in list_rows(made.nodes)]


def test_two_students_of_one_original_are_two_branches(tmp_path: Path) -> None:
    """Both `shrink`s take the original's model; each one's own chain is a branch."""
    overrides = ("model=tiny", "data=bills", "training=quick", "skip=[benchmark]")
    assert draw_tree("sft/headlines", tmp_path, *overrides) == [
        "load",
        "original",
        "├─ shrink",
        "│  finetune",
        "│  ├─ evaluate@finetune",
        "│  quantize",
        "│  └─ evaluate@quantize",
        "├─ shrink_both",
        "│  finetune_both",
        "│  ├─ evaluate@finetune_both",
        "│  ├─ export",
        "│  quantize_both",
        "│  └─ evaluate@quantize_both",
        "└─ evaluate@original",
    ]


def test_every_node_has_one_row(tmp_path: Path) -> None:
    """Whatever a recipe's shape, nothing of its plan is left out or shown twice."""
    for name in ("homework/auto", "deploy", "distill", "bert/distil_tiny"):
        composed = compose(name, [f"outputs={tmp_path}"])
        made = plan(composed, Store.of(composed.recipe.outputs))
        shown = [row.node.name for row in list_rows(made.nodes)]
        assert sorted(shown) == sorted(node.name for node in made.nodes)


def test_times_are_those_of_before_and_the_sum_says_what_it_lacks(recipe, tmp_path: Path) -> None:
    """A stage of a kind and name that ran before has its time; the others have none."""
    composed = compose(str(recipe()), [f"outputs={tmp_path / 'none'}"])
    made = plan(composed, Store.of(composed.recipe.outputs))
    out = io.StringIO()
    timings = StageTimings({}, {("finetune", "finetune"): 90.0})
    print_plan(made, timings, Console(file=out, width=100))
    (row,) = (line for line in out.getvalue().splitlines() if line.startswith("finetune "))
    assert row.rstrip().endswith("≈ 1 min 30 s")
    assert out.getvalue().endswith(
        "0 of 5 stages are in the store; the others took at least 1 min 30 s before\n"
    )


def test_a_training_of_adapters_says_how_much_it_trains(recipe, tmp_path: Path) -> None:
    """Rank 4, beside 6 x 4 matrices of (32, 32) and 4 x 2 of (32, 64)."""
    lora = "stages.recover.lora.rank=4"
    composed = compose(str(recipe()), [f"outputs={tmp_path / 'none'}", lora])
    made = plan(composed, Store.of(composed.recipe.outputs))
    out = io.StringIO()
    print_plan(made, StageTimings({}, {}), Console(file=out, width=100))
    assert "recover (finetune; trains 0.01 M) " in out.getvalue()
    assert made.node("recover").summary()["trained_parameters"] == 4 * (
        24 * (32 + 32) + 8 * (32 + 64)
    )
    assert made.node("finetune").summary()["trained_parameters"] is None
