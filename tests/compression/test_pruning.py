"""Pruning as a recipe asks for it: planned counts are the run's, whatever the way of choosing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.core.errors import RecipeError
from compressor.core.files import file_digest
from compressor.models.checkpoint import Checkpoint
from tests.engine.test_plan import planned
from tests.harness.command import start
from tests.harness.runs import kill, wait_for_step, weights

PRUNE = "prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}"
QUICK = "skip=[evaluate, recover]"


def ratios(folder: Path) -> dict[str, float]:
    records = json.loads((folder / "metrics.json").read_text())
    return {record["name"]: record["nonzero_ratio"] for record in records}


@pytest.mark.parametrize(
    "settings",
    [
        "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, importance: random",
        "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, importance: taylor",
        "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, importance: wanda",
        "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, importance: sparsegpt",
        "amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}, of: all",
        "amounts: {mine: 0.4}, groups: {mine: ['*.q.weight', 'encoder.block.0.*.wi.weight']}",
        "pattern: '2:4', only: [feed_forward]",
        "pattern: '1:4', importance: wanda",
        "pattern: '4:8', importance: sparsegpt, only: [encoder.self_attention]",
        "pattern: '2:4', importance: taylor, only: [decoder.cross_attention]",
    ],
)
def test_every_way_of_choosing_prunes_exactly_what_was_planned(recipe, run, settings) -> None:
    """The count is the plan's; what is masked is zero in a fresh load."""
    path = recipe((PRUNE, f"prune: {{{settings}, calibration_rows: 4}}"))
    plan = {n.name: n.facts.nonzero_ratio for n in planned(path).nodes if n.facts}
    done = run("run", path, "skip=[evaluate, finetune]", "training.max_steps=2")
    assert done.code == 0, done.err
    folder = path.parent / done.run_folder
    assert ratios(folder)["prune"] == plan["prune"] < 1
    checkpoint = Checkpoint.load(weights(folder, "prune").parent)
    for name, mask in checkpoint.masks.items():
        assert not bool(checkpoint.get_parameter(name)[~mask].any())


def test_a_pruned_group_is_pruned_further(recipe, run) -> None:
    """`of: remaining` counts what is left, `of: all` what there was; trained in between."""
    stages = "first: {stage: prune, amounts: {lm_head: 0.4}}\n  "
    for of, expected in (("remaining", 0.5 * 0.6), ("all", 0.5)):
        path = recipe(
            (PRUNE, stages + f"prune: {{amounts: {{lm_head: 0.5}}, of: {of}}}"),
            ("finetune, prune,", "first, finetune, prune,"),
            name=f"{of}.yaml",
        )
        nodes = {node.name: node.facts for node in planned(path).nodes}
        done = run("run", path, "skip=[evaluate]")
        assert done.code == 0, done.err
        found = ratios(path.parent / done.run_folder)
        for name, facts in nodes.items():
            if name in found and facts is not None:
                assert found[name] == facts.nonzero_ratio
        head = load_file(weights(path.parent / done.run_folder, "prune"))["shared.weight"]
        left = 0.6 * 0.5 if of == "remaining" else 0.5
        assert int(head.count_nonzero()) == pytest.approx(left * head.numel(), abs=2)
        assert expected


def test_a_target_is_reached_exactly_with_amounts_that_can_be_pasted(recipe, run) -> None:
    """Curves, chosen amounts, and the same masks from the printed amounts."""
    path = recipe(
        (PRUNE, "sensitivity: {rows: 8, amounts: [0.3, 0.6, 0.9], rouge: true, max_length: 8}\n"
                "  prune: {target: {nonzero_ratio: 0.5}}"),
        ("finetune, prune,", "finetune, sensitivity, prune,"),
    )  # fmt: skip
    done = run("run", path, QUICK)
    assert done.code == 0, done.err
    folder = path.parent / done.run_folder
    records = {r["name"]: r for r in json.loads((folder / "metrics.json").read_text())}
    parameters = records["prune"]["parameters"]
    assert records["prune"]["nonzero"] == round(0.5 * parameters)
    curves = records["sensitivity"]["metrics"]
    assert len(curves["groups"]) == 6
    points = curves["groups"]["lm_head"]["points"]
    assert [point["amount"] for point in points] == [0.3, 0.6, 0.9]
    assert all(point["loss"] > 0 and 0 <= point["rougeLsum"] <= 1 for point in points)
    amounts = records["prune"]["metrics"]["amounts"]
    pasted = recipe((PRUNE, f"prune: {{amounts: {json.dumps(amounts)}}}"), name="pasted.yaml")
    again = run("run", pasted, QUICK)
    assert again.code == 0, again.err
    assert file_digest(weights(path.parent / again.run_folder, "prune")) == file_digest(
        weights(folder, "prune")
    )


def test_a_target_in_bytes_is_what_the_packed_file_takes(recipe, run) -> None:
    """At most that, and at least 0.9 of it; such a folder is no source for `load`."""
    path = recipe(
        (PRUNE, "sensitivity: {rows: 4, amounts: [0.5, 0.9]}\n"
                "  prune: {target: {bytes: 60000}}\n  export: {format: packed}"),
        ("finetune, prune, recover, evaluate]", "sensitivity, prune, export]"),
        ("  recover: {stage: finetune, epochs: 1}\n", ""),
    )  # fmt: skip
    done = run("run", path)
    assert done.code == 0, done.err
    assert "with this share pruned" in done.out
    folder = path.parent / done.run_folder
    size = (folder / "model" / "packed.safetensors").stat().st_size
    assert 0.9 * 60000 <= size <= 60000
    refused = run("plan", path, f"model.source={(folder / 'model').resolve()}")
    assert refused.code == 2
    assert "is a packed export" in refused.err


def test_sensitivity_leaves_the_model_as_it_was(recipe, run) -> None:
    """The last group's loss at a small amount is close to the first's base: nothing accumulates."""
    path = recipe(
        (PRUNE, "sensitivity: {rows: 8, amounts: [0.001]}"),
        ("prune, recover, evaluate]", "sensitivity]"),
        ("recover: {stage: finetune, epochs: 1}", ""),
        ("evaluate: {max_length: [8, 16]}", ""),
    )
    done = run("run", path)
    assert done.code == 0, done.err
    curves = json.loads((path.parent / done.run_folder / "metrics.json").read_text())[-1]["metrics"]
    for curve in curves["groups"].values():
        assert curve["points"][0]["loss"] == pytest.approx(curves["loss"], abs=0.02)


GRADUAL = "finetune: {epochs: 6, prune: {amounts: {lm_head: 0.6, feed_forward: 0.5}, times: 5}}"


def test_gradual_pruning_ends_at_the_planned_count_and_survives_a_kill(recipe, run) -> None:
    """Cubic schedule: killed in the middle, the same SHA-256 as undisturbed."""
    path = recipe(("finetune: {epochs: 1}", GRADUAL), ("prune, recover, evaluate]", "evaluate]"))
    facts = planned(path).node("finetune").facts
    undisturbed = run("run", path, "outputs=undisturbed", "skip=[evaluate]")
    assert undisturbed.code == 0, undisturbed.err
    folder = path.parent / undisturbed.run_folder
    assert facts is not None
    assert ratios(folder)["finetune"] == facts.nonzero_ratio
    process = start("run", path, "skip=[evaluate]", cwd=path.parent)
    wait_for_step(process, 7)
    kill(process)
    final = run("run", path, "skip=[evaluate]")
    assert "goes on from step" in final.out
    assert file_digest(weights(path.parent / final.run_folder, "finetune")) == file_digest(
        weights(folder, "finetune")
    )


def test_two_processes_prune_gradually_alike(recipe, run) -> None:
    """Every rank chooses the same entries; the count is the planned one."""
    path = recipe(("finetune: {epochs: 1}", GRADUAL), ("prune, recover, evaluate]", "evaluate]"))
    facts = planned(path).node("finetune").facts
    done = run("run", path, "skip=[evaluate]", "launch.num_processes=2")
    assert done.code == 0, done.err
    assert facts is not None
    assert ratios(path.parent / done.run_folder)["finetune"] == facts.nonzero_ratio


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        ("amounts: {mine: 0.1}, groups: {mine: ['*.nothing']}", "groups.mine.0", "matches no"),
        (
            "amounts: {mine: 0.1, encoder: {feed_forward: 0.1}}, groups: {mine: ['*.wi.weight']}",
            "amounts.encoder.feed_forward",
            "shares weights with the group 'mine'",
        ),
        (
            "amounts: {mine: 0.1}, importance: wanda, groups: {mine: ['*layer_norm.weight']}",
            "amounts.mine",
            "no Linear layer",
        ),
        ("pattern: '2:5', only: [lm_head]", "pattern", "no multiple of 5"),
        (
            "pattern: '2:4', groups: {mine: ['*layer_norm.weight']}, only: [mine]",
            "only.0",
            "no Linear layer",
        ),
        ("amounts: {mine: 0.2}, groups: {mine: []}", "amounts.mine", "no weights"),
        ("pattern: '4:2'", "pattern", "N:M with N < M"),
        ("pattern: '2:4', amounts: {lm_head: 0.1}", "", "set one of amounts"),
        ("target: {nonzero_ratio: 0.5}", "sensitivity", "needs a 'sensitivity' stage before it"),
        ("target: {nonzero_ratio: 0.5, bytes: 3}", "target", "set nonzero_ratio or bytes"),
        ("pattern: '2:4', only: [decoder.feedforward]", "only.0", "did you mean 'feed_forward'?"),
    ],
)
def test_what_cannot_be_pruned_is_told_while_planning(recipe, settings, path, message) -> None:
    """With the key and the cure."""
    with pytest.raises(RecipeError) as caught:
        planned(recipe((PRUNE, f"prune: {{{settings}}}")))
    told = {problem.path: problem.message for problem in caught.value.problems}
    assert message in told[f"stages.prune.{path}" if path else "stages.prune"]


def test_a_target_out_of_reach_is_told_while_planning(recipe) -> None:
    """The groups hold fewer entries than must go; or the model is smaller than that already."""
    for target, message in (
        ("nonzero_ratio: 0.001", "out of reach"),
        ("bytes: 90000000", "smaller"),
    ):
        path = recipe(
            (PRUNE, f"sensitivity: {{}}\n  prune: {{target: {{{target}}}}}"),
            ("finetune, prune,", "finetune, sensitivity, prune,"),
        )
        with pytest.raises(RecipeError, match=message):
            planned(path)


def test_a_target_wants_the_curves_of_a_sensitivity_stage(recipe) -> None:
    """Another report on the same model has none."""
    path = recipe(
        (PRUNE, "prune: {target: {nonzero_ratio: 0.5}, sensitivity: evaluate}"),
        ("finetune, prune, recover, evaluate]", "finetune, evaluate, prune, recover]"),
    )
    with pytest.raises(RecipeError, match="expected a 'sensitivity' stage, and 'evaluate' is"):
        planned(path)


def test_curves_of_another_model_are_refused(recipe) -> None:
    """A training between `sensitivity` and `prune` makes its curves another model's."""
    path = recipe(
        (PRUNE, "sensitivity: {}\n  prune: {target: {nonzero_ratio: 0.5}}"),
        ("finetune, prune,", "sensitivity, finetune, prune,"),
    )
    with pytest.raises(RecipeError, match="looks at the model of 'load', not of 'finetune'"):
        planned(path)


def test_a_mask_on_a_tied_head_is_the_embeddings_too(recipe, run) -> None:
    """One tensor, one mask, counted once."""
    path = recipe((PRUNE, "prune: {amounts: {lm_head: 0.5}}"))
    done = run("run", path, "skip=[finetune, evaluate]")
    checkpoint = Checkpoint.load(weights(path.parent / done.run_folder, "prune").parent)
    model = checkpoint.model
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert list(checkpoint.masks) == ["shared.weight"]
