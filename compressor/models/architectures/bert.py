"""BERT, RoBERTa and ELECTRA: parameter names and shapes, groups, stack. No tensors here."""

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
DEFAULTS = {"bert": _BERT, "roberta": _BERT | {"vocab_size": 50265}, "electra": _BERT | _ELECTRA}
ALIASES: dict[str, str] = {}
HEADS = ("none", "sequence_classification")
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

_ATTENTION = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)
_FEED_FORWARD = ("intermediate.dense", "output.dense")


def reserved_positions(config: Mapping[str, Any]) -> int:
    """Count the rows of the table of positions that no token has: RoBERTa begins behind its pad."""
    pad = config.get("pad_token_id", TOKENS["roberta"]["pad_token_id"])
    return int(pad) + 1 if config["model_type"] == "roberta" else 0


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """Give none: neither of its heads can share a tensor with the embedding."""
    return {}


def find_prefix(config: Mapping[str, Any]) -> str:
    """Find how the names of the body's parameters begin."""
    return f"{config['model_type']}." if config["head"] == "sequence_classification" else ""


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """List the encoder's layers, in whose place blocks may stand."""
    prefix, layers = f"{find_prefix(config)}encoder.layer", config["num_hidden_layers"]
    blocks = read_blocks(config, layers)
    key = "num_hidden_layers"
    return {
        "encoder": Stack("encoder", prefix, key, layers, per_layer=(BLOCKS_KEY,), blocks=blocks)
    }


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every parameter; `config["head"]` says what stands on the encoder."""
    del untied_head
    kind, base = config["model_type"], find_prefix(config)
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = config["embedding_size"] if kind == "electra" else width
    shapes = Table()
    shapes[f"{base}embeddings.word_embeddings.weight"] = (config["vocab_size"], narrow)
    positions = config["max_position_embeddings"]
    shapes[f"{base}embeddings.position_embeddings.weight"] = (positions, narrow)
    shapes[f"{base}embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], narrow)
    shapes.add_norm(f"{base}embeddings.LayerNorm", narrow)
    if narrow != width:
        shapes.add_linear(f"{base}embeddings_project", width, narrow)
    encoder = stacks(config)["encoder"]
    for layer in encoder.paths:
        for name in _ATTENTION:
            shapes.add_linear(f"{layer}.{name}", width, width)
        shapes.add_norm(f"{layer}.attention.output.LayerNorm", width)
        shapes.add_linear(f"{layer}.intermediate.dense", inner, width)
        shapes.add_linear(f"{layer}.output.dense", width, inner)
        shapes.add_norm(f"{layer}.output.LayerNorm", width)
    shapes |= encoder.block_parameters(width)
    classifies = config["head"] == "sequence_classification"
    # RoBERTa's and ELECTRA's classifiers have two layers, in the pooler's place.
    if kind == "bert" or (kind == "roberta" and not classifies):
        shapes.add_linear(f"{base}pooler.dense", width, width)
    if classifies and kind != "bert":
        shapes.add_linear("classifier.dense", width, width)
    if classifies:
        last = "classifier" if kind == "bert" else "classifier.out_proj"
        shapes.add_linear(last, count_labels(config), width)
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """List the two groups of `Linear` weights of the encoder's layers, and that of its blocks."""
    encoder = stacks(config)["encoder"]
    return {
        "encoder.self_attention": encoder.list_weights(_ATTENTION),
        "encoder.feed_forward": encoder.list_weights(_FEED_FORWARD),
        **encoder.block_groups(),
    }


def linear(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """List the weights of `Linear` layers."""
    return [n for n, shape in shapes.items() if len(shape) == 2 and "embeddings." not in n]


def heads(config: Mapping[str, Any]) -> list[Units]:
    """List the heads of every layer."""
    encoder, (*inner, output) = stacks(config)["encoder"], _ATTENTION
    key = "num_attention_heads"
    return encoder.list_units(config, "attention", key, inner, output, shared="hidden_size")


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the neurons of every layer."""
    encoder, (inner, output) = stacks(config)["encoder"], _FEED_FORWARD
    return encoder.list_units(config, "intermediate", "intermediate_size", [inner], output)


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens: a row each of the word embedding."""
    rows = {f"{find_prefix(config)}embeddings.word_embeddings.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
