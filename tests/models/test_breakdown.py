"""Zeros by group and layer: nothing is lost or counted twice, whatever the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.models.facts import load_architecture
from tests.harness.models import PICO, build_case


@pytest.mark.parametrize("model_type", PICO)
def test_every_weight_is_in_one_place(model_type: str, tmp_path: Path) -> None:
    """The places' counts add up to the model's own, of all weights and of those not zero."""
    checkpoint = build_case(model_type, {}, load_architecture(model_type).HEADS[0])
    checkpoint.save(tmp_path)
    sizes = checkpoint.measure_sizes(tmp_path)
    groups = sizes["groups"]
    for name, total in (("weights", "parameters"), ("nonzero", "nonzero")):
        assert sum(sum(group[name]) for group in groups.values()) == sizes[total]
    assert any(group["layers"][0] is not None for group in groups.values())
    for group in groups.values():
        assert group["layers"] == [None] or group["layers"] == sorted(group["layers"])
    # What belongs to no layer says None; norms and biases are `other`.
    table = "lm_head" if "lm_head" in groups else "embedding"
    assert groups[table]["layers"] == groups["other"]["layers"] == [None]
    assert groups[table]["weights"][0] >= 50 * 8


def test_zeros_are_found_where_they_are(tmp_path: Path) -> None:
    """T5 of 16 × 24: a half of the second encoder layer's `wi` set to zero by hand."""
    checkpoint = build_case("t5", {}, "seq2seq_lm")
    with torch.no_grad():
        for parameter in checkpoint.model.parameters():
            parameter.fill_(1.0)
        checkpoint.get_parameter("encoder.block.1.layer.1.DenseReluDense.wi.weight")[:12] = 0
    checkpoint.save(tmp_path)
    groups = checkpoint.measure_sizes(tmp_path)["groups"]
    size = 2 * 16 * 24  # wi and wo
    assert groups["encoder.feed_forward"] == {
        "layers": [0, 1],
        "weights": [size, size],
        "nonzero": [size, size - 12 * 16],
    }
    for name in groups.keys() - {"encoder.feed_forward"}:
        assert groups[name]["nonzero"] == groups[name]["weights"]
    # The tied head and embedding, 50 × 16, are one tensor, and in the group that pruning knows.
    assert groups["lm_head"] == {"layers": [None], "weights": [800], "nonzero": [800]}
    assert "embedding" not in groups
