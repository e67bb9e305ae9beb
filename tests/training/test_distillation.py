"""A student learns from a teacher what the recipe weighs, whatever way its batches are cut."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from compressor.core.console import Console
from compressor.core.errors import RecipeError, StageError
from compressor.core.files import hash_file
from compressor.core.progress import Progress
from compressor.data.batching import collate_rows
from compressor.data.examples import Examples
from compressor.engine.plan import Plan, plan
from compressor.engine.store.store import Store
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import matched_layers
from compressor.recipe.compose import compose
from compressor.training.distillation import DistillationLoss, attention_difference
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.loop import accelerator_for
from compressor.training.losses import LabelLoss
from compressor.training.teacher_cache import (
    DONE,
    LOGITS,
    ExamplesWithLogits,
    File,
    with_teacher_logits,
)
from tests.harness.command import Command, compressor, start
from tests.harness.models import PICO
from tests.harness.recipes import RECIPE as PICO_RECIPE
from tests.harness.runs import kill, losses, wait_for_step

ROWS = [([5, 6, 7, 1], [8, 9, 1]), ([10, 1], [11, 1]), ([12, 13, 1], [14, 15, 16, 17, 1])]
LABELS = 10
ALL = {"labels": 0.5, "logits": 1.0, "hidden": 2.0, "attention": 3.0}
MAPS = {"encoder": {0: 1, 1: 0}, "decoder": {0: 1}}
NARROW: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 12, "num_heads": 2},
    "bart": {"d_model": 8, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    "mbart": {"d_model": 8, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    "gpt2": {"n_embd": 12, "n_head": 3},
    "qwen2": {"num_attention_heads": 2, "hidden_size": 8},
}
FAMILIES, CAUSAL = tuple(NARROW), {"gpt2", "qwen2"}


def build_pico(kind: str, seed: int, **changes: Any) -> Any:
    """A pico model with other weights for every seed, and logits that are not all alike."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    special["decoder_start_token_id"] = 0
    config = AutoConfig.for_model(kind, **PICO[kind] | special | changes)
    model = (AutoModelForCausalLM if kind in CAUSAL else AutoModelForSeq2SeqLM).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def batch(kind: str, rows: Any = ROWS) -> dict[str, torch.Tensor]:
    return collate_rows(rows, pad_id=0, layout="joined" if kind in CAUSAL else "pairs")


def both(kind: str, weights: dict[str, float], temperature: float = 2.0) -> DistillationLoss:
    student, teacher = build_pico(kind, 1, **NARROW[kind]), build_pico(kind, 2)
    stacks = ("decoder",) if kind in CAUSAL else ("encoder", "decoder")
    layers = {stack: MAPS[stack] for stack in stacks}
    return DistillationLoss(student, teacher, weights, temperature=temperature, layers=layers)


def by_hand(loss: DistillationLoss, kind: str) -> dict[str, float]:
    """Every part from the models' own outputs, row by row without padding, pair by pair."""
    sums = dict.fromkeys(ALL, 0.0)
    student, teacher = loss.student.model, loss.teacher.model
    for row in ROWS:
        one = batch(kind, [row])
        flags = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            s, t = student(**one, **flags), teacher(**one, **flags)
        causal = not student.config.is_encoder_decoder
        shift = len(row[0]) - 1 if causal else 0
        count = len(row[1])
        for place, label in enumerate(row[1], shift):
            sums["labels"] -= s.logits[0, place].log_softmax(-1)[label].item()
            p, q = ((x.logits[0, place] / loss.temperature).softmax(-1) for x in (t, s))
            kl = sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
            sums["logits"] += loss.temperature**2 * kl
        hidden, attention = [], []
        for stack, pairs in loss.layers.items():
            name = "" if causal else f"{stack}_"
            places = range(shift, shift + count) if stack == "decoder" else range(len(row[0]))
            for mine, theirs in pairs.items():
                a = loss.projections[stack](s[f"{name}hidden_states"][mine + 1]).detach()[0]
                b = t[f"{name}hidden_states"][theirs + 1][0]
                one_place = [((a[k] - b[k]) ** 2).mean().item() for k in places]
                hidden.append(count * sum(one_place) / len(one_place))
            keys = [f"{name}attentions"]
            keys += ["cross_attentions"] if stack == "decoder" and not causal else []
            for key in keys:
                for mine, theirs in pairs.items():
                    a, b = s[key][mine][0].mean(0), t[key][theirs][0].mean(0)
                    one_place = [((a[k] - b[k]) ** 2).mean().item() for k in places]
                    attention.append(count * sum(one_place) / len(one_place))
        sums["hidden"] += sum(hidden) / len(hidden)
        sums["attention"] += sum(attention) / len(attention)
    return sums


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_part_is_what_a_loop_over_unpadded_rows_gives(kind: str) -> None:
    """Values, with padding, other widths and other numbers of heads; the whole is their sum."""
    loss = both(kind, ALL)
    expected = by_hand(loss, kind)
    parts = {name: part.item() for name, part in loss.compute_parts(batch(kind)).items()}
    assert parts == pytest.approx(expected, rel=1e-4)
    whole = sum(ALL[name] * value for name, value in expected.items())
    assert loss(batch(kind)).item() == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_sum_and_its_gradients_do_not_depend_on_how_the_batch_was_cut(kind: str) -> None:
    """Rows alone, and an empty share, add up to the batch: of each parameter, projections too."""
    loss = both(kind, ALL)
    trained = {n: p for n, p in loss.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("projections")}
    whole = loss(batch(kind))
    whole.backward()
    expected = {name: p.grad.clone() for name, p in trained.items()}
    loss.zero_grad()
    parts = [loss(batch(kind, rows)) for rows in ([ROWS[0]], [], ROWS[1:])]
    assert parts[1].item() == 0
    for part in parts:
        part.backward()
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-5)
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("part", ALL)
def test_an_empty_share_adds_nothing_to_any_gradient(part: str) -> None:
    """A rank without rows takes part in the step, whichever part alone is weighed."""
    for kind in FAMILIES:
        loss = both(kind, {part: 1.0})
        summed = loss(batch(kind, []))
        assert summed.item() == 0
        summed.backward()
        for name, parameter in loss.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is None or not parameter.grad.any(), (kind, name)


def test_the_divergence_of_known_distributions() -> None:
    """Teacher 3/4, 1/4 at T = 2 and a uniform student: 4 · (3/4 ln 3/2 + 1/4 ln 1/2) a label."""
    student, teacher = build_pico("bart", 1, vocab_size=20), build_pico("bart", 2, vocab_size=20)
    for model in (student, teacher):
        torch.nn.init.zeros_(model.lm_head.weight)  # tied: hidden states say nothing
        model.final_logits_bias.fill_(-1e4)
        model.final_logits_bias[0, :2] = 0
    teacher.final_logits_bias[0, 0] = 2 * math.log(3)
    student.final_logits_bias[0, 0] = 0
    loss = DistillationLoss(student, teacher, {"logits": 1.0}, temperature=2.0)
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert loss(batch("bart")).item() == pytest.approx(LABELS * 4 * kl, rel=1e-5)


def test_the_difference_of_known_attention_maps() -> None:
    """Two heads against one, three keys of which the last is padding, by hand."""
    student = torch.tensor([[[[0.5, 0.5, 9.0]], [[0.1, 0.9, 9.0]]]])  # [1, 2, 1, 3]
    teacher = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    keys = torch.tensor([[1.0, 1.0, 0.0]])
    expected = ((0.3 - 1.0) ** 2 + (0.7 - 0.0) ** 2) / 2
    assert attention_difference(student, teacher, keys).item() == pytest.approx(expected)
    same = attention_difference(student, teacher.expand(1, 2, 1, 3), keys)
    assert same.item() == pytest.approx((0.25 + 0.25 + 0.81 + 0.81) / 4)


def test_labels_alone_are_the_label_loss() -> None:
    """With the other weights zero: the same bits as a fine-tune's loss."""
    loss = both("t5", {"labels": 1.0, "logits": 0.0})
    expected = LabelLoss(loss.student.model)(batch("t5"))
    assert torch.equal(loss(batch("t5")), expected)


def test_a_teacher_gets_no_gradient_and_never_drops() -> None:
    """Its weights are frozen, in training mode it gives what it gives in evaluation."""
    student, teacher = build_pico("t5", 1), build_pico("t5", 2, dropout_rate=0.5)
    loss = DistillationLoss(student, teacher, {"logits": 1.0, "hidden": 1.0}, layers=MAPS)
    expected = loss(batch("t5")).item()
    loss.train()
    student.eval()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    summed = loss(batch("t5"))
    assert summed.item() == expected
    summed.backward()
    torch.optim.AdamW(loss.parameters(), lr=0.1).step()
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_in_bfloat16_the_teacher_keeps_its_own_precision() -> None:
    """Under autocast only the student's side is rounded: at itself, a teacher differs by that."""
    model = build_pico("t5", 1)
    loss = DistillationLoss(build_pico("t5", 1), model, {"logits": 1.0}, temperature=1.0)
    dtypes = []
    model.lm_head.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        summed = loss(batch("t5"))
    assert [*dtypes, summed.dtype] == [torch.float32] * 2
    assert 0 < summed.item() < 0.1


def test_recomputed_activations_give_the_same_gradients() -> None:
    """Gradient checkpointing, with hidden states and attention maps captured."""
    student, teacher = build_pico("t5", 1, dropout_rate=0.0, **NARROW["t5"]), build_pico("t5", 2)
    loss = DistillationLoss(student, teacher, ALL, layers=MAPS).train()
    gradients = []
    for recompute in (False, True):
        if recompute:
            student.gradient_checkpointing_enable()
        loss.zero_grad()
        loss(batch("t5")).backward()
        gradients.append([p.grad.clone() for p in loss.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


def taught(kind: str, teacher: Any, folder: Path) -> ExamplesWithLogits:
    """The rows with the teacher's logits, as a stage makes them."""
    sources, targets = map(list, zip(*ROWS, strict=True))
    examples = Examples(sources, targets, "joined" if kind in CAUSAL else "pairs")
    return with_teacher_logits(
        examples, teacher, 0, folder, flush_seconds=0, progress=Progress(Console(quiet=True)),
        accelerator=accelerator_for(Hyperparameters(precision="float32"), None),
    )  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_cached_logits_give_the_teachers_loss_and_gradients(kind: str, tmp_path: Path) -> None:
    """In any order, cut anyhow, with padding and an empty share, and no teacher beside."""
    weights = {"labels": 0.5, "logits": 1.0}
    plain = both(kind, weights)
    plain.zero_grad()
    expected = plain(batch(kind))
    expected.backward()
    gradients = [p.grad.clone() for p in plain.student.parameters()]

    examples = taught(kind, plain.teacher.model, tmp_path)
    cached = DistillationLoss(plain.student.model, None, weights, temperature=2.0)
    cached.zero_grad()
    assert cached(examples.batch([0, 1, 2], 0)).item() == pytest.approx(expected.item(), rel=1e-5)
    parts = [cached(examples.batch(rows, 0)) for rows in ([2, 0], [], [1])]
    assert parts[1].item() == 0
    assert sum(part.item() for part in parts) == pytest.approx(expected.item(), rel=1e-5)
    for part in parts:
        part.backward()
    for parameter, gradient in zip(cached.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_has_a_line_for_each_label_token(dtype: torch.dtype, tmp_path: Path) -> None:
    """What the teacher gives for rows alone, in its own type: 10 labels of 50 pieces."""
    teacher = build_pico("t5", 2).to(dtype)
    logits = taught("t5", teacher, tmp_path).logits
    assert (logits.shape, logits.dtype) == ((LABELS, 50), dtype)
    assert (tmp_path / LOGITS).stat().st_size == LABELS * 50 * dtype.itemsize
    with torch.no_grad():
        alone = [teacher(**batch("t5", [row])).logits[0] for row in ROWS]
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=tolerance)


def test_cached_logits_that_are_on_the_disk_are_not_computed_again(tmp_path: Path) -> None:
    """After a kill only what is missing is, a batch that is half there as a whole."""
    first = taught("t5", build_pico("t5", 2), tmp_path).logits.clone()
    assert torch.equal(taught("t5", build_pico("t5", 3), tmp_path).logits, first)
    assert (tmp_path / DONE).read_bytes() == b"\1\1\1"
    (tmp_path / DONE).write_bytes(b"\1\0\1")
    second = taught("t5", build_pico("t5", 3), tmp_path).logits
    assert not torch.isclose(second, first).all(1).any()
    fresh = taught("t5", build_pico("t5", 3), tmp_path / "fresh").logits
    assert torch.equal(second, fresh)
    # A file that is not what these rows need is made anew.
    (tmp_path / LOGITS).write_bytes(b"short")
    assert torch.equal(taught("t5", build_pico("t5", 3), tmp_path).logits, fresh)


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    """Four million gigabytes."""
    with pytest.raises(StageError, match=r"take 4000000\.0 GB .* GB free; set cache_logits: false"):
        File(tmp_path, (10**9, 10**6), torch.float32).require_room()
    assert not list(tmp_path.iterdir())


def test_without_a_teacher_there_are_only_logits() -> None:
    """Hidden states and attention maps are in no file."""
    with pytest.raises(ValueError, match="need the teacher itself"):
        DistillationLoss(build_pico("t5", 1), None, {"hidden": 1.0})


def test_layers_are_matched_evenly_and_last_to_last() -> None:
    """2 of 4 learn from 1 and 3; more layers than the teacher's share some."""
    assert matched_layers(2, 4) == {0: 1, 1: 3}
    assert matched_layers(3, 3) == {0: 0, 1: 1, 2: 2}
    assert matched_layers(3, 12) == {0: 3, 1: 7, 2: 11}
    assert matched_layers(4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}


RECIPE = PICO_RECIPE.replace("prune, recover, evaluate]", "small, shrink, prune, distill]")
RECIPE = RECIPE[: RECIPE.index("  prune:")]
RECIPE += """  small:
    stage: load
    config:
      {model_type: t5, vocab_size: 400, d_model: 24, d_kv: 8, d_ff: 48, num_layers: 2,
       num_heads: 2, dropout_rate: 0.0, decoder_start_token_id: 0}
  shrink: {decoder_layers: 1}
  prune: {amounts: {encoder: {feed_forward: 0.5}}}
  distill:
    teacher: finetune
    epochs: 2
    losses: {hidden: 0.5, attention: 5.0}
    layers: {encoder: {0: 0, 1: 1}}
    prune: {amounts: {decoder: {feed_forward: 0.4}}, times: 3}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recipe, and everything but the distillation in its store."""
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "mine.yaml").write_text(RECIPE)
    done = compressor("run", "mine.yaml", "skip=[distill]", cwd=folder)
    assert done.code == 0, done.err
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "mine"))


def distilled(folder: Path, *overrides: str) -> tuple[Command, Path, dict[str, Any]]:
    """Run the recipe; the command, the folder of the distilled model, and its record."""
    done = compressor("run", "mine.yaml", *overrides, cwd=folder)
    assert done.code == 0, done.err
    (stage,) = (folder / done.run_folder).glob("stages/*-distill")
    records = json.loads((folder / done.run_folder / "metrics.json").read_text())
    return done, stage, next(record for record in records if record["name"] == "distill")


def test_a_distillation_as_a_user_runs_it(folder: Path, monkeypatch) -> None:
    """Teacher untouched, loss falls, masks kept, planned counts true, all cached again."""
    monkeypatch.chdir(folder)
    (teacher,) = folder.glob("outputs/runs/*/*/stages/*-finetune/model.safetensors")
    before = hash_file(teacher)
    planned = {n.name: n for n in plan(compose("mine.yaml"), Store(Path("outputs/store"))).nodes}
    _, stage, record = distilled(folder)
    assert hash_file(teacher) == before
    curve = losses(stage)
    assert len(curve) == 16
    assert sum(curve[-4:]) < 0.92 * sum(curve[:4])
    facts = planned["distill"].facts
    assert facts is not None
    assert record["parameters"] == facts.parameters
    assert record["nonzero_ratio"] == pytest.approx(facts.nonzero_ratio, abs=2e-6)
    weights, masks = (load_file(stage / f"{name}.safetensors") for name in ("model", "masks"))
    assert any(name.startswith("decoder") for name in masks)
    assert all(torch.count_nonzero(weights[name][~mask]) == 0 for name, mask in masks.items())
    assert not [name for name in weights if "projection" in name]
    layers = {"encoder": {"0": 0, "1": 1}, "decoder": {"0": 1}}
    assert record["metrics"]["layers"] == layers
    assert record["metrics"]["validation_loss"] < math.log(400)  # of the labels alone
    *_, again = distilled(folder)
    assert again["cached"]


CACHED = "stages.distill.cache_logits=true"
LOGITS_ALONE = ("stages.distill.losses.hidden=0", "stages.distill.losses.attention=0")


def kill_in_the_middle(folder: Path, *overrides: str) -> Path:
    """The last checkpoint of a run that was killed in the middle of its distillation."""
    process = start("run", "mine.yaml", *overrides, cwd=folder)
    wait_for_step(process, -1)  # where a disk is slow, a later one may come after the last step
    kill(process)
    # Killed between two renames it may have left the one before as well; the last is what counts.
    checkpoints = folder.glob("outputs/store/partial/*.resume/step-*/tensors")
    return max(checkpoints, key=lambda path: int(path.parent.name[5:]))


def test_a_killed_distillation_goes_on_to_the_same_bits(folder: Path) -> None:
    """SIGKILL in the middle, with dropout and projections in play: the same SHA-256."""
    more = ("stages.small.config.dropout_rate=0.1", "stages.distill.epochs=4")
    other = Path(shutil.copytree(folder, folder.parent / "other"))
    _, stage, _ = distilled(other, *more)
    expected = hash_file(stage / "model.safetensors")
    saved = load_file(kill_in_the_middle(folder, *more))
    for stack in ("encoder", "decoder"):
        assert saved[f"model.loss.projections.{stack}.weight"].shape == (32, 24)
        assert f"optimizer.loss.projections.{stack}.weight.exp_avg" in saved
    assert not [name for name in saved if "teacher" in name]
    done, stage, _ = distilled(folder, *more)
    assert "goes on from step" in done.out
    assert hash_file(stage / "model.safetensors") == expected


def test_two_processes_with_micro_batches_give_one_processs_losses(folder: Path) -> None:
    """Without and with cached logits: the first loss but for rounding; later ones within 1e-3,
    since Adam divides a gradient by its own size, also where that is rounding. The cache's size is
    told, and it is gone after.
    """
    tokens = sum(len(target) for target in targets(folder))
    two = ("launch.num_processes=2", "stages.distill.micro_batch_size=3")
    for alone, others in (((), two), (LOGITS_ALONE, (*LOGITS_ALONE, CACHED, *two))):
        curves, records = [], []
        for overrides in (alone, others):
            _, stage, record = distilled(folder, *overrides)
            curves.append(losses(stage))
            records.append(record)
            shutil.rmtree(folder / "outputs" / "store" / record["key"])
        assert len(curves[0]) == 16 and curves[1] == pytest.approx(curves[0], abs=1e-3)
        assert curves[1][0] == pytest.approx(curves[0][0], abs=1e-5)
        validation = [record["metrics"]["validation_loss"] for record in records]
        assert validation[1] == pytest.approx(validation[0], abs=1e-3)
    assert records[0]["key"] != records[1]["key"] and not list(folder.rglob(LOGITS))
    assert records[1]["metrics"]["cached_logits_bytes"] == tokens * 400 * 4
    assert "cached_logits_bytes" not in records[0]["metrics"]


def targets(folder: Path) -> list[list[int]]:
    """Token ids of the training rows' summaries, as the student reads them."""
    (small,) = folder.glob("outputs/runs/*/*/stages/*-small")
    checkpoint = Checkpoint.load(small)
    data = compose(str(folder / "mine.yaml")).recipe.data
    return checkpoint.tokenize_rows(data.load("train"), data).targets


def test_another_tokenizer_is_refused_before_the_first_step(folder: Path) -> None:
    """The same number of pieces, but others: no token of one means the other's."""
    data = "{source: bills, seed: 5, rows: {train: 64, validation: 16, test: 8}}"
    override = f"stages.small.tokenizer={{vocab_size: 400, data: {data}}}"
    result = compressor("run", "mine.yaml", override, cwd=folder)
    assert result.code == 1
    assert "has another tokenizer" in result.err
    assert not list(folder.glob("outputs/store/partial/*.resume"))


def planned(tmp_path: Path, *replacements: tuple[str, str]) -> Plan:
    text = RECIPE
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new)
    (tmp_path / "mine.yaml").write_text(text)
    return plan(compose(str(tmp_path / "mine.yaml")), Store(tmp_path / "none"))


GPT2 = "{model_type: gpt2, vocab_size: 400, n_embd: 24, n_layer: 2, n_head: 2}"
BART = (
    "{model_type: bart, vocab_size: 400, d_model: 24, encoder_layers: 2, decoder_layers: 2, "
    "encoder_attention_heads: 2, decoder_attention_heads: 2}"
)
SMALL = RECIPE[RECIPE.index("      {model_type: t5") : RECIPE.index("  shrink:")]
TEACHER = "teacher: finetune"
ALIKE = "layers: {encoder: {0: 0, 1: 1}}"


CACHING = (TEACHER, f"{TEACHER}\n    cache_logits: true")
LOSSES = "{hidden: 0.5, attention: 5.0}"
INT8 = ("  shrink:", "  int8: {stage: quantize}\n  shrink:")
MEASURE = ("  shrink:", "  measure: {stage: benchmark}\n  shrink:")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(TEACHER, "teacher: finetun")], "distill.teacher: no stage 'finetun'; did you mean"),
        ([(TEACHER, "teacher: distill")], "distill.teacher: 'distill' comes later"),
        ([("prune, distill]", "distill, prune]"), (TEACHER, "teacher: prune")], "comes later"),
        ([("small, shrink", "measure, small, shrink"), (TEACHER, "teacher: measure"), MEASURE],
         "distill.teacher: 'measure' gives no model"),
        ([("    teacher: finetune\n", "")], "distill.teacher: is missing"),
        ([("{model_type: t5, vocab_size: 400", "{model_type: t5, vocab_size: 401")],
         "has a vocabulary of 400, the student one of 401"),
        ([(SMALL, f"      {GPT2}\n    head: causal_lm\n")], "has the head 'seq2seq_lm'"),
        ([(SMALL, f"      {BART}\n")], "losses.attention: the teacher is a t5, the student a bart"),
        ([("prune, distill]", "int8, distill]"), INT8],
         "stages.distill: cannot train an int8 model"),
        ([(ALIKE, "layers: {decoder: {0: 2}}")], "decoder.0: 2 is outside 0 … 1, the teacher"),
        ([(ALIKE, "layers: {decoder: {1: 0}}")], "decoder.1: 1 is outside 0 … 0, the student"),
        ([(ALIKE, "layers: {encoder: {}, decoder: {}}")], "leaves no layer"),
        ([(ALIKE, "layers: {encode: {0: 1}}")],
         "layers.encode: no such key; did you mean 'encoder'?"),
        ([("{hidden: 0.5", "{hiden: 0.5")], "losses.hiden: no such key; did you mean 'hidden'?"),
        ([(LOSSES, "{labels: 0, logits: 0}")], "all weights are zero"),
        ([CACHING],
         "distill.cache_logits: hidden states and attention maps need the teacher in every step"),
        ([CACHING, (LOSSES, "{labels: 1.0, logits: 0}")],
         "distill.cache_logits: there is nothing to cache: losses.logits is 0"),
        ([(TEACHER, f"{TEACHER}\n    temperature: 0")],
         "distill.temperature: expected more than 0, got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_found_while_planning(tmp_path, changes, expected) -> None:
    """One message with the key's path, what was expected, and the valid range or name."""
    with pytest.raises(RecipeError) as error:
        planned(tmp_path, *changes)
    assert expected in str(error.value)
    assert "stages.distill" in str(error.value)


def test_the_teacher_is_part_of_the_key(tmp_path: Path) -> None:
    """Another teacher, another key; its name, and what has no weight, change nothing."""

    def key(*changes: tuple[str, str]) -> str | None:
        return planned(tmp_path, *changes).node("distill").key

    assert key() != key(("finetune: {epochs: 1}", "finetune: {epochs: 2}"))
    assert key() == key(
        ("load, finetune", "load, big"),
        ("finetune: {epochs: 1}", "big: {stage: finetune, epochs: 1}"),
        (TEACHER, "teacher: big"),
    )
    labels = (LOSSES, "{labels: 1.0, logits: 0.0}")
    assert key(labels) == key(labels, (TEACHER, f"{TEACHER}\n    temperature: 3.0"))
    assert key() != key((TEACHER, f"{TEACHER}\n    temperature: 3.0"))
    logits = (LOSSES, "{}")
    assert key(logits) != key(logits, CACHING)


def test_a_skipped_teacher_is_the_model_before_it(tmp_path: Path) -> None:
    """`skip: [finetune]`: the teacher is what was loaded, as for every stage that refers to it."""
    nodes = planned(tmp_path, ("stages:\n", "skip: [finetune]\nstages:\n"))
    assert nodes.node("distill").artifacts == {"teacher": "load"}


@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus", "marian"])
def test_layer_drop_moves_no_layer_into_anothers_place(kind) -> None:
    """The loss in training, without dropout, is the one of a model whose config drops no layer."""
    still = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    skips = {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}
    losses = [
        DistillationLoss(
            build_pico(kind, 1, **still, **drop), build_pico(kind, 2), ALL, layers=MAPS
        ).train()(batch(kind))
        for drop in ({}, skips)
    ]  # fmt: skip
    assert torch.equal(*losses)
    student = build_pico(kind, 1, **skips)
    DistillationLoss(student, build_pico(kind, 2), {"labels": 1.0})
    assert student.get_encoder().layerdrop == 0.9  # which labels and logits do not mind
