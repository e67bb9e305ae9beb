"""BERT: parameter names and shapes, groups, stack. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.architectures import Shape, Stack, Units

DEFAULTS: dict[str, dict[str, Any]] = {
    "bert": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    }
}
TIES: dict[str, str] = {}
HEADS = ("none", "sequence_classification")

_ATTENTION = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
)
_FEED_FORWARD = ("intermediate.dense", "output.dense")


def _prefix(config: Mapping[str, Any]) -> str:
    return "bert." if config.get("head") == "sequence_classification" else ""


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    prefix = f"{_prefix(config)}encoder.layer"
    return {"encoder": Stack(prefix, "num_hidden_layers", config["num_hidden_layers"])}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every parameter; `config["head"]` says what stands on the encoder."""
    del untied_head  # neither of its heads can share a tensor with the embedding
    head = config["head"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    base = "bert." if head == "sequence_classification" else ""
    shapes: dict[str, Shape] = {
        f"{base}embeddings.word_embeddings.weight": (config["vocab_size"], width),
        f"{base}embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        f"{base}embeddings.token_type_embeddings.weight": (config["type_vocab_size"], width),
    }

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    norm(f"{base}embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        block = f"{base}encoder.layer.{layer}"
        for name in _ATTENTION:
            dense(f"{block}.{name}", width, width)
        norm(f"{block}.attention.output.LayerNorm")
        dense(f"{block}.intermediate.dense", inner, width)
        dense(f"{block}.output.dense", width, inner)
        norm(f"{block}.output.LayerNorm")
    dense(f"{base}pooler.dense", width, width)
    if head == "sequence_classification":
        labels = config.get("num_labels") or len(config.get("id2label") or {}) or 2
        dense("classifier", labels, width)
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The two groups of `Linear` weights of the encoder's layers."""
    stack = stacks(config)["encoder"]

    def weights(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{stack.prefix}.{i}.{n}.weight" for i in range(stack.layers) for n in names)

    return {
        "encoder.self_attention": weights(_ATTENTION),
        "encoder.feed_forward": weights(_FEED_FORWARD),
    }


def linear(shapes: Mapping[str, Shape]) -> list[str]:
    """The weights of `Linear` layers."""
    return [n for n, shape in shapes.items() if len(shape) == 2 and "embeddings." not in n]


def attentions(config: Mapping[str, Any]) -> list[Units]:
    """The heads of every layer. They cannot leave: the config has no head size of its own."""
    stack = stacks(config)["encoder"]
    found = []
    for layer in range(stack.layers):
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
    for layer in range(stack.layers):
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
