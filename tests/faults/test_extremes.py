"""Amounts at their ends, ties, groups of one weight or of none, constant models and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.checkpoint import Checkpoint
from compressor.errors import StageError
from compressor.metrics.bootstrap import bootstrap_interval, paired_difference
from compressor.metrics.labels import best_thresholds, summarize
from compressor.metrics.rouge import retention
from compressor.parity import Outputs, _compare, _passed_limits
from compressor.sparsity.allocate import Curve, allocate
from tests.faults.conftest import Tell
from tests.faults.stages import (
    pico_classifier,
    pico_t5,
    ran,
    rows_of_labels,
    rows_of_text,
)

WI = "encoder.block.0.layer.1.DenseReluDense.wi.weight"
ALL = {
    "encoder": {"self_attention": 1.0, "feed_forward": 1.0},
    "decoder": {"self_attention": 1.0, "cross_attention": 1.0, "feed_forward": 1.0},
    "lm_head": 1.0,
}


def constant(value: float) -> Checkpoint:
    checkpoint = pico_t5()
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.fill_(value)
    return checkpoint


@pytest.mark.parametrize("value", [0.0, 1e-45, -0.5, 3e38])
@pytest.mark.parametrize("amount", [0.25, 0.0, 1.0, 1e-9])
def test_of_equal_weights_exactly_so_many_go_the_earliest_first(
    tmp_path: Path, tell: Tell, value: float, amount: float
) -> None:
    """All 2,048 of a group are at the threshold, zeros and the smallest number among them."""
    data = rows_of_text(tmp_path)
    settings: dict[str, Any] = {"amounts": {"encoder": {"feed_forward": amount}}}
    found = ran("prune", constant(value), data, tmp_path, **settings)
    count = round(amount * 2048)
    assert found["groups"]["encoder.feed_forward"]["pruned"] == count
    masks = load_file(tmp_path / "prune" / "masks.safetensors")
    gone = torch.cat([~mask.flatten() for mask in (masks[WI], masks[WI.replace("wi", "wo")])])
    later = torch.cat([~mask.flatten() for name, mask in masks.items() if "block.1" in name])
    assert gone.tolist() == [i < count for i in range(1024)]
    assert int(later.sum()) == max(0, count - 1024)
    tell(
        "numbers", "all weights equal, amounts 0 to 1", "exactly round(amount x n), earliest first"
    )


@pytest.mark.parametrize("importance", ["magnitude", "random", "taylor", "wanda", "sparsegpt"])
def test_everything_is_pruned_and_pruned_again(tmp_path: Path, tell: Tell, importance: str) -> None:
    """Amount 1 of every group, then of nothing, which is left; by each importance."""
    data = rows_of_text(tmp_path)
    settings: dict[str, Any] = {"amounts": ALL, "importance": importance, "calibration_rows": 2}
    first = ran("prune", pico_t5(), data, tmp_path / "1", **settings)["groups"]
    assert all(group["left"] == 0 for group in first.values())
    again = ran("prune", tmp_path / "1" / "prune", data, tmp_path / "2", **settings)["groups"]
    assert all(group["pruned"] == 0 and group["amount"] == 0.0 for group in again.values())
    tell("numbers", "amount 1 of everything, twice", "all zero; the second takes nothing")


def test_a_model_of_zeros_goes_through_what_reads_it(tmp_path: Path, tell: Tell) -> None:
    """Pattern, slicing, smoothing, each kind of quantization, sensitivity, a decode."""
    data = rows_of_text(tmp_path)
    ran("prune", pico_t5(), data, tmp_path, amounts=ALL)
    stages: list[tuple[str, dict[str, Any]]] = [
        ("prune", {"pattern": "2:4", "importance": "sparsegpt"}),
        ("slice", {"feed_forward": 0.5, "heads": 1, "layers": 1}),
        ("smooth", {}),
        ("quantize", {"weights": "int8"}),
        ("quantize", {"weights": "int4", "group_size": 8}),
        ("quantize", {"weights": "float16"}),
        ("sensitivity", {"amounts": [1.0]}),
        ("evaluate", {"max_length": 6}),
    ]
    for number, (kind, settings) in enumerate(stages):
        found = ran(kind, tmp_path / "prune", data, tmp_path / str(number), **settings)
        if kind == "evaluate":  # one token, to the limit
            assert found["rouge1"] == 0.0 and found["cut_off"] == 1.0
            assert found["intervals"]["rouge1"] == [0.0, 0.0]
        tell("numbers", "a model that is all zero, every stage that reads one", "done")


def test_a_target_is_met_beside_a_group_of_which_nothing_is_left(
    tmp_path: Path, tell: Tell
) -> None:
    """Its share of nothing used to be a division by 0, after the sensitivity was measured."""
    data = rows_of_text(tmp_path)
    ran("prune", pico_t5(), data, tmp_path, amounts={"encoder": {"feed_forward": 1.0}})
    ran("sensitivity", tmp_path / "prune", data, tmp_path, amounts=[0.5, 1.0])
    curves = {"sensitivity": tmp_path / "sensitivity"}
    found = ran(
        "prune", tmp_path / "prune", data, tmp_path / "more", curves,
        target={"nonzero_ratio": 0.5},
    )  # fmt: skip
    assert found["amounts"]["encoder"]["feed_forward"] == 0.0
    weights = load_file(tmp_path / "more" / "prune" / "model.safetensors")
    size = sum(weight.numel() for weight in weights.values())
    masks = load_file(tmp_path / "more" / "prune" / "masks.safetensors")
    assert size - sum(int((~m).sum()) for m in masks.values()) == round(0.5 * size)
    flat = {"all gone": Curve(0, [0.5], [1.0]), "left": Curve(10, [1.0], [2.0])}
    assert allocate(flat, 1.0, 5) == {"all gone": 0, "left": 5}
    assert allocate(flat, 1.0, 0) == {"all gone": 0, "left": 0}
    with pytest.raises(ValueError, match="11 entries must go, and 10 can"):
        allocate(flat, 1.0, 11)
    tell("numbers", "a target, and a group with nothing left", "met by the other groups")


def test_a_group_of_one_weight(tmp_path: Path) -> None:
    """A vector of 16 in a group of the recipe's own, and half of one weight: round(0.5) is 0."""
    from compressor.sparsity.select import prune_smallest

    for amount, gone in ((0.5, 0), (0.51, 1), (1.0, 1)):
        masks: dict[str, torch.Tensor] = {}
        prune_smallest({"w": torch.tensor([[-3.0]])}, masks, round(amount * 1))
        assert int((~masks["w"]).sum()) == gone
    groups = {"norm": ["encoder.final_layer_norm.weight"]}
    data = rows_of_text(tmp_path)
    found = ran("prune", pico_t5(), data, tmp_path, groups=groups, amounts={"norm": 1 / 16})
    assert found["groups"]["norm"] == {"amount": 0.0625, "weights": 16, "left": 15, "pruned": 1}


def test_an_outlier_takes_its_rows_scale_and_no_others() -> None:
    """int8 has one scale a row: beside 1e5 all of 0.5 is 0, in the next row to half a scale."""
    from compressor.sparsity.int4 import dequantize_groups, quantize_groups
    from compressor.sparsity.int8 import dequantize_rows, quantize_rows

    weight = torch.full((2, 16), 0.5)
    weight[0, 3] = 1e5
    back = dequantize_rows(*quantize_rows(weight))
    assert back[0].tolist() == pytest.approx([1e5 if i == 3 else 0.0 for i in range(16)])
    assert torch.allclose(back[1], weight[1], atol=0.5 / 254)
    back = dequantize_groups(*quantize_groups(weight, 8))
    assert back[0, 8:].tolist() == [0.5] * 8 and back[0, 0] == 0


@pytest.mark.parametrize("value", [0.0, 0.5, 6e4])
def test_constant_weights_are_quantized_as_they_are(value: float) -> None:
    """A scale that is the value's own 127th, or for 0 is 1, gives each entry back."""
    from compressor.sparsity.quantized import dequantize, quantize

    weight = torch.full((4, 16), value)
    for kind in ("int8", "int4"):
        back = dequantize(*quantize(weight, kind, 8))  # type: ignore[arg-type]  # a kind
        assert torch.allclose(back, weight, rtol=4e-3)


def test_scores_of_a_constant_classifier(tmp_path: Path, tell: Tell) -> None:
    """By hand: two of four rows have the label, all get it, and no ranking tells them apart."""
    checkpoint = pico_classifier()
    with torch.no_grad():
        checkpoint.parameter("classifier.weight").zero_()
        checkpoint.parameter("classifier.bias").copy_(torch.tensor([1.0, -1.0]))
    data = rows_of_labels(tmp_path, ["a", "b", "c", "d"], [(1, 1), (1, 1), (0, 1), (0, 0)])
    found = ran("evaluate", checkpoint, data, tmp_path)
    assert found["labels"]["good"]["f1"] == pytest.approx(2 / 3)
    assert found["labels"]["bad"]["f1"] == 0.0
    assert found["roc_auc"] == 0.5 and found["average_precision"] == pytest.approx((0.5 + 0.75) / 2)
    truth = np.array([[1], [1]])
    one = summarize(truth, truth, np.array([[0.3], [0.3]]))
    assert one["roc_auc"] is None and one["micro_f1"] == 1.0
    assert best_thresholds(np.full((4, 1), 0.3), [[0], [1], [0], [1]]) == [0.15]
    tell(
        "numbers",
        "a model with a constant output",
        "0.5 where nothing is ranked; none of one class",
    )


def test_intervals_and_tests_of_constant_scores() -> None:
    """No spread is an interval of one point; equal models differ with p = 1; 0 keeps nothing."""
    assert bootstrap_interval([0.25]) == (0.25, 0.25)
    assert bootstrap_interval([0.0] * 9) == (0.0, 0.0)
    rows = np.full((5, 1), 0.5)
    same = paired_difference(rows, rows, lambda means: means[:, 0])
    assert (same.low, same.high, same.p, same.difference) == (0.0, 0.0, 1.0, 0.0)
    apart = paired_difference(rows, rows + 0.25, lambda means: means[:, 0])
    assert (apart.low, apart.high) == (0.25, 0.25) and apart.p == pytest.approx(2 / 2001)
    assert retention(0.5, 0.0) is None


def test_an_export_of_a_head_that_is_zero_is_its_source(tmp_path: Path) -> None:
    """Logits that are 0 on both sides used to differ "by nan of the largest"."""
    from compressor.data.rows import Rows

    data = rows_of_labels(tmp_path)
    zeros, other = (Outputs(None, [], np.full((2, 2), value)) for value in (0.0, 0.5))
    found = _compare(zeros, zeros, Rows(["a", "b"]), data)
    assert found == {"logits_difference": 0.0, "equal_labels": 1.0}
    limits = {"tokens": 1.0, "rouge": 0.0, "logits": 1e-3, "labels": 1.0}
    assert _passed_limits(found, limits) == []
    with np.errstate(divide="ignore"):
        assert _passed_limits(_compare(zeros, other, Rows(["a", "b"]), data), limits)


def test_slices_of_less_than_one_keep_one_and_none_is_refused(tmp_path: Path) -> None:
    """A share in (0, 1] keeps at least one unit; 0 is no width."""
    data = rows_of_text(tmp_path)
    found = ran("slice", pico_t5(), data, tmp_path, feed_forward=1e-9, heads=1e-9, layers=1e-9)
    assert len(found["kept"]["encoder layers"]) == 1
    assert found["kept"]["encoder.block.0.layer.1.DenseReluDense"] == 1
    whole = ran("slice", pico_t5(), data, tmp_path / "whole", feed_forward=1.0, heads=1.0)
    assert whole["kept"]["encoder.block.0.layer.1.DenseReluDense"] == 32
    with pytest.raises(ValueError, match=r"a share in \(0, 1\]"):
        ran("slice", pico_t5(), data, tmp_path / "none", feed_forward=0.0)
    with pytest.raises(StageError, match=r"the square of .* is infinite"):
        ran("slice", constant(3e38), data, tmp_path / "large", feed_forward=0.5)
