"""BART, mBART, Pegasus and Marian: parameter names and shapes, groups, stacks, ties. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.block_config import KEY
from compressor.models.facts import Shape, Stack, Units, Widths, read_blocks

_BART: dict[str, Any] = {
    "vocab_size": 50265,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_MARIAN = {
    "vocab_size": 58101,
    "decoder_vocab_size": None,  # as large as the encoder's
    "share_encoder_decoder_embeddings": True,
}
DEFAULTS = {"bart": _BART, "mbart": _BART, "pegasus": _BART, "marian": _BART | _MARIAN}
TOKENS = {
    "bart": {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
    "mbart": {"pad_token_id": 1, "eos_token_id": 2},
    "pegasus": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    "marian": {"pad_token_id": 58100, "eos_token_id": 0, "decoder_start_token_id": 58100},
}
ALIASES = {"hidden_size": "d_model", "num_hidden_layers": "encoder_layers"}
HEADS = ("seq2seq_lm",)
WIDTHS = Widths(
    "d_model",
    ("encoder_ffn_dim", "decoder_ffn_dim"),
    ("encoder_attention_heads", "decoder_attention_heads"),
)

_SHARED = "model.shared.weight"
_EMBEDDINGS = {
    "encoder": "model.encoder.embed_tokens.weight",
    "decoder": "model.decoder.embed_tokens.weight",
}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
_POSITION_OFFSET = {"bart": 2, "mbart": 2}
"""Rows that the table of positions has beyond `max_position_embeddings`, never looked up."""
_EMBEDDING_NORM = frozenset({"bart", "mbart"})
"""Those with a norm on the embeddings, `layernorm_embedding`."""
_FINAL_NORM = frozenset({"mbart", "pegasus"})
"""Those with a norm after the last layer of a stack, since they norm before each layer."""


def _one_table(config: Mapping[str, Any]) -> bool:
    """Whether encoder and decoder share `model.shared`; Marian's may have a vocabulary each."""
    return bool(config.get("share_encoder_decoder_embeddings", True))


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """The head is an embedding, unless it is a tensor of its own; embeddings are one, or three.

    With `tie_word_embeddings: false`, transformers 5 gives encoder and decoder a table each, and
    a third, `model.shared`, which nothing looks into.
    """
    if not _one_table(config):
        return {"lm_head.weight": _EMBEDDINGS["decoder"]}
    tables = dict.fromkeys(_EMBEDDINGS.values(), _SHARED) if config["tie_word_embeddings"] else {}
    return {"lm_head.weight": _SHARED} | tables


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Encoder and decoder. Blocks may stand in the encoder of those that norm after a layer."""
    norms_before = config["model_type"] in _FINAL_NORM
    layers = config["encoder_layers"]
    encoder = Stack(
        "model.encoder.layers",
        "encoder_layers",
        layers,
        per_layer=(KEY,),
        blocks=() if norms_before else read_blocks(config, layers),
        stays="its layers norm what they read, and a block norms what it gives"
        if norms_before
        else "",
    )
    decoder = Stack("model.decoder.layers", "decoder_layers", config["decoder_layers"])
    return {"encoder": encoder, "decoder": decoder}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every distinct parameter, Pegasus' and Marian's fixed positions included.

    `final_logits_bias` is a buffer in transformers, and no parameter.
    """
    kind, width, tied = config["model_type"], config["d_model"], config["tie_word_embeddings"]
    vocabulary = {"encoder": config["vocab_size"], "decoder": config["vocab_size"]}
    shapes: dict[str, Shape] = {}
    if _one_table(config):
        shapes[_SHARED] = (config["vocab_size"], width)
    else:
        vocabulary["decoder"] = config.get("decoder_vocab_size") or config["vocab_size"]

    def dense(name: str, out: int, into: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    for side, stack in stacks(config).items():
        if not tied or not _one_table(config):
            shapes[_EMBEDDINGS[side]] = (vocabulary[side], width)
        positions = config["max_position_embeddings"] + _POSITION_OFFSET.get(kind, 0)
        shapes[f"model.{side}.embed_positions.weight"] = (positions, width)
        inner = config[f"{side}_ffn_dim"]
        for layer in stack.native_layers:
            block = f"{stack.prefix}.{layer}"
            for attention in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                for name in _PROJECTIONS:
                    dense(f"{block}.{attention}.{name}", width, width)
                norm(f"{block}.{attention}_layer_norm")
            dense(f"{block}.fc1", inner, width)
            dense(f"{block}.fc2", width, inner)
            norm(f"{block}.final_layer_norm")
        shapes |= stack.block_parameters(width)
        if kind in _EMBEDDING_NORM:
            norm(f"model.{side}.layernorm_embedding")
        if kind in _FINAL_NORM:
            norm(f"model.{side}.layer_norm")
    if not tied if untied_head is None else untied_head:
        shapes["lm_head.weight"] = (vocabulary["decoder"], width)
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The six groups of `Linear` weights, and that of the encoder's blocks."""
    encoder, decoder = stacks(config)["encoder"], stacks(config)["decoder"]
    own, cross = ([f"{part}.{n}" for n in _PROJECTIONS] for part in ("self_attn", "encoder_attn"))
    return {
        "encoder.self_attention": encoder.list_weights(own),
        "encoder.feed_forward": encoder.list_weights(("fc1", "fc2")),
        "decoder.self_attention": decoder.list_weights(own),
        "decoder.cross_attention": decoder.list_weights(cross),
        "decoder.feed_forward": decoder.list_weights(("fc1", "fc2")),
        "lm_head": ("lm_head.weight",),
        **encoder.block_groups(),
    }


def linear(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """The weights of `Linear` layers; an embedding is one where the head is tied to it."""
    head = "lm_head.weight" if "lm_head.weight" in shapes else ties(config)["lm_head.weight"]
    return [
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and (name == head or (".embed_" not in name and name != _SHARED))
    ]


def attentions(config: Mapping[str, Any]) -> list[Units]:
    """The heads of every attention. They cannot leave: the config has no head size of its own."""
    found = []
    for side, stack in stacks(config).items():
        key = f"{side}_attention_heads"
        for layer in stack.native_layers:
            for part in ("self_attn", "encoder_attn")[: 1 + (side == "decoder")]:
                name = f"{stack.prefix}.{layer}.{part}"
                found.append(
                    Units(
                        name,
                        key,
                        config[key],
                        {f"{name}.{n}.weight": int(n == "out_proj") for n in _PROJECTIONS},
                        carried={f"{name}.{n}.bias": 0 for n in _PROJECTIONS[:3]},
                        stack=side,
                        stays=f"heads cannot leave a {config['model_type']}: its config has no "
                        f"head size of its own, which is d_model / {key}",
                    )
                )
    return found


def feed_forwards(config: Mapping[str, Any]) -> list[Units]:
    """The neurons of every layer; each stack has a width of its own."""
    found = []
    for side, stack in stacks(config).items():
        key = f"{side}_ffn_dim"
        for layer in stack.native_layers:
            name = f"{stack.prefix}.{layer}"
            matrices = {f"{name}.fc1.weight": 0, f"{name}.fc2.weight": 1}
            bias = {f"{name}.fc1.bias": 0}
            found.append(Units(f"{name}.fc1", key, config[key], matrices, bias, side))
    return found


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """The pieces: a row each of all tables, the head and its bias. None with two vocabularies."""
    if not _one_table(config):
        return []
    rows = dict.fromkeys((_SHARED, *_EMBEDDINGS.values(), "lm_head.weight"), 0)
    bias = {"final_logits_bias": 1}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows, bias)]
