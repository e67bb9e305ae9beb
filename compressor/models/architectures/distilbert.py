"""DistilBERT: parameter names and shapes, pruning groups, layers. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.architectures import bert
from compressor.models.block_config import BLOCKS_KEY
from compressor.models.structure import (
    Shape,
    Stack,
    Table,
    Units,
    Widths,
    count_labels,
    read_blocks,
)

DEFAULTS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": 30522, "dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072,
        "max_position_embeddings": 512,
    }
}  # fmt: skip
ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
HEADS, NOT_LINEAR, ties, vocabulary = bert.HEADS, bert.NOT_LINEAR, bert.ties, bert.vocabulary
WIDTHS = Widths("dim", ("hidden_dim",), ("n_heads",))

_ATTENTION = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe the encoder, any of whose layers a block can replace."""
    prefix, layers = f"{bert.find_prefix(config)}transformer.layer", config["n_layers"]
    parts = {"self_attention": _ATTENTION, "feed_forward": ("ffn.lin1", "ffn.lin2")}
    blocks = read_blocks(config, layers)
    stack = Stack(
        "encoder", prefix, "n_layers", layers, parts, per_layer=(BLOCKS_KEY,), blocks=blocks
    )
    return {"encoder": stack}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map every parameter's name to its shape, those of the head `config["head"]` included."""
    del untied_head  # no language head
    base, width, inner = bert.find_prefix(config), config["dim"], config["hidden_dim"]
    shapes = Table()
    shapes[f"{base}embeddings.word_embeddings.weight"] = (config["vocab_size"], width)
    positions = config["max_position_embeddings"]
    shapes[f"{base}embeddings.position_embeddings.weight"] = (positions, width)
    shapes.add_norm(f"{base}embeddings.LayerNorm", width)
    encoder = stacks(config)["encoder"]
    for layer in encoder.paths:
        for name in _ATTENTION:
            shapes.add_linear(f"{layer}.{name}", width, width)
        shapes.add_norm(f"{layer}.sa_layer_norm", width)
        shapes.add_linear(f"{layer}.ffn.lin1", inner, width)
        shapes.add_linear(f"{layer}.ffn.lin2", width, inner)
        shapes.add_norm(f"{layer}.output_layer_norm", width)
    shapes |= encoder.block_parameters(width)
    if config["head"] == "sequence_classification":
        shapes.add_linear("pre_classifier", width, width)
    if config["head"] != "none":
        shapes.add_linear("classifier", count_labels(config), width)
    return shapes


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons of every layer, as `Units`."""
    return stacks(config)["encoder"].list_neurons(config, "ffn", "hidden_dim")
