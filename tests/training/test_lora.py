"""Trainings of adapters: a merged model computes what was trained, whatever is pruned.

That without masks it is what peft trains is held by tests/support, for every family.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from compressor.core.errors import StageError
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import WEIGHTS
from compressor.models.quantized_layers import quantize_weights
from compressor.stages.finetune import Finetune, GradualPruning
from compressor.training.adapters import Adapters, attach_adapters
from compressor.training.lora import Lora
from tests.faults import LONG, long_form
from tests.harness.command import start
from tests.harness.models import BLOCK, BLOCKS, CASES, examples, outputs, reload
from tests.harness.runs import kill, wait_for_step, weights
from tests.harness.stages import measure, pico_t5, preview, rows_of_text, run_stage
from tests.harness.training import make_training
from tests.training import sharded

SHORT = {
    *("t5-seq2seq_lm", "bart-seq2seq_lm-tie_word_embeddings", "gpt2-causal_lm"),
    *("bert-sequence_classification-encoder_blocks", "qwen2-sequence_classification"),
}
STILL_BLOCKS = {"encoder_blocks": [None, BLOCK | {"dropout": 0.0}, None]}
FAMILIES = {
    name: (kind, STILL_BLOCKS if changes == BLOCKS else changes, head)
    for kind, changes, head in CASES
    for name in ["-".join([kind, head, *changes])]
    if head != "none" and (LONG or name in SHORT)
}
STEPS, RATE, RANK, ALPHA = 6, 5e-3, 3, 6.0
LORA = Lora(rank=RANK, alpha=ALPHA)


def build(name: str) -> Checkpoint:
    kind, changes, head = FAMILIES[name]
    return sharded.start(kind, head, **changes)


def train(
    model: Checkpoint, folder: Path, lora: Lora = LORA, rows: Any = None, **rest: Any
) -> tuple[Adapters, list[float], float]:
    """Train adapters, and do not merge them: these, each step's loss, the validation loss."""
    rows = rows or examples(model.head)
    adapters = attach_adapters(model, lora, seed=0)
    settings = {
        "epochs": STEPS, "batch_size": len(rows), "learning_rate": RATE, "warmup_steps": 2,
        "checkpoint_seconds": 1e9,
    } | rest.pop("settings", {})  # fmt: skip
    history = make_training(
        model.model, rows, folder, settings, validation=rows, masks=model.masks, **rest
    ).run()
    return adapters, history.losses, history.validation_losses[-1]


def mean_loss(model: nn.Module, head: str) -> Tensor:
    """Transformers' own, of all rows."""
    rows = examples(head)
    batch = rows.batch(list(range(len(rows))), 0)
    return model(**batch).loss


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_trained_under_a_mask_is_what_is_merged(name: str, tmp_path: Path) -> None:
    """The validation loss before is the merged model's, to 1e-5, by transformers' own loss. What
    was pruned is zero; the rest of an adapted weight is `W + scale * B A`, what had no adapter is
    as it was, to the bit, and what was tied still is.
    """
    model = build(name)
    sharded.prune_half(model)
    targets, whole = (
        choose(model.derive_facts()) for choose in (LORA.list_targets, LORA.list_head)
    )
    before = {n: p.detach().clone() for n, p in model.model.named_parameters()}
    names = [n for n, _ in model.model.named_parameters(remove_duplicate=False)]
    adapters, losses, validation = train(model, tmp_path)
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    assert trained == LORA.count_trained(model.derive_facts()) < model.model.num_parameters()
    factors = {
        name: [f["default"].weight.detach().clone() for f in (layer.lora_B, layer.lora_A)]
        for name, layer in adapters.layers.items()
    }
    unmerged = outputs(model.model)
    adapters.merge()
    torch.testing.assert_close(outputs(model.model), unmerged, rtol=1e-5, atol=1e-5)
    loaded = reload(model, tmp_path / "saved")
    assert mean_loss(loaded.model, model.head).item() == pytest.approx(validation, rel=1e-5)
    assert [n for n, _ in loaded.model.named_parameters(remove_duplicate=False)] == names
    assert factors.keys() == targets
    after = dict(loaded.model.named_parameters())
    for n, weight in before.items():
        mask = model.masks.get(n, torch.ones_like(weight, dtype=torch.bool))
        assert not torch.any(after[n][~mask]), n
        if n in targets:
            b, a = (factor.double() for factor in factors[n])
            product = (b @ a).T if name.startswith("gpt2") else b @ a
            expected = (weight + ALPHA / RANK * product).float()[mask]
            torch.testing.assert_close(after[n][mask], expected, rtol=1e-6, atol=1e-6)
            assert not torch.equal(after[n], weight)
        else:
            assert torch.equal(after[n], weight) == (n not in whole), n
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & {"longt5-seq2seq_lm", *SHORT}))
def test_gradients_under_a_mask_are_autograds(name: str, tmp_path: Path) -> None:
    """With gradient checkpointing, losses of each step are those of a plain loop in which `W + mask
    * scale * B A` is written out.
    """
    model = build(name)
    sharded.prune_half(model)
    plain = copy.deepcopy(model.model).train()
    _, losses, _ = train(model, tmp_path, settings={"gradient_checkpointing": True})
    assert losses == pytest.approx(_train_written_out(plain, model), rel=2e-5)


def _train_written_out(plain: nn.Module, model: Checkpoint) -> list[float]:
    """Another training of the same adapters, by functional calls and plain autograd."""
    head = model.head
    start = Checkpoint(copy.deepcopy(plain), None, head, dict(model.masks))
    factors = {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in attach_adapters(start, LORA, seed=0).layers.items()
    }
    whole = [plain.get_parameter(name) for name in LORA.list_head(model.derive_facts())]
    trained = [factor for pair in factors.values() for factor in pair] + whole
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 2, STEPS)
    rows, losses = examples(head), []
    batch = rows.batch(list(range(len(rows))), 0)
    for _ in range(STEPS):
        merged = {}
        for name, (a, b) in factors.items():
            weight = plain.get_parameter(name).detach()
            product = (b @ a).T if plain.config.model_type == "gpt2" else b @ a
            merged[name] = weight + model.masks[name] * product * (ALPHA / RANK)
        optimizer.zero_grad()
        loss = torch.func.functional_call(plain, merged, kwargs=batch).loss
        loss.backward()
        for name, parameter in plain.named_parameters():
            if name in model.masks and parameter.grad is not None:
                parameter.grad *= model.masks[name]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["gpt2-causal_lm"])
def test_dropout_under_a_mask_is_pefts(name: str, tmp_path: Path) -> None:
    """With masks that take nothing: the same numbers are drawn, and the losses are peft's."""
    settings = Lora(rank=RANK, alpha=ALPHA, dropout=0.3, rslora=True)
    plain, masked = build(name), build(name)
    for weight in settings.list_targets(masked.derive_facts()):
        shape = masked.get_parameter(weight).shape
        masked.masks[weight] = torch.ones(shape, dtype=torch.bool)
    (_, losses, validation), (_, expected, final) = (
        train(model, tmp_path / str(i), settings) for i, model in enumerate((masked, plain))
    )
    assert losses == pytest.approx(expected, rel=2e-5) and validation == pytest.approx(final)
    assert losses != train(build(name), tmp_path / "without")[1]


class Interrupted(Exception):
    """As a kill would, in the same process."""


def train_gradually(folder: Path, stop: int | None = None) -> tuple[Checkpoint, list[float]]:
    """Dropout, of a model and of adapters, and masks that grow; the merged model."""
    model = sharded.start("t5", dropout_rate=0.1)
    groups = {"encoder": {"feed_forward": 0.5}, "decoder": {"self_attention": 0.4}}
    callback = GradualPruning(amounts=groups, times=3).make_callback(model, 0)

    def after_step(step: int, total: int, summon_full: Any) -> None:
        if step == stop:
            raise Interrupted
        callback(step, total, summon_full)

    settings = {"checkpoint_seconds": 0, "batch_size": 4, "max_steps": 12, "epochs": 4}
    lora = Lora(rank=RANK, dropout=0.2)
    adapters, losses, _ = train(model, folder, lora, settings=settings, after_step=after_step)
    adapters.merge()
    return model, losses


def test_interrupted_twice_it_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch) -> None:
    """Masks, adapters, averages, dropout; a checkpoint has no weight that is not trained."""
    monkeypatch.setattr("compressor.training.loop.OWN_CHECKPOINT_SHARE", 1e9)
    expected, losses = train_gradually(tmp_path / "whole")
    for stop in (4, 11):
        with pytest.raises(Interrupted):
            train_gradually(tmp_path / "stopped", stop)
    (checkpoint,) = (tmp_path / "stopped").glob("step-*")
    saved = load_file(checkpoint / "tensors")
    parts = {name for name in saved if name.startswith(("model.", "optimizer."))}
    assert parts and all(".lora_A." in name or ".lora_B." in name for name in parts)
    others = {"generators", *(f"mask.{name}" for name in expected.masks)}
    assert saved.keys() - parts == others
    model, again = train_gradually(tmp_path / "stopped")
    assert again == losses and len(losses) == 12
    for name, weight in expected.model.named_parameters():
        assert torch.equal(model.get_parameter(name), weight), name
    assert all(torch.equal(model.masks[name], mask) for name, mask in expected.masks.items())


def test_a_weight_that_comes_alive_fails_the_merge() -> None:
    """Nothing that is pruned is saved with another value than zero."""
    model = build("t5-seq2seq_lm")
    sharded.prune_half(model)
    adapters = attach_adapters(model, LORA, seed=0)
    name = min(adapters.layers)
    with torch.no_grad():
        model.get_parameter(name)[~model.masks[name]] = 1e-30
    with pytest.raises(StageError, match=rf"\d+ pruned entries of {name} came alive in its merge"):
        adapters.merge()


def test_gradual_pruning_goes_by_what_will_be_merged(tmp_path: Path) -> None:
    """After the last step as many are gone as planned, of the smallest of `W + scale * B A`."""
    stage = Finetune(
        epochs=3, learning_rate=0.05, batch_size=4, lora={"rank": 4},
        prune={"amounts": {"encoder": {"feed_forward": 0.5}}, "times": 1, "end": 1.0},
    )  # fmt: skip
    start, data = pico_t5(), rows_of_text(tmp_path)
    pruned, metrics = run_stage(stage, start, tmp_path, data)
    whole, _ = run_stage(
        Finetune(epochs=3, learning_rate=0.05, batch_size=4, lora={"rank": 4}),
        start, tmp_path / "whole", data,
    )  # fmt: skip
    names = start.derive_facts().list_groups()["encoder.feed_forward"]
    merged = torch.cat([whole.get_parameter(name).detach().flatten() for name in names])
    kept = torch.cat([pruned.masks[name].flatten() for name in names])
    assert int((~kept).sum()) == round(0.5 * len(kept))
    assert merged[kept].abs().min() >= merged[~kept].abs().max()
    assert metrics["trained_parameters"] == stage.count_trained(start.derive_facts())


@pytest.mark.parametrize(
    "aware", [{"weights": "int8"}, {"weights": "int4", "group_size": 16}], ids=["int8", "int4"]
)
def test_rounding_is_of_what_will_be_merged(aware: dict[str, Any], tmp_path: Path) -> None:
    """The last validation loss is that of the merged model, quantized; masks are on."""
    start, data = pico_t5(), rows_of_text(tmp_path)
    sharded.prune_half(start)
    stage = Finetune(
        epochs=2, learning_rate=0.02, batch_size=4, lora={"rank": 4}, quantization_aware=aware
    )
    tuned, metrics = run_stage(stage, start, tmp_path, data)
    rows = tuned.tokenize_rows(data.load("validation"), data)
    batch = rows.batch(list(range(len(rows))), tuned.pad_id)
    plain = tuned.model(**batch).loss.item()
    assert stage.quantization_aware is not None
    kinds = stage.quantization_aware.choose_kinds(aware["weights"], tuned.derive_facts())
    quantize_weights(tuned.model, kinds, aware.get("group_size"))
    assert tuned.model(**batch).loss.item() == pytest.approx(metrics["validation_loss"], rel=1e-5)
    assert abs(plain - metrics["validation_loss"]) > 1e-6
    assert all(int(torch.count_nonzero(~mask)) for mask in tuned.masks.values())


def test_an_artifact_is_as_plain_as_any_other(tmp_path: Path) -> None:
    """`distill` with adapters, as the engine runs it: no file and no tensor is left of peft."""
    start, data = pico_t5(), rows_of_text(tmp_path)
    sharded.prune_half(start)
    start.save(tmp_path / "teacher")
    metrics = measure(
        "distill", start, data, tmp_path, {"teacher": tmp_path / "teacher"},
        teacher="", epochs=1, lora={"targets": ["decoder.cross_attention"], "rank": 4},
    )  # fmt: skip
    assert metrics["trained_parameters"] == 2 * 4 * 4 * (16 + 16)
    names = [{file.name for file in (tmp_path / n).iterdir()} for n in ("distill", "teacher")]
    assert names[0] - names[1] == {"losses.csv"} and names[1] <= names[0]
    mine, theirs = (load_file(tmp_path / n / WEIGHTS) for n in ("distill", "teacher"))
    assert mine.keys() == theirs.keys()
    changed = {name for name, tensor in mine.items() if not torch.equal(tensor, theirs[name])}
    assert changed and all(".EncDecAttention." in name for name in changed)


RECOVER = "recover: {stage: finetune, epochs: 1}"
WITH_LORA = "recover: {stage: finetune, epochs: 4, lora: {rank: 4}}"


@long_form
def test_killed_it_goes_on_to_the_same_bits(recipe, run, tmp_path: Path) -> None:
    """SIGKILL, in the midst of its steps; the run says how much it trains."""
    path = recipe((RECOVER, WITH_LORA), ("prune, recover, evaluate]", "prune, recover]"))
    whole = run("run", path, "outputs=whole")
    assert whole.code == 0 and "  trains 0.01 M of 0.05 M parameters" in whole.out
    process = start("run", path, cwd=tmp_path)
    wait_for_step(process, 9)  # the first training has 8
    kill(process)
    again = run("run", path)
    assert again.code == 0 and "goes on from step" in again.out
    mine, theirs = (weights(done.run_folder, "recover").read_bytes() for done in (whole, again))
    assert mine == theirs


def test_the_key_changes_only_where_it_is_set() -> None:
    """Trainings of earlier versions stay in the store."""
    assert "lora" not in Finetune().parameters()
    stage = Finetune(lora={"rank": 8})
    settings = {"rank": 8, "alpha": 32.0, "rslora": False, "dropout": 0.0, "targets": []}
    assert stage.parameters() == Finetune().parameters() | {"lora": settings}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"epochs": 0, "lora": {}}, ("lora", "there are no steps: epochs is 0")),
        (
            {"lora": {"targets": ["decoder.self_atention"]}},
            ("lora.targets.0", "no such group; did you mean 'decoder.self_attention'?"),
        ),
        (
            {"lora": {"targets": ["feed_forward", "lm_head"]}},
            ("lora.targets.1", "'lm_head' is tied to the word embeddings, which an adapter would "
             "change too; leave it out"),
        ),
        (
            {"lora": {"dropout": 0.1}, "quantization_aware": "int8"},
            ("lora.dropout", "does not go with quantization_aware; take 0"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(settings: dict[str, Any], expected: tuple[str, str]) -> None:
    """Before anything is trained."""
    assert preview(Finetune(**settings), pico_t5().derive_facts())[1] == [expected]


def test_shards_are_refused_by_name(plan_errors) -> None:
    """And an environment without peft, with what to type."""
    sharded_launch = ["launch.config_file=fsdp2", "launch.num_processes=2"]
    told = plan_errors((RECOVER, WITH_LORA), overrides=sharded_launch)
    assert (
        "stages.recover.lora: cannot train adapters in shards, as 'fsdp2' has them; take " in told
    )
    assert told.count("stages.") == 1


def test_without_peft_it_is_refused(monkeypatch) -> None:
    """Planning says what to type."""
    monkeypatch.setattr("compressor.training.lora.find_spec", lambda name: None)
    _, problems = preview(Finetune(lora={}), pico_t5().derive_facts())
    (told,) = problems
    assert told[0] == "lora" and told[1].startswith("needs peft, not installed: pip install")
