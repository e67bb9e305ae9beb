"""GPT-2: parameter names and shapes, groups, stack, ties. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.structure import (
    NO_ENCODER,
    Shape,
    Stack,
    Table,
    Units,
    Widths,
)

DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_inner": None,  # four times n_embd
        "tie_word_embeddings": True,
    }
}  # fmt: skip
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
HEADS = ("causal_lm", "sequence_classification", "none")
NOT_LINEAR = ("wte.weight", "wpe.weight", "c_attn.weight", "c_proj.weight", "c_fc.weight")
ONLY = {"add_cross_attention": NO_ENCODER}
WIDTHS = Widths("n_embd", ("n_inner",), ("n_head",))


def _prefix(config: Mapping[str, Any]) -> str:
    return "" if config["head"] == "none" else "transformer."


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """Tie the head to the embedding, unless it is a tensor of its own."""
    return {"lm_head.weight": "transformer.wte.weight"} if config["head"] == "causal_lm" else {}


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe the decoder, whose layers are of `Conv1D`."""
    attention, feed_forward = ("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj")
    parts = {"self_attention": attention, "feed_forward": feed_forward}
    prefix = f"{_prefix(config)}h"
    return {"decoder": Stack("decoder", prefix, "n_layer", config["n_layer"], parts)}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map every distinct parameter's name to its shape.

    The layers' weights are `Conv1D`: (in, out), not (out, in); `c_attn` is query, key and value
    side by side, (n_embd, 3 n_embd).
    """
    base, width = _prefix(config), config["n_embd"]
    inner = config.get("n_inner") or 4 * width
    shapes = Table()
    shapes[f"{base}wte.weight"] = (config["vocab_size"], width)
    shapes[f"{base}wpe.weight"] = (config["n_positions"], width)

    def conv1d(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (into, out), (out,)

    for block in stacks(config)["decoder"].paths:
        shapes.add_norm(f"{block}.ln_1", width)
        conv1d(f"{block}.attn.c_attn", width, 3 * width)
        conv1d(f"{block}.attn.c_proj", width, width)
        shapes.add_norm(f"{block}.ln_2", width)
        conv1d(f"{block}.mlp.c_fc", width, inner)
        conv1d(f"{block}.mlp.c_proj", inner, width)
    shapes.add_norm(f"{base}ln_f", width)
    shapes.add_decoder_head(config, width, untied_head=untied_head)
    return shapes


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons: columns of `c_fc` and rows of `c_proj`, as in any `Conv1D`."""
    decoder, count = stacks(config)["decoder"], config.get("n_inner") or 4 * config["n_embd"]
    return decoder.list_neurons(config, "mlp", "n_inner", transposed=True, count=count)


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens of the vocabulary: one row each of the embedding, and of an untied head."""
    rows = {f"{_prefix(config)}wte.weight": 0, "lm_head.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
