"""BERT, RoBERTa and ELECTRA: parameter names and shapes, groups, stack. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.block_config import KEY
from compressor.models.facts import (
    NO_ENCODER,
    Shape,
    Stack,
    Units,
    Widths,
    count_labels,
    read_blocks,
)

_BERT: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_ELECTRA = {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
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
    """None: neither of its heads can share a tensor with the embedding."""
    return {}


def _prefix(config: Mapping[str, Any]) -> str:
    return f"{config['model_type']}." if config["head"] == "sequence_classification" else ""


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """The layers, in whose place blocks may stand."""
    prefix, layers = f"{_prefix(config)}encoder.layer", config["num_hidden_layers"]
    own = Stack(
        prefix, "num_hidden_layers", layers, per_layer=(KEY,), blocks=read_blocks(config, layers)
    )
    return {"encoder": own}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every parameter; `config["head"]` says what stands on the encoder."""
    del untied_head
    kind, base = config["model_type"], _prefix(config)
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = config["embedding_size"] if kind == "electra" else width
    shapes: dict[str, Shape] = {
        f"{base}embeddings.word_embeddings.weight": (config["vocab_size"], narrow),
        f"{base}embeddings.position_embeddings.weight": (config["max_position_embeddings"], narrow),
        f"{base}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], narrow),
    }

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str, size: int = width) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    norm(f"{base}embeddings.LayerNorm", narrow)
    if narrow != width:
        dense(f"{base}embeddings_project", width, narrow)
    encoder = stacks(config)["encoder"]
    for layer in encoder.native_layers:
        block = f"{encoder.prefix}.{layer}"
        for name in _ATTENTION:
            dense(f"{block}.{name}", width, width)
        norm(f"{block}.attention.output.LayerNorm")
        dense(f"{block}.intermediate.dense", inner, width)
        dense(f"{block}.output.dense", width, inner)
        norm(f"{block}.output.LayerNorm")
    shapes |= encoder.block_parameters(width)
    classifies = config["head"] == "sequence_classification"
    # RoBERTa's and ELECTRA's classifiers have two layers, in the pooler's place.
    if kind == "bert" or (kind == "roberta" and not classifies):
        dense(f"{base}pooler.dense", width, width)
    if classifies and kind != "bert":
        dense("classifier.dense", width, width)
    if classifies:
        dense(
            "classifier" if kind == "bert" else "classifier.out_proj", count_labels(config), width
        )
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The two groups of `Linear` weights of the encoder's layers, and that of its blocks."""
    encoder = stacks(config)["encoder"]
    return {
        "encoder.self_attention": encoder.list_weights(_ATTENTION),
        "encoder.feed_forward": encoder.list_weights(_FEED_FORWARD),
        **encoder.block_groups(),
    }


def linear(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """The weights of `Linear` layers."""
    return [n for n, shape in shapes.items() if len(shape) == 2 and "embeddings." not in n]


def attentions(config: Mapping[str, Any]) -> list[Units]:
    """The heads of every layer. They cannot leave: the config has no head size of its own."""
    stack = stacks(config)["encoder"]
    found = []
    for layer in stack.native_layers:
        name = f"{stack.prefix}.{layer}.attention"
        inner = [f"{name}.self.{part}" for part in ("query", "key", "value")]
        found.append(
            Units(
                name,
                "num_attention_heads",
                config["num_attention_heads"],
                {f"{n}.weight": 0 for n in inner} | {f"{name}.output.dense.weight": 1},
                carried={f"{n}.bias": 0 for n in inner},
                stack="encoder",
                stays="heads cannot leave a BERT: its config has no head size of its own, which is "
                "hidden_size / num_attention_heads",
            )
        )
    return found


def feed_forwards(config: Mapping[str, Any]) -> list[Units]:
    """The neurons of every layer."""
    stack = stacks(config)["encoder"]
    found = []
    for layer in stack.native_layers:
        name = f"{stack.prefix}.{layer}"
        matrices = {f"{name}.intermediate.dense.weight": 0, f"{name}.output.dense.weight": 1}
        bias = {f"{name}.intermediate.dense.bias": 0}
        count = config["intermediate_size"]
        found.append(
            Units(f"{name}.intermediate", "intermediate_size", count, matrices, bias, "encoder")
        )
    return found


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """The pieces: a row each of the word embedding."""
    rows = {f"{_prefix(config)}embeddings.word_embeddings.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
