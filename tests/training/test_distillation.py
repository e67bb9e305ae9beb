"""A student's loss, whatever way its batches are cut; and a teacher's logits kept in a file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.progress import Progress
from compressor.data.batching import collate_rows
from compressor.data.examples import Examples
from compressor.models.facts import matched_layers
from compressor.training.distillation import DistillationLoss, attention_difference
from compressor.training.hyperparameters import Hyperparameters
from compressor.training.loop import accelerator_for
from compressor.training.teacher_cache import (
    DONE,
    LOGITS,
    ExamplesWithLogits,
    File,
    with_teacher_logits,
)
from tests.harness.models import PICO, SPECIAL

SOURCES = [[5, 6, 7, 1], [10, 1], [12, 13, 1]]
SUMMARIES = [[8, 9, 1], [11, 1], [14, 15, 16, 17, 1]]
TARGETS = {
    "pairs": SUMMARIES, "joined": SUMMARIES, "labels": [[1, 0, 1], [0, 0, 0], [0, 1, 1]],
    "class": [[2], [0], [1]],
}  # fmt: skip
LABELS = 10
PROBLEM = {"labels": "multi_label_classification", "class": "single_label_classification"}
AUTO = {"pairs": AutoModelForSeq2SeqLM, "joined": AutoModelForCausalLM}
ALL = {"labels": 0.5, "logits": 1.0, "hidden": 2.0, "features": 1.5, "attention": 3.0}
MAPS = {"encoder": {0: 1, 1: 0}, "decoder": {0: 1}}
NARROW: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 12, "num_heads": 2},
    "bart": {"d_model": 8, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    "mbart": {"d_model": 8, "encoder_attention_heads": 4, "decoder_attention_heads": 2},
    "gpt2": {"n_embd": 12, "n_head": 3},
    "qwen2": {"num_attention_heads": 2, "hidden_size": 8},
    "bert": {"hidden_size": 8, "num_attention_heads": 4},
    "distilbert": {"dim": 8, "n_heads": 4},
}
WRITERS = [(k, "pairs") for k in ("t5", "bart", "mbart")] + [
    (k, "joined") for k in ("gpt2", "qwen2")
]
CLASSIFIERS = [(kind, layout) for kind in ("bert", "distilbert", "gpt2") for layout in PROBLEM]


def build_pico(kind: str, seed: int, layout: str = "pairs", **changes: Any) -> Any:
    """A pico model with other weights for every seed, and logits that are not all alike."""
    torch.manual_seed(seed)
    special: dict[str, Any] = SPECIAL | ({"decoder_start_token_id": 0} if layout == "pairs" else {})
    if layout in PROBLEM:
        special |= {"num_labels": 3, "problem_type": PROBLEM[layout]}
    config = AutoConfig.for_model(kind, **PICO[kind] | special | changes)
    model = AUTO.get(layout, AutoModelForSequenceClassification).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def batch(layout: Any = "pairs", rows: Iterable[int] = range(3)) -> dict[str, Tensor]:
    return collate_rows([(SOURCES[i], TARGETS[layout][i]) for i in rows], pad_id=0, layout=layout)


def both(
    kind: str, weights: dict[str, float], layout: str = "pairs", temperature: float = 2.0
) -> DistillationLoss:
    """A student of another width and with another number of heads than its teacher."""
    student, teacher = build_pico(kind, 1, layout, **NARROW[kind]), build_pico(kind, 2, layout)
    only = "decoder" if kind in ("gpt2", "qwen2") else "encoder"
    layers = MAPS if layout == "pairs" else {only: MAPS[only]}
    return DistillationLoss(student, teacher, weights, temperature=temperature, layers=layers)


def choices(logits: Tensor, layout: str, places: range, temperature: float = 1.0) -> Tensor:
    """Of each label of a row, the probabilities of all that it could be."""
    logits = logits.double() / temperature
    if layout == "labels":
        return torch.stack([torch.sigmoid(-logits), torch.sigmoid(logits)], -1)
    return (logits[None] if layout == "class" else logits[places]).softmax(-1)


def by_hand(loss: DistillationLoss, layout: str) -> dict[str, float]:
    """Every part from the models' own outputs, row by row without padding, pair by pair."""
    sums = dict.fromkeys(ALL, 0.0)
    student, teacher = loss.student.model, loss.teacher.model
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS[layout], strict=True)):
        one, count = batch(layout, [row]), len(target)
        if layout in PROBLEM:
            del one["labels"]
        flags = {"output_hidden_states": True, "output_attentions": True}
        with torch.no_grad():
            s, t = student(**one, **flags), teacher(**one, **flags)
        shift = len(source) - 1 if layout == "joined" else 0
        labelled = range(shift, shift + count)
        given = choices(s.logits[0], layout, labelled)
        sums["labels"] -= sum(given[i, label].log().item() for i, label in enumerate(target))
        p, q = (choices(x.logits[0], layout, labelled, loss.temperature) for x in (t, s))
        sums["logits"] += loss.temperature**2 * (p * (p / q).log()).sum().item()
        hidden, features, attention = [], [], []
        for stack, pairs in loss.layers.items():
            name = f"{stack}_" if layout == "pairs" else ""
            counts = stack == "decoder" and layout not in PROBLEM
            places = labelled if counts else range(len(source))
            keys = [f"{name}attentions"]
            keys += ["cross_attentions"] if name == "decoder_" else []
            for mine, theirs in pairs.items():
                a = loss.projections[stack](s[f"{name}hidden_states"][mine + 1]).detach()[0]
                b = t[f"{name}hidden_states"][theirs + 1][0]
                squares = ((a - b) ** 2)[places]
                hidden.append(count * squares.mean().item())
                shares = squares.sum(-1) / (b**2)[places].sum(-1)
                features.append(count * shares.mean().item())
                for key in keys:
                    a, b = s[key][mine][0].mean(0), t[key][theirs][0].mean(0)
                    attention.append(count * ((a - b) ** 2)[places].mean().item())
        sums["hidden"] += sum(hidden) / len(hidden)
        sums["features"] += sum(features) / len(features)
        sums["attention"] += sum(attention) / len(attention)
    return sums


@pytest.mark.parametrize(("kind", "layout"), WRITERS + CLASSIFIERS)
def test_every_part_is_what_a_loop_over_unpadded_rows_gives(kind: str, layout: str) -> None:
    """Values, with padding, other widths and other numbers of heads; the whole is their sum."""
    loss = both(kind, ALL, layout)
    expected = by_hand(loss, layout)
    parts = {name: part.item() for name, part in loss.compute_parts(batch(layout)).items()}
    assert parts == pytest.approx(expected, rel=1e-4)
    whole = sum(ALL[name] * value for name, value in expected.items())
    assert loss(batch(layout)).item() == pytest.approx(whole, rel=1e-4)
    # Without hidden states and attention maps: a classifier's once ended in an AttributeError.
    few = both(kind, {"labels": 1.0, "logits": 1.0}, layout).compute_parts(batch(layout))
    assert all(part.item() == pytest.approx(expected[name], rel=1e-4) for name, part in few.items())


@pytest.mark.parametrize(("kind", "layout"), WRITERS + CLASSIFIERS)
def test_a_sum_and_its_gradients_do_not_depend_on_how_the_batch_was_cut(kind, layout) -> None:
    """Rows alone, and an empty share, add up to the batch: of each parameter, projections too."""
    loss = both(kind, ALL, layout)
    trained = {n: p for n, p in loss.named_parameters() if p.requires_grad}
    assert {n for n in trained if n.startswith("projections")}
    whole = loss(batch(layout))
    whole.backward()
    expected = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
    loss.zero_grad()
    parts = [loss(batch(layout, rows)) for rows in ([0], [], [1, 2])]
    assert parts[1].item() == 0
    for part in parts:
        part.backward()
    assert sum(p.item() for p in parts) == pytest.approx(whole.item(), rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(trained[name].grad, gradient, rtol=1e-3, atol=1e-4, msg=name)


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
    assert loss(batch()).item() == pytest.approx(LABELS * 4 * kl, rel=1e-5)


def test_the_difference_of_known_attention_maps() -> None:
    """Two heads against one, three keys of which the last is padding, by hand."""
    student = torch.tensor([[[[0.5, 0.5, 9.0]], [[0.1, 0.9, 9.0]]]])  # [1, 2, 1, 3]
    teacher = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    keys = torch.tensor([[1.0, 1.0, 0.0]])
    expected = ((0.3 - 1.0) ** 2 + (0.7 - 0.0) ** 2) / 2
    assert attention_difference(student, teacher, keys).item() == pytest.approx(expected)
    same = attention_difference(student, teacher.expand(1, 2, 1, 3), keys)
    assert same.item() == pytest.approx((0.25 + 0.25 + 0.81 + 0.81) / 4)


def test_a_teacher_gets_no_gradient_and_never_drops() -> None:
    """Its weights are frozen, in training mode it gives what it gives in evaluation."""
    student, teacher = build_pico("t5", 1), build_pico("t5", 2, dropout_rate=0.5)
    loss = DistillationLoss(student, teacher, {"logits": 1.0, "hidden": 1.0}, layers=MAPS)
    expected = loss(batch()).item()
    loss.train()
    student.eval()
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    summed = loss(batch())
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
        summed = loss(batch())
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
        loss(batch()).backward()
        gradients.append([p.grad.clone() for p in loss.parameters() if p.requires_grad])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["bart", "mbart", "pegasus", "marian"])
def test_layer_drop_moves_no_layer_into_anothers_place(kind) -> None:
    """The loss in training, without dropout, is the one of a model whose config drops no layer."""
    still = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    skips = {"encoder_layerdrop": 0.9, "decoder_layerdrop": 0.9}
    losses = [
        DistillationLoss(
            build_pico(kind, 1, **still, **drop), build_pico(kind, 2), ALL, layers=MAPS
        ).train()(batch())
        for drop in ({}, skips)
    ]  # fmt: skip
    assert torch.equal(*losses)
    student = build_pico(kind, 1, **skips)
    DistillationLoss(student, build_pico(kind, 2), {"labels": 1.0})
    assert student.get_encoder().layerdrop == 0.9  # which labels and logits do not mind


def taught(teacher: Any, folder: Path, layout: Any = "pairs") -> ExamplesWithLogits:
    """The rows with the teacher's logits, as a stage makes them."""
    return with_teacher_logits(
        Examples(SOURCES, TARGETS[layout], layout), teacher, 0, folder, flush_seconds=0,
        progress=Progress(Console(quiet=True)),
        accelerator=accelerator_for(Hyperparameters(precision="float32"), None),
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "layout"), WRITERS)
def test_cached_logits_give_the_teachers_loss_and_gradients(kind, layout, tmp_path: Path) -> None:
    """In any order, cut anyhow, with padding and an empty share, and no teacher beside."""
    weights = {"labels": 0.5, "logits": 1.0}
    plain = both(kind, weights, layout)
    plain.zero_grad()
    expected = plain(batch(layout))
    expected.backward()
    gradients = [p.grad.clone() for p in plain.student.parameters()]

    examples = taught(plain.teacher.model, tmp_path, layout)
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
    logits = taught(teacher, tmp_path).logits
    assert (logits.shape, logits.dtype) == ((LABELS, 50), dtype)
    assert (tmp_path / LOGITS).stat().st_size == LABELS * 50 * dtype.itemsize
    with torch.no_grad():
        alone = [teacher(**batch(rows=[row])).logits[0] for row in range(3)]
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=tolerance)


def test_cached_logits_that_are_on_the_disk_are_not_computed_again(tmp_path: Path) -> None:
    """After a kill only what is missing is, a batch that is half there as a whole."""
    first = taught(build_pico("t5", 2), tmp_path).logits.clone()
    assert torch.equal(taught(build_pico("t5", 3), tmp_path).logits, first)
    assert (tmp_path / DONE).read_bytes() == b"\1\1\1"
    (tmp_path / DONE).write_bytes(b"\1\0\1")
    second = taught(build_pico("t5", 3), tmp_path).logits
    assert not torch.isclose(second, first).all(1).any()
    fresh = taught(build_pico("t5", 3), tmp_path / "fresh").logits
    assert torch.equal(second, fresh)
    # A file that is not what these rows need is made anew.
    (tmp_path / LOGITS).write_bytes(b"short")
    assert torch.equal(taught(build_pico("t5", 3), tmp_path).logits, fresh)


def test_a_disk_without_room_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    """Four million gigabytes."""
    with pytest.raises(StageError, match=r"take 4000000\.0 GB .* GB free; set cache_logits: false"):
        File(tmp_path, (10**9, 10**6), torch.float32).require_room()
    assert not list(tmp_path.iterdir())


def test_layers_are_matched_evenly_and_last_to_last() -> None:
    """2 of 4 learn from 1 and 3; more layers than the teacher's share some."""
    assert matched_layers(2, 4) == {0: 1, 1: 3}
    assert matched_layers(3, 3) == {0: 0, 1: 1, 2: 2}
    assert matched_layers(3, 12) == {0: 3, 1: 7, 2: 11}
    assert matched_layers(4, 2) == {0: 0, 1: 0, 2: 1, 3: 1}
