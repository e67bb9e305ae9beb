"""Llama, Qwen2 and Qwen3: parameter names and shapes, groups, stack, ties. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.structure import Shape, Stack, Table, Units, Widths

_LLAMA: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,  # as many as there are heads
    "head_dim": None,  # hidden_size / num_attention_heads
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}  # fmt: skip
_QWEN = {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
}  # fmt: skip
DEFAULTS = {
    "llama": _LLAMA | {"attention_bias": False, "mlp_bias": False},
    "qwen2": _LLAMA | _QWEN,
    "qwen3": _LLAMA | _QWEN | {"head_dim": 128, "attention_bias": False},
}
ALIASES: dict[str, str] = {}
HEADS = ("causal_lm", "sequence_classification", "none")
NOT_LINEAR = ("embed_tokens.weight",)
WIDTHS = Widths(
    "hidden_size",
    ("intermediate_size",),
    ("num_attention_heads",),
    key_heads="num_key_value_heads",
    head_size="head_dim",
)

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def _prefix(config: Mapping[str, Any]) -> str:
    return "" if config["head"] == "none" else "model."


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """Tie the head to the embedding, unless it is a tensor of its own."""
    return {"lm_head.weight": "model.embed_tokens.weight"} if config["head"] == "causal_lm" else {}


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe the decoder. `layer_types` says which of Qwen's layers attend within a window."""
    qwen = config["model_type"] != "llama"
    return {
        "decoder": Stack(
            "decoder",
            f"{_prefix(config)}layers",
            "num_hidden_layers",
            config["num_hidden_layers"],
            {"self_attention": _ATTENTION, "feed_forward": _FEED_FORWARD},
            per_layer=("layer_types",) if qwen else (),
            leading=("max_window_layers",) if qwen else (),
        )
    }


def extended_positions(config: Mapping[str, Any]) -> int:
    """Count the positions that the config's way to stretch the angles of positions adds.

    Beyond, nothing fails: the model was trained on no such angles, and tells less and less. Of
    `llama3` and `longrope` the config counts all positions by itself.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    positions, kind = config["max_position_embeddings"], rope.get("rope_type", rope.get("type"))
    if kind not in ("linear", "dynamic", "yarn"):
        return 0
    original = rope.get("original_max_position_embeddings") if kind == "yarn" else None
    return max(0, int((original or positions) * rope.get("factor", 1)) - int(positions))


def _size_heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Give the numbers of heads and of those that have keys, and the size of one."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    return heads, config.get("num_key_value_heads") or heads, size


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map every distinct parameter's name to its shape."""
    base, kind = _prefix(config), config["model_type"]
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads, key_heads, size = _size_heads(config)
    queries, keys = heads * size, key_heads * size
    attention_rows = (queries, keys, keys, width)
    shapes = Table({f"{base}embed_tokens.weight": (config["vocab_size"], width)})
    for block in stacks(config)["decoder"].paths:
        for name, out in zip(_ATTENTION, attention_rows, strict=True):
            shapes[f"{block}.{name}.weight"] = (out, queries if name.endswith("o_proj") else width)
            # Qwen2 has a bias wherever Llama's `attention_bias` puts one, but for the output.
            if config.get("attention_bias") or (kind == "qwen2" and not name.endswith("o_proj")):
                shapes[f"{block}.{name}.bias"] = (out,)
        if kind == "qwen3":
            shapes |= {f"{block}.self_attn.{n}_norm.weight": (size,) for n in "qk"}
        for name in _FEED_FORWARD:
            down = name.endswith("down_proj")
            shapes[f"{block}.{name}.weight"] = (width, inner) if down else (inner, width)
            if config.get("mlp_bias"):
                shapes[f"{block}.{name}.bias"] = (width if down else inner,)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{block}.{name}.weight"] = (width,)
    shapes[f"{base}norm.weight"] = (width,)
    shapes.add_decoder_head(config, width, untied_head=untied_head)
    return shapes


def heads(config: Mapping[str, Any]) -> list[Units]:
    """List the groups of heads of each attention: a head with keys, and the queries that share it.

    With a `head_dim` in the config their number is free. Groups lie one after another in each
    tensor.
    """
    count, groups, size = _size_heads(config)
    units = []
    for block in stacks(config)["decoder"].paths:
        places = {f"{block}.{name}": int(name.endswith("o_proj")) for name in _ATTENTION}
        units.append(
            Units(
                f"{block}.self_attn",
                "num_key_value_heads",
                groups,
                {f"{name}.weight": axis for name, axis in places.items()},
                # The output's bias is of no head.
                carried={f"{name}.bias": 0 for name, axis in places.items() if not axis},
                stack="decoder",
                counted={"num_attention_heads": count // groups},
                fixed={"head_dim": size},
                divided=config["hidden_size"] if config["model_type"] == "llama" else 0,
            )
        )
    return units


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons: one row each of gate and up, and a column of down."""
    decoder, biases = stacks(config)["decoder"], bool(config.get("mlp_bias"))
    return decoder.list_neurons(config, "mlp", "intermediate_size", biases=biases)


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens of the vocabulary: one row each of the embedding, and of an untied head."""
    rows = {f"{_prefix(config)}embed_tokens.weight": 0, "lm_head.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
