"""DistilBERT: parameter names and shapes, groups, stack. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.block_config import KEY
from compressor.models.facts import Shape, Stack, Units, Widths, count_labels, read_blocks

DEFAULTS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": 30522,
        "dim": 768,
        "n_layers": 6,
        "n_heads": 12,
        "hidden_dim": 3072,
        "max_position_embeddings": 512,
    }
}
ALIASES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
HEADS = ("none", "sequence_classification")
WIDTHS = Widths("dim", ("hidden_dim",), ("n_heads",))

_ATTENTION = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin")


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """None: neither of its heads can share a tensor with the embedding."""
    return {}


def _prefix(config: Mapping[str, Any]) -> str:
    return "distilbert." if config["head"] == "sequence_classification" else ""


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """The layers, in whose place blocks may stand."""
    prefix, layers = f"{_prefix(config)}transformer.layer", config["n_layers"]
    own = Stack(prefix, "n_layers", layers, per_layer=(KEY,), blocks=read_blocks(config, layers))
    return {"encoder": own}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every parameter; `config["head"]` says what stands on the encoder."""
    del untied_head
    base, width, inner = _prefix(config), config["dim"], config["hidden_dim"]
    shapes: dict[str, Shape] = {
        f"{base}embeddings.word_embeddings.weight": (config["vocab_size"], width),
        f"{base}embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
    }

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    norm(f"{base}embeddings.LayerNorm")
    encoder = stacks(config)["encoder"]
    for layer in encoder.native_layers:
        block = f"{encoder.prefix}.{layer}"
        for name in _ATTENTION:
            dense(f"{block}.{name}", width, width)
        norm(f"{block}.sa_layer_norm")
        dense(f"{block}.ffn.lin1", inner, width)
        dense(f"{block}.ffn.lin2", width, inner)
        norm(f"{block}.output_layer_norm")
    shapes |= encoder.block_parameters(width)
    if config["head"] == "sequence_classification":
        dense("pre_classifier", width, width)
        dense("classifier", count_labels(config), width)
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The two groups of `Linear` weights of the encoder's layers, and that of its blocks."""
    encoder = stacks(config)["encoder"]
    return {
        "encoder.self_attention": encoder.list_weights(_ATTENTION),
        "encoder.feed_forward": encoder.list_weights(("ffn.lin1", "ffn.lin2")),
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
        names = [f"{stack.prefix}.{layer}.{part}" for part in _ATTENTION]
        found.append(
            Units(
                f"{stack.prefix}.{layer}.attention",
                "n_heads",
                config["n_heads"],
                {f"{n}.weight": int(n == names[-1]) for n in names},
                carried={f"{n}.bias": 0 for n in names[:-1]},
                stack="encoder",
                stays="heads cannot leave a DistilBERT: its config has no head size of its own, "
                "which is dim / n_heads",
            )
        )
    return found


def feed_forwards(config: Mapping[str, Any]) -> list[Units]:
    """The neurons of every layer."""
    stack = stacks(config)["encoder"]
    found = []
    for layer in stack.native_layers:
        name = f"{stack.prefix}.{layer}.ffn"
        matrices = {f"{name}.lin1.weight": 0, f"{name}.lin2.weight": 1}
        bias = {f"{name}.lin1.bias": 0}
        found.append(Units(name, "hidden_dim", config["hidden_dim"], matrices, bias, "encoder"))
    return found


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """The pieces: a row each of the word embedding."""
    rows = {f"{_prefix(config)}embeddings.word_embeddings.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
