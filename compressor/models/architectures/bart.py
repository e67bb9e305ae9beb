"""BART, mBART, Pegasus and Marian: parameter names and shapes, groups, stacks, ties. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.block_config import BLOCKS_KEY
from compressor.models.structure import (
    Shape,
    Stack,
    Table,
    Units,
    Widths,
    read_blocks,
)

_BART: dict[str, Any] = {
    "vocab_size": 50265, "d_model": 1024, "max_position_embeddings": 1024,
    "encoder_layers": 12, "encoder_ffn_dim": 4096, "decoder_layers": 12, "decoder_ffn_dim": 4096,
    "tie_word_embeddings": True,
}  # fmt: skip
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
NOT_LINEAR = ("shared.weight", "embed_tokens.weight", "embed_positions.weight")
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
_ATTENTIONS = {"encoder": ("self_attn",), "decoder": ("self_attn", "encoder_attn")}
_POSITION_OFFSET = {"bart": 2, "mbart": 2}
"""Rows that the table of positions has beyond `max_position_embeddings`, never looked up."""
_EMBEDDING_NORM = frozenset({"bart", "mbart"})
"""Those with a norm on the embeddings, `layernorm_embedding`."""
_FINAL_NORM = frozenset({"mbart", "pegasus"})
"""Those with a norm after the last layer of a stack, since they norm before each layer."""


def _one_table(config: Mapping[str, Any]) -> bool:
    """Tell whether both stacks share `model.shared`; Marian's may have a vocabulary each."""
    return bool(config.get("share_encoder_decoder_embeddings", True))


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """Tie the head to an embedding, unless it is a tensor of its own; embeddings are one, or three.

    With `tie_word_embeddings: false`, transformers 5 gives encoder and decoder a table each, and
    a third, `model.shared`, which nothing looks into.
    """
    if not _one_table(config):
        return {"lm_head.weight": _EMBEDDINGS["decoder"]}
    tables = dict.fromkeys(_EMBEDDINGS.values(), _SHARED) if config["tie_word_embeddings"] else {}
    return {"lm_head.weight": _SHARED} | tables


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe encoder and decoder. Blocks can replace encoder layers only of post-norm models."""
    norms_before = config["model_type"] in _FINAL_NORM
    layers, feed_forward = config["encoder_layers"], {"feed_forward": ["fc1", "fc2"]}
    itself, cross = ([f"{part}.{n}" for n in _PROJECTIONS] for part in _ATTENTIONS["decoder"])
    attentions = {"self_attention": itself, "cross_attention": cross}
    encoder = Stack(
        "encoder",
        "model.encoder.layers",
        "encoder_layers",
        layers,
        {"self_attention": itself} | feed_forward,
        per_layer=(BLOCKS_KEY,),
        blocks=() if norms_before else read_blocks(config, layers),
        stays="its layers norm what they read, and a block norms what it gives"
        if norms_before
        else "",
    )
    decoder = Stack(
        "decoder",
        "model.decoder.layers",
        "decoder_layers",
        config["decoder_layers"],
        attentions | feed_forward,
    )
    return {"encoder": encoder, "decoder": decoder}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map each distinct parameter to its shape, Pegasus' and Marian's fixed positions included.

    `final_logits_bias` is a buffer in transformers, and no parameter.
    """
    kind, width, tied = config["model_type"], config["d_model"], config["tie_word_embeddings"]
    vocabulary = {"encoder": config["vocab_size"], "decoder": config["vocab_size"]}
    shapes = Table()
    if _one_table(config):
        shapes[_SHARED] = (config["vocab_size"], width)
    else:
        vocabulary["decoder"] = config.get("decoder_vocab_size") or config["vocab_size"]

    for side, stack in stacks(config).items():
        if not tied or not _one_table(config):
            shapes[_EMBEDDINGS[side]] = (vocabulary[side], width)
        positions = config["max_position_embeddings"] + _POSITION_OFFSET.get(kind, 0)
        shapes[f"model.{side}.embed_positions.weight"] = (positions, width)
        inner = config[f"{side}_ffn_dim"]
        for layer in stack.paths:
            for attention in _ATTENTIONS[side]:
                for name in _PROJECTIONS:
                    shapes.add_linear(f"{layer}.{attention}.{name}", width, width)
                shapes.add_norm(f"{layer}.{attention}_layer_norm", width)
            shapes.add_linear(f"{layer}.fc1", inner, width)
            shapes.add_linear(f"{layer}.fc2", width, inner)
            shapes.add_norm(f"{layer}.final_layer_norm", width)
        shapes |= stack.block_parameters(width)
        if kind in _EMBEDDING_NORM:
            shapes.add_norm(f"model.{side}.layernorm_embedding", width)
        if kind in _FINAL_NORM:
            shapes.add_norm(f"model.{side}.layer_norm", width)
    if not tied if untied_head is None else untied_head:
        shapes["lm_head.weight"] = (vocabulary["decoder"], width)
    return shapes


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons of every layer; each stack has a width of its own."""
    encoder, decoder = stacks(config).values()
    return [
        *encoder.list_neurons(config, "fc1", "encoder_ffn_dim"),
        *decoder.list_neurons(config, "fc1", "decoder_ffn_dim"),
    ]


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens of the vocabulary: one row each of every embedding, the head and its bias.

    Empty for a model with two vocabularies.
    """
    if not _one_table(config):
        return []
    rows = dict.fromkeys((_SHARED, *_EMBEDDINGS.values(), "lm_head.weight"), 0)
    bias = {"final_logits_bias": 1}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows, bias)]
