"""`smooth`: the same model in float, and a nearer one in int8."""

from __future__ import annotations

import pytest
import torch

from compressor.compression.smoothing import compute_factors, input_peaks, rescale_channels
from compressor.data.bills import Bills
from compressor.data.source_base import SplitRows
from compressor.models.checkpoint import Checkpoint
from compressor.models.structure import Channels
from compressor.models.surgery import dequantize_checkpoint
from compressor.stages.base import Inputs
from compressor.stages.quantize import Quantize
from compressor.stages.smooth import Smooth
from tests.harness.models import UNTIED, build_case
from tests.harness.stages import run_stage, stage_context, tokenizer

DATA = Bills(source="bills", rows=SplitRows(train=8), max_source_length=40, max_target_length=16)


def t5(projection: str, *, untied: bool) -> Checkpoint:
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 40, "num_heads": 2, "vocab_size": 304}
    changes = sizes | {"feed_forward_proj": projection, "num_decoder_layers": 1}
    made = build_case("t5", changes | (UNTIED if untied else {}), "seq2seq_lm")
    made.tokenizer = tokenizer()
    with torch.no_grad():  # outliers: a few channels are written 50 times as large, and read so
        for part in made.derive_facts().list_channels():
            factor = torch.ones(made.get_parameter(part.readers[0]).shape[-1])
            factor[::7] = 50
            for name in part.writers:
                writer = made.get_parameter(name)
                writer *= factor.view(-1, *[1] * (writer.dim() - 1))
            for name in part.readers:
                reader = made.get_parameter(name)
                reader /= factor
    return made


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    batch = checkpoint.tokenize_rows(DATA.load("train"), DATA).batch(list(range(8)), 0)
    with torch.inference_mode():
        return checkpoint.model(**batch).logits


@pytest.mark.parametrize("projection", ["relu", "gated-gelu", "gelu"])
@pytest.mark.parametrize("untied", [False, True])
def test_the_float_model_is_the_same_and_the_int8_one_is_nearer(
    projection, untied, tmp_path
) -> None:
    """Logits within float32's rounding; with integer activations the error is at most half."""
    before = t5(projection, untied=untied)
    wanted = logits(before)
    after, _ = run_stage(Smooth(calibration_rows=8), before, tmp_path, DATA)
    torch.testing.assert_close(logits(after), wanted, rtol=1e-3, atol=1e-3 * float(wanted.std()))
    changed = [n for n, p in after.model.named_parameters()
               if not torch.equal(p, before.model.get_parameter(n))]  # fmt: skip
    assert ("lm_head.weight" in changed) == untied
    errors = []
    for name in ("before", "after"):
        int8 = Quantize().run(Inputs(tmp_path / name), stage_context(tmp_path / "q"))
        errors.append(float((logits(int8) - wanted).square().mean().sqrt()))
        assert int8.quantization is not None and int8.quantization.activations == "int8"
        assert dequantize_checkpoint(int8) is not int8
    assert errors[1] < errors[0] / 2, errors


def test_factors_are_the_papers() -> None:
    """sqrt(16) / sqrt(4) = 2; a channel that nothing uses keeps 1, one that was hardly used says
    little; alpha 1 moves all of it. Peaks are of all batches, and of either sign.
    """
    inputs, weights = torch.tensor([16.0, 0.0, 9.0]), torch.tensor([4.0, 2.0, 0.0])
    assert compute_factors(inputs, weights, 0.5).tolist() == [2.0, 1.0, 1.0]
    assert compute_factors(inputs, weights, 1.0).tolist() == [16.0, 1.0, 1.0]
    factors = compute_factors(torch.tensor([1e9, 1e-9, 5.0]), torch.ones(3), 1.0)
    assert factors.tolist() == pytest.approx([1e3, 1e-3, 5.0])
    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 1)})
    with input_peaks(model, ["layer.weight"]) as peaks:
        for tokens in ([[1.0, -5.0], [0.5, 1.0]], [[3.0, 2.0]]):
            model["layer"](torch.tensor([tokens]))
    assert peaks["layer.weight"].tolist() == [3.0, 5.0]


def test_a_channels_factor_is_of_the_largest_weight_that_reads_it() -> None:
    """By hand: √4 / √9, where one reader has 1 at most and the other 9."""
    model = torch.nn.ModuleDict(
        {name: torch.nn.Linear(1, 1, bias=False) for name in ("writes", "one", "other")}
    )
    for name, value in (("writes", 6.0), ("one", 1.0), ("other", -9.0)):
        model[name].weight.data.fill_(value)
    channels = Channels(("writes.weight",), ("one.weight", "other.weight"))
    (factor,) = rescale_channels(model, [channels], {"one.weight": torch.tensor([4.0])}, 0.5)
    assert factor.tolist() == pytest.approx([2 / 3])
    values = [float(model[name].weight.detach()) for name in ("writes", "one", "other")]
    assert values == pytest.approx([9.0, 2 / 3, -6.0])
