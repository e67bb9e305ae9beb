"""Zeros by group and layer: nothing is lost or counted twice, whatever the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from tests.harness.models import BART, BERT, PICO, T5


def _checkpoint(model_type: str, config: dict[str, Any], head: str) -> Checkpoint:
    real = AutoConfig.for_model(model_type, **config)
    return Checkpoint(build_model(real, head).eval(), None, head)  # type: ignore[arg-type]


def _head(model_type: str) -> str:
    if model_type in {"gpt2", "llama", "qwen2", "qwen3"}:
        return "causal_lm"
    bodies = {"bert", "roberta", "electra", "distilbert"}
    return "sequence_classification" if model_type in bodies else "seq2seq_lm"


@pytest.mark.parametrize("model_type", PICO)
def test_every_weight_is_in_one_place(model_type: str, tmp_path: Path) -> None:
    """The places' counts add up to the model's own, of all weights and of those not zero."""
    checkpoint = _checkpoint(model_type, PICO[model_type], _head(model_type))
    checkpoint.save(tmp_path)
    found = checkpoint.measure_sizes(tmp_path)
    for name, total in (("weights", "parameters"), ("nonzero", "nonzero")):
        assert sum(sum(group[name]) for group in found["groups"].values()) == found[total]
    in_layers = [g for g in found["groups"].values() if g["layers"][0] is not None]
    assert in_layers and all(g["layers"] == sorted(g["layers"]) for g in found["groups"].values()
                             if None not in g["layers"])  # fmt: skip


def test_zeros_are_found_where_they_are(tmp_path: Path) -> None:
    """T5 of 16 × 24: a half of the second encoder layer's `wi` set to zero by hand."""
    checkpoint = _checkpoint("t5", T5, "seq2seq_lm")
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
    untouched = {name: group for name, group in groups.items() if name != "encoder.feed_forward"}
    assert all(group["nonzero"] == group["weights"] for group in untouched.values())
    # The tied head and embedding, 50 × 16, are one tensor, and in the group that pruning knows.
    assert groups["lm_head"] == {"layers": [None], "weights": [800], "nonzero": [800]}
    assert "embedding" not in groups


@pytest.mark.parametrize(("model_type", "config"), [("bert", BERT), ("bart", BART)])
def test_head_and_embedding_are_in_no_layer(
    model_type: str, config: dict[str, Any], tmp_path: Path
) -> None:
    """What belongs to no layer says None; norms and biases are `other`."""
    checkpoint = _checkpoint(model_type, config, _head(model_type))
    checkpoint.save(tmp_path)
    groups = checkpoint.measure_sizes(tmp_path)["groups"]
    table = "embedding" if model_type == "bert" else "lm_head"
    assert groups[table]["layers"] == [None] and groups[table]["weights"][0] >= 50 * 16
    assert groups["other"]["layers"] == [None]
