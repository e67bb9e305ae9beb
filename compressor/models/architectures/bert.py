"""BERT, RoBERTa and ELECTRA: parameter names and shapes, pruning groups, layers. No tensors here.

What the public names mean is said in `compressor.models.facts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.block_config import BLOCKS_KEY
from compressor.models.structure import (
    NO_ENCODER,
    Shape,
    Stack,
    Table,
    Units,
    Widths,
    count_labels,
    read_blocks,
)

_BERT: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2,
}  # fmt: skip
_ELECTRA = {
    "embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024,
}  # fmt: skip
# The constants that `compressor.models.facts` reads.
DEFAULTS = {"bert": _BERT, "roberta": _BERT | {"vocab_size": 50265}, "electra": _BERT | _ELECTRA}
ALIASES: dict[str, str] = {}
HEADS = ("none", "sequence_classification", "token_classification")
NOT_LINEAR = tuple(f"{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
WIDTHS = Widths(
    "hidden_size", ("intermediate_size",), ("num_attention_heads",), embedding="embedding_size"
)
ONLY = {
    "add_cross_attention": NO_ENCODER,
    "position_embedding_type": (
        "absolute",
        "transformers 5 computes absolute positions alone, and would leave the others out",
    ),
}
TOKENS = {"roberta": {"pad_token_id": 1}}

# Paths of the `Linear` modules in a layer; the last one writes to the residual stream.
_ATTENTION = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)
_FEED_FORWARD = ("intermediate.dense", "output.dense")


def reserved_positions(config: Mapping[str, Any]) -> int:
    """Count the position embeddings that no token uses: RoBERTa's start after its pad id."""
    pad = config.get("pad_token_id", TOKENS["roberta"]["pad_token_id"])
    return int(pad) + 1 if config["model_type"] == "roberta" else 0


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """List no ties: neither head shares a tensor with the embedding."""
    return {}


def find_prefix(config: Mapping[str, Any]) -> str:
    """Build the prefix of the body's parameter names: "" for a body without a head."""
    return "" if config["head"] == "none" else f"{config['model_type']}."


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe the encoder, any of whose layers a block can replace."""
    prefix, layers = f"{find_prefix(config)}encoder.layer", config["num_hidden_layers"]
    parts = {"self_attention": _ATTENTION, "feed_forward": _FEED_FORWARD}
    key, blocks = "num_hidden_layers", read_blocks(config, layers)
    stack = Stack("encoder", prefix, key, layers, parts, per_layer=(BLOCKS_KEY,), blocks=blocks)
    return {"encoder": stack}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map every parameter's name to its shape, those of the head `config["head"]` included."""
    del untied_head  # no language head
    kind, base = config["model_type"], find_prefix(config)
    width, ffn_width = config["hidden_size"], config["intermediate_size"]
    embedding_width = config["embedding_size"] if kind == "electra" else width
    shapes = Table()
    shapes[f"{base}embeddings.word_embeddings.weight"] = (config["vocab_size"], embedding_width)
    positions = config["max_position_embeddings"]
    shapes[f"{base}embeddings.position_embeddings.weight"] = (positions, embedding_width)
    token_types = config["type_vocab_size"]
    shapes[f"{base}embeddings.token_type_embeddings.weight"] = (token_types, embedding_width)
    shapes.add_norm(f"{base}embeddings.LayerNorm", embedding_width)
    if embedding_width != width:
        shapes.add_linear(f"{base}embeddings_project", width, embedding_width)
    encoder = stacks(config)["encoder"]
    for layer in encoder.paths:
        for name in _ATTENTION:
            shapes.add_linear(f"{layer}.{name}", width, width)
        shapes.add_norm(f"{layer}.attention.output.LayerNorm", width)
        shapes.add_linear(f"{layer}.intermediate.dense", ffn_width, width)
        shapes.add_linear(f"{layer}.output.dense", width, ffn_width)
        shapes.add_norm(f"{layer}.output.LayerNorm", width)
    shapes |= encoder.block_parameters(width)
    if config["head"] == "token_classification":  # without a pooler
        shapes.add_linear("classifier", count_labels(config), width)
        return shapes
    classifies = config["head"] == "sequence_classification"
    # RoBERTa's and ELECTRA's classifiers have a dense layer of their own instead of the pooler.
    if kind == "bert" or (kind == "roberta" and not classifies):
        shapes.add_linear(f"{base}pooler.dense", width, width)
    if classifies and kind != "bert":
        shapes.add_linear("classifier.dense", width, width)
    if classifies:
        last = "classifier" if kind == "bert" else "classifier.out_proj"
        shapes.add_linear(last, count_labels(config), width)
    return shapes


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons of every layer, as `Units`."""
    return stacks(config)["encoder"].list_neurons(config, "intermediate", "intermediate_size")


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens of the vocabulary as `Units`: one row of the word embedding each."""
    rows = {f"{find_prefix(config)}embeddings.word_embeddings.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
