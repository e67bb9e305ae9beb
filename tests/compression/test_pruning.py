"""Pruning as a recipe asks for it: planned counts are the run's, whatever the way of choosing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compressor.core.errors import RecipeError
from compressor.core.files import hash_file
from compressor.core.progress import Progress
from compressor.models.checkpoint import Checkpoint
from compressor.stages.finetune import Finetune
from compressor.stages.load import Load
from compressor.stages.prune import Prune
from tests.engine.test_plan import plan_recipe
from tests.harness.command import start
from tests.harness.runs import kill, wait_for_step, weights
from tests.harness.stages import measure, pico_t5, preview, rows_of_text, run_stage

PRUNE = "prune: {amounts: {encoder: {feed_forward: 0.5}, lm_head: 0.3}}"
AMOUNTS: dict[str, Any] = {"amounts": {"encoder": {"feed_forward": 0.5}, "lm_head": 0.3}}
GROUP = {"mine": ["*.q.weight", "encoder.block.0.*.wi.weight"]}


@pytest.mark.parametrize(
    "settings",
    [
        *(AMOUNTS | {"importance": way} for way in ("random", "taylor", "wanda", "sparsegpt")),
        AMOUNTS | {"of": "all"},
        {"amounts": {"mine": 0.4}, "groups": GROUP},
        {"pattern": "2:4", "only": ["feed_forward"]},
        {"pattern": "1:4", "importance": "wanda"},
        {"pattern": "4:8", "importance": "sparsegpt", "only": ["encoder.self_attention"]},
        {"pattern": "2:4", "importance": "taylor", "only": ["decoder.cross_attention"]},
    ],
    ids=str,
)
def test_every_way_of_choosing_prunes_exactly_what_was_planned(tmp_path, settings) -> None:
    """The count is the plan's; what is masked is zero in a fresh load; a tied head stays tied."""
    checkpoint, data = pico_t5(), rows_of_text(tmp_path)
    stage = Prune(**settings, calibration_rows=4)
    facts, problems = preview(stage, checkpoint.derive_facts(), data)
    pruned, _ = run_stage(stage, checkpoint, tmp_path, data)
    assert problems == [] and facts is not None
    sizes = pruned.measure_sizes(tmp_path / "after")
    assert sizes["nonzero_ratio"] == facts.nonzero_ratio < 1
    for name, mask in pruned.masks.items():
        assert not bool(pruned.get_parameter(name)[~mask].any())
    tables = pruned.model.get_input_embeddings(), pruned.model.get_output_embeddings()
    assert torch.equal(tables[0].weight, tables[1].weight)
    assert "lm_head.weight" not in pruned.masks


@pytest.mark.parametrize(("of", "left"), [("remaining", 0.6 * 0.5), ("all", 0.5)])
def test_a_pruned_group_is_pruned_further(tmp_path, of, left) -> None:
    """`of: remaining` counts what is left, `of: all` what there was."""
    checkpoint, facts = pico_t5(), pico_t5().derive_facts()
    for stage in (Prune(amounts={"lm_head": 0.4}), Prune(amounts={"lm_head": 0.5}, of=of)):
        facts, _ = preview(stage, facts)
        checkpoint, _ = run_stage(stage, checkpoint, tmp_path)
        (tmp_path / "stage").rename(tmp_path / str(id(stage)))
    sizes = checkpoint.measure_sizes(tmp_path / "after")
    assert facts is not None and sizes["nonzero_ratio"] == facts.nonzero_ratio
    head = checkpoint.get_parameter("shared.weight")
    assert int(head.count_nonzero()) == pytest.approx(left * head.numel(), abs=2)


def test_a_target_is_reached_exactly_with_amounts_that_can_be_pasted(tmp_path) -> None:
    """Curves, chosen amounts, and the same masks from the printed amounts."""
    data = rows_of_text(tmp_path)
    settings = {"rows": 8, "amounts": [0.3, 0.6, 0.9], "rouge": True, "max_length": 8}
    curves = measure("sensitivity", pico_t5(), data, tmp_path, **settings)["groups"]
    artifacts = {"sensitivity": tmp_path / "sensitivity"}
    target = {"nonzero_ratio": 0.5}
    metrics = measure("prune", pico_t5(), data, tmp_path, artifacts, target=target)
    sizes = Checkpoint.load(tmp_path / "prune").measure_sizes(tmp_path / "prune")
    assert sizes["nonzero"] == round(0.5 * sizes["parameters"])
    assert len(curves) == 6
    points = curves["lm_head"]["points"]
    assert [point["amount"] for point in points] == [0.3, 0.6, 0.9]
    assert all(point["loss"] > 0 and 0 <= point["rougeLsum"] <= 1 for point in points)
    measure("prune", pico_t5(), data, tmp_path / "pasted", amounts=metrics["amounts"])
    files = (folder / "prune" / "model.safetensors" for folder in (tmp_path, tmp_path / "pasted"))
    assert len({hash_file(file) for file in files}) == 1


def test_a_target_in_bytes_is_what_the_packed_file_takes(tmp_path) -> None:
    """At most that, and at least 0.9 of it; such a folder is no source for `load`."""
    data, source = rows_of_text(tmp_path), tmp_path / "before_sensitivity"
    wide = pico_t5(d_model=64, d_ff=128)
    measure("sensitivity", wide, data, tmp_path, rows=4, amounts=[0.5, 0.9])
    artifacts = {"sensitivity": tmp_path / "sensitivity"}
    measure("prune", source, data, tmp_path, artifacts, target={"bytes": 60_000})
    measure("export", tmp_path / "prune", data, tmp_path, format="packed", parity=None)
    exported = tmp_path / "export" / "model"
    assert 0.9 * 60_000 <= (exported / "packed.safetensors").stat().st_size <= 60_000
    ((path, message),) = preview(Load(source=str(exported)), None)[1]
    assert path == "source" and "is a packed export" in message


def test_sensitivity_leaves_the_model_as_it_was(tmp_path, monkeypatch) -> None:
    """A group's loss at a small amount is close to the base, the last one's too; it is printed."""
    data, printed = rows_of_text(tmp_path), []
    monkeypatch.setattr(Progress, "say", lambda _, text: printed.append(text))
    curves = measure("sensitivity", pico_t5(), data, tmp_path, rows=8, amounts=[0.001])
    for curve in curves["groups"].values():
        assert curve["points"][0]["loss"] == pytest.approx(curves["loss"], abs=0.02)
    assert "with this share pruned" in printed[0] and len(printed) == 2 + len(curves["groups"])


GRADUAL = "finetune: {epochs: 6, prune: {amounts: {lm_head: 0.6, feed_forward: 0.5}, times: 5}}"


def test_gradual_pruning_ends_at_the_planned_count_and_survives_a_kill(recipe, run) -> None:
    """Cubic schedule: killed in the middle, the same SHA-256 as undisturbed; and the same count in
    two processes, of which each chooses the same entries.
    """
    path = recipe(("finetune: {epochs: 1}", GRADUAL), ("prune, recover, evaluate]", "evaluate]"))
    facts = plan_recipe(path).node("finetune").facts
    runs = [
        run("run", path, "skip=[evaluate]", f"launch.num_processes={count}", f"outputs=of{count}")
        for count in (1, 2)
    ]
    for done in runs:
        assert done.code == 0, done.err
        assert facts is not None and done.record("finetune")["nonzero_ratio"] == facts.nonzero_ratio
    process = start("run", path, "skip=[evaluate]", cwd=path.parent)
    wait_for_step(process, 2)
    kill(process)
    final = run("run", path, "skip=[evaluate]")
    assert "goes on from step" in final.out
    digests = {hash_file(weights(done.run_folder, "finetune")) for done in (runs[0], final)}
    assert len(digests) == 1


GROUPS = "groups: {mine: ['*layer_norm.weight']}"


@pytest.mark.parametrize("importance", ["taylor", "wanda", "sparsegpt"])
def test_gradual_pruning_reaches_a_target_by_any_importance(tmp_path, importance) -> None:
    """Planned and exact, with dropout on again after rows were looked at; its key alone is new."""
    data, target = rows_of_text(tmp_path), {"nonzero_ratio": 0.6}
    gradual = {"target": target, "times": 2, "importance": importance, "calibration_rows": 4}
    stage = Finetune(epochs=1, batch_size=8, prune=gradual)
    facts, problems = preview(stage, pico_t5().derive_facts(), data)
    trained, _ = run_stage(stage, pico_t5(), tmp_path, data)
    sizes = trained.measure_sizes(tmp_path / "after")
    assert problems == [] and facts is not None
    assert sizes["nonzero_ratio"] == facts.nonzero_ratio == pytest.approx(0.6, abs=1e-4)
    old = Finetune(epochs=1, prune={"amounts": {"lm_head": 0.5}}).parameters()["prune"]
    assert old["importance"] == "magnitude" and "target" not in old


@pytest.mark.parametrize(
    ("settings", "path", "message"),
    [
        ("amounts: {mine: 0.1}, groups: {mine: ['*.nothing']}", "groups.mine.0", "matches no"),
        ("amounts: {mine: 0.1, encoder: {feed_forward: 0.1}}, groups: {mine: ['*.wi.weight']}",
         "amounts.encoder.feed_forward", "shares weights with the group 'mine'"),
        (f"amounts: {{mine: 0.1}}, importance: wanda, {GROUPS}", "amounts.mine", "no Linear layer"),
        ("pattern: '2:5', only: [lm_head]", "pattern", "no multiple of 5"),
        (f"pattern: '2:4', {GROUPS}, only: [mine]", "only.0", "no Linear layer"),
        ("pattern: '4:2'", "pattern", "N:M with N < M"),
        ("target: {nonzero_ratio: 0.5, bytes: 3}", "target", "set nonzero_ratio or bytes"),
        ("target: {nonzero_ratio: 0.001}", "target.nonzero_ratio", "out of reach"),
        ("target: {bytes: 90000000}", "target.bytes", "smaller"),
        ("target: {nonzero_ratio: 0.5}, sensitivity: finetune", "sensitivity",
         "expected a 'sensitivity' stage, and 'finetune' is"),
        ("target: {nonzero_ratio: 0.5}, model: load", "sensitivity",
         "looks at the model of 'finetune', not of 'load'"),
        ("amounts: {lm_head: 0.1}, importance: wanda, inputs_from: pruned", "inputs_from",
         "layers of a t5 hand on position biases beside states; take 'dense'"),
        ("amounts: {lm_head: 0.1}, importance: magnitude, inputs_from: pruned", "inputs_from",
         "nothing for magnitude"),
    ],
)  # fmt: skip
def test_what_cannot_be_pruned_is_told_while_planning(recipe, settings, path, message) -> None:
    """With the key and the cure: also of a target of more than the groups hold, of less than is
    gone, or without the curves of that very model.
    """
    changed = recipe(
        (PRUNE, f"sensitivity: {{}}\n  prune: {{{settings}}}"),
        ("finetune, prune,", "finetune, sensitivity, prune,"),
    )
    with pytest.raises(RecipeError) as caught:
        plan_recipe(changed)
    problems = {problem.path: problem.message for problem in caught.value.problems}
    assert message in problems[f"stages.prune.{path}"]
