"""LongT5 in chunks: transformers' numbers, and memory that does not grow with the square."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSeq2SeqLM, LongT5Config, T5Config

from compressor.models import longt5
from compressor.models.quantized_layers import quantize_weights
from compressor.models.recompute import ChunkedLayer, chunked_with_recompute
from compressor.training.dropout import FasterDropout
from compressor.training.losses import LabelLoss
from tests.harness.models import T5, generate_rows

KINDS = ("local", "transient-global")
# The same length in all rows, whole blocks of 8 or not; padding; a row shorter than a global block.
ROWS = ([96], [100, 70, 33], [50, 3])


def pico(kind: str, **changes: Any) -> Any:
    """2 + 2 layers, blocks of 8 tokens, global blocks of 4."""
    torch.manual_seed(0)
    config = LongT5Config(
        **T5, encoder_attention_type=kind, local_radius=7, global_block_size=4,
        relative_attention_max_distance=20, decoder_start_token_id=0,
        **{"dropout_rate": 0.0, "initializer_factor": 0.5, **changes},
    )  # fmt: skip
    return AutoModelForSeq2SeqLM.from_config(config)


def batch_of(lengths: list[int], targets: int = 9) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 50, mask.shape, generator=draw) * mask
    labels = torch.randint(3, 50, (len(lengths), targets), generator=draw)
    labels[0, 6:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.fixture(params=[1, 3000, 20_000], ids=["a_block", "some_blocks", "many_blocks"])
def cut(request, monkeypatch) -> None:
    """Everything is long, and computed so many scores at a time."""
    monkeypatch.setattr(longt5, "LONG", 0)
    monkeypatch.setattr(longt5, "SCORES", {"cpu": request.param})


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", ROWS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("cut")
def test_loss_and_gradients_are_transformers_own(kind: str, lengths: list[int]) -> None:
    """To rounding, for every parameter, with padding, and checkpointed or not."""
    model, batch = pico(kind).train(), batch_of(lengths)
    tokens = int((batch["labels"] != -100).sum())
    theirs = model(**batch).loss * tokens
    expected = gradients(model, theirs)
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        ours = LabelLoss(model)(batch)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        computed = gradients(model, ours)
        assert computed.keys() == expected.keys()
        for name, gradient in expected.items():
            scale = gradient.abs().max().item()
            torch.testing.assert_close(
                computed[name], gradient, rtol=0, atol=1e-5 * scale, msg=name
            )


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("cut")
def test_encoder_states_are_transformers_own_at_padding_too(kind: str, int8: bool) -> None:
    """Every position of every row: what a decoder does not look at, too. Layers are called as
    modules, whatever they are.
    """
    model, batch = pico(kind).eval(), batch_of([100, 70, 33])
    if int8:
        names = [n for n, p in model.encoder.named_parameters() if p.ndim == 2]
        kept = (n for n in names if "bias" not in n and "embed" not in n)
        assert quantize_weights(model.encoder, dict.fromkeys(kept, "int8"))
    del batch["labels"]
    with torch.inference_mode():
        expected = model.encoder(**batch)[0]
        states = longt5.encode_in_chunks(model.encoder, **batch)
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("cut")
def test_long_texts_are_decoded_as_by_generate(kind: str) -> None:
    """Token for token, three rows in one batch."""
    model, batch = pico(kind, initializer_factor=2.0).eval(), batch_of([100, 70, 33])
    limits = {"max_length": 12, "do_sample": False, "num_beams": 1}
    expected = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **limits)
    rows = [row[: int(mask.sum())].tolist() for row, mask in zip(
        batch["input_ids"], batch["attention_mask"], strict=True)]  # fmt: skip
    tokens = generate_rows(model, rows, max_length=12).tokens
    for mine, theirs in zip(tokens, expected[:, 1:].tolist(), strict=True):
        assert mine == theirs[: len(mine)]
        assert len(mine) == 11 or mine[-1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_short_inputs_and_other_models_take_transformers_way(kind: str, monkeypatch) -> None:
    """No run is computed for them; with gradient checkpointing a short LongT5 takes runs."""
    monkeypatch.setattr(longt5, "chunked_with_recompute", lambda *_: pytest.fail("took chunks"))
    batch = batch_of([50, 3])
    LabelLoss(pico(kind).train())(batch)
    t5 = AutoModelForSeq2SeqLM.from_config(T5Config(**T5, decoder_start_token_id=0))
    t5.gradient_checkpointing_enable()
    LabelLoss(t5.train())(batch)
    checkpointed = pico(kind).train()
    checkpointed.gradient_checkpointing_enable()
    with pytest.raises(pytest.fail.Exception, match="took chunks"):
        LabelLoss(checkpointed)(batch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("cut")
def test_bfloat16_autocast_stays_within_its_precision(kind: str) -> None:
    """The backward pass computes in the precision that the forward pass had."""
    model, batch = pico(kind).train(), batch_of([100, 70])
    expected = gradients(model, model(**batch).loss * 15)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LabelLoss(model)(batch)
    computed = gradients(model, loss)
    norm = sum(float(g.norm()) ** 2 for g in expected.values()) ** 0.5
    apart = sum(float((computed[n] - g).norm()) ** 2 for n, g in expected.items()) ** 0.5
    assert 1e-4 * norm < apart < 3e-2 * norm  # else it was not bfloat16, or not the same gradient


class Drops(ChunkedLayer):
    """Dropout, a parameter, something prepared and something shared."""

    def prepare_shared(self, whole: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.dropout(self.layer(whole), 0.5).tanh(),)

    def chunk_size(self, rows: Tensor) -> int:
        return 3

    def cut_prepared(self, prepared: tuple[Tensor, ...], chunk: slice) -> tuple[Tensor, ...]:
        return (prepared[0][:, max(0, chunk.start - 1) : chunk.stop + 1],)

    def compute_chunk(
        self, rows: Tensor, parts: tuple[Tensor, ...], shared: tuple[Tensor, ...], chunk: slice
    ) -> Tensor:
        mixed = self.layer(nn.functional.dropout(rows, 0.3)) * shared[0]
        return mixed + parts[0].mean(1, keepdim=True)


@pytest.mark.parametrize("context", [nullcontext, FasterDropout])
def test_runs_have_autograds_gradients_with_the_same_dropout(context: Any) -> None:
    """Computed again with the numbers of the first time; the generator goes on as if it were not
    so. Under the package's own dropout as under torch's.
    """
    torch.manual_seed(0)
    work = Drops(nn.Linear(4, 4))
    whole, rows = torch.randn(2, 10, 4, requires_grad=True), torch.randn(2, 10, 4)
    rows.requires_grad_()
    shared = torch.randn(4, requires_grad=True)
    wanted = (whole, rows, shared, *work.layer.parameters())
    weights = torch.randn(2, 10, 4)

    def plain() -> Tensor:
        prepared = work.prepare_shared(whole)
        done = [work.compute_chunk(rows[:, c], work.cut_prepared(prepared, c), (shared,), c)
                for c in work.split_rows(rows)]  # fmt: skip
        return torch.cat(done, 1)

    with context():
        torch.manual_seed(5)
        expected = torch.autograd.grad((plain() * weights).sum(), wanted)
        after = torch.rand(1)
        torch.manual_seed(5)
        result = chunked_with_recompute(work, whole, rows, (shared,))
        computed = torch.autograd.grad((result * weights).sum(), wanted)
        assert torch.equal(torch.rand(1), after)
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one, other)


def kept_bytes(kind: str, tokens: int) -> tuple[int, int]:
    """(bytes that the graph of a loss keeps, those of one [1, L, D] tensor of hidden states)."""
    model, kept = pico(kind).train(), dict[int, int]()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = LabelLoss(model)(batch_of([tokens]))
    assert loss.requires_grad
    return sum(kept.values()), tokens * model.config.d_model * 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_for_the_backward_pass_grows_with_the_length_alone(kind: str) -> None:
    """Twice the tokens, at most twice the bytes; transformers' own way keeps 8 times as many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longt5, "LONG", 2**60)
        theirs, _ = kept_bytes(kind, 2048)
        patch.setattr(longt5, "LONG", 0)
        patch.setattr(longt5, "SCORES", {"cpu": 2**14})
        half, _ = kept_bytes(kind, 1024)
        whole, hidden = kept_bytes(kind, 2048)
    assert whole <= 2 * half
    assert whole < 12 * hidden  # inputs of 2 + 2 layers, of the last norm, the embedding's ids
    assert theirs > 8 * whole
