"""Zeros by group and layer: nothing is lost or counted twice, whatever the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import load_architecture
from compressor.models.loading import build_model
from tests.harness.models import PICO


def measure(model_type: str, folder: Path, *, wi: int | None = None) -> dict[str, Any]:
    """Sizes of a saved pico model; with `wi` rows of the second encoder layer's `wi` set to 0."""
    real, head = AutoConfig.for_model(model_type, **PICO[model_type]), load_architecture(model_type)
    checkpoint = Checkpoint(build_model(real, head.HEADS[0]).eval(), None, head.HEADS[0])
    if wi is not None:
        with torch.no_grad():
            for parameter in checkpoint.model.parameters():
                parameter.fill_(1.0)
            checkpoint.get_parameter("encoder.block.1.layer.1.DenseReluDense.wi.weight")[:wi] = 0
    checkpoint.save(folder)
    return checkpoint.measure_sizes(folder)


@pytest.mark.parametrize("model_type", PICO)
def test_every_weight_is_in_one_place(model_type: str, tmp_path: Path) -> None:
    """The places' counts add up to the model's own, of all weights and of those not zero."""
    sizes = measure(model_type, tmp_path)
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
    groups = measure("t5", tmp_path, wi=12)["groups"]
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
