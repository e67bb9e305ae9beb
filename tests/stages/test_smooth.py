"""`smooth`: the same model in float, and a nearer one in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.compression.smoothing import compute_factors, input_peaks, rescale_channels
from compressor.data.bills import Bills
from compressor.data.messages import Messages
from compressor.data.source_base import SplitRows
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.structure import Channels
from compressor.models.surgery import dequantize_checkpoint
from compressor.stages.base import Inputs, Planning
from compressor.stages.export import Export
from compressor.stages.quantize import Quantize
from compressor.stages.smooth import Smooth
from tests.harness.models import UNTIED, build_case
from tests.harness.stages import preview, run_stage, stage_context, tokenizer

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


def test_an_export_smooths_as_the_stage_does(tmp_path: Path) -> None:
    """The same files, to the byte, as of an export after `smooth`; others without."""
    made, contents = t5("relu", untied=True), {}
    run_stage(Smooth(), made, tmp_path, DATA)
    for name, source, smooth in (
        ("stage", "after", False), ("setting", "before", True), ("neither", "before", False),
    ):  # fmt: skip
        stage = Export(format="ctranslate2", parity=None, smooth=smooth)
        context = stage_context(tmp_path / name, DATA)
        stage.run(Inputs(tmp_path / source), context)
        contents[name] = (tmp_path / name / "model" / "model.bin").read_bytes()
        assert ("smoothed_channels" in context.metrics) == smooth
    assert contents["stage"] == contents["setting"] != contents["neither"]


def test_exports_smooth_where_it_helps_and_keys_say_it() -> None:
    """By default for CTranslate2's int8 of a float T5 and rows; what is not smoothed has the key
    that it had before there was such a setting.
    """

    def resolve(data: Any = DATA, facts: Facts | None = None, **settings: Any) -> Export:
        facts = facts or t5("relu", untied=True).derive_facts()
        planning = Planning(facts, data, lambda *_: None, lambda *_: None)
        return Export(**{"format": "ctranslate2", **settings}).resolve(planning)

    facts = t5("relu", untied=True).derive_facts()
    assert resolve().smooth and resolve(weights="int8_float32").smooth
    assert resolve().parameters() == {**resolve(smooth=False).parameters(), "smooth": True}
    assert "smooth" not in resolve(smooth=False).parameters()
    assert resolve().reads() == {"test": "sources", "train": "pairs"}
    assert resolve(smooth=False).reads() == {"test": "sources"}
    quantized, _ = preview(Quantize(), facts)
    smoothed, _ = preview(Smooth(), facts, DATA)
    bert = build_case("bert", {}, "sequence_classification").derive_facts()
    for settings in (
        {"format": "onnx"}, {"weights": "float32"}, {"facts": quantized}, {"facts": smoothed},
        {"facts": bert},
    ):  # fmt: skip
        assert resolve(**settings).smooth is None, settings
    labels = Messages(source="messages", labels=("refund", "delivery"))
    assert resolve(labels).smooth is False and "no loss" in resolve(labels).choice
    _, problems = preview(Export(format="ctranslate2", weights="float32", smooth=True), facts, DATA)
    assert problems == [("smooth", "is for int8 of a float T5 or mT5; leave it out")]
