"""T5, Flan-T5, mT5 and LongT5: parameter names and shapes, groups, stacks, ties. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from compressor.models.structure import (
    Channels,
    ConfigError,
    Shape,
    Stack,
    Units,
    Widths,
)

_T5: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8, "num_layers": 6,
    "num_decoder_layers": None,  # as many as the encoder's
    "relative_attention_num_buckets": 32, "feed_forward_proj": "relu",
}  # fmt: skip

_MT5 = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}

DEFAULTS = {
    "t5": _T5,
    "mt5": _T5 | _MT5 | {"feed_forward_proj": "gated-gelu"},
    "longt5": _T5 | {"encoder_attention_type": "local"},
}

TOKENS = {
    "t5": {"pad_token_id": 0, "eos_token_id": 1},
    "mt5": {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0},
    "longt5": {"pad_token_id": 0, "eos_token_id": 1},
}

ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}

HEADS = ("seq2seq_lm",)

NOT_LINEAR = ("shared.weight", "relative_attention_bias.weight")

WIDTHS = Widths("d_model", ("d_ff",), ("num_heads",), head_size="d_kv")

_ENCODER_ATTENTION = {
    "local": "LocalSelfAttention",
    "transient-global": "TransientGlobalSelfAttention",
}

_QKVO = ("q", "k", "v", "o")


def scales_outputs(kind: str, config: Mapping[str, Any]) -> bool:
    """Tell whether decoder outputs are multiplied by d_model**-0.5 before the head; no mT5's are.

    A file says it by `tie_word_embeddings`, which transformers 5 reads into an entry of its own.
    """
    tied = config.get("tie_word_embeddings", True)
    return kind != "mt5" and bool(config.get("scale_decoder_outputs", tied))


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """Tie the head to the embedding, unless it is a tensor of its own."""
    return {"lm_head.weight": "shared.weight"}


def _attention(config: Mapping[str, Any], stack: str) -> str:
    """Name the self-attention module of a stack's layers: LongT5's encoder has its own kinds."""
    kind = config.get("encoder_attention_type", "local")
    if config["model_type"] != "longt5" or stack == "decoder":
        return "layer.0.SelfAttention"
    if kind not in _ENCODER_ATTENTION:
        known = " or ".join(_ENCODER_ATTENTION)
        raise ConfigError("encoder_attention_type", f"expected {known}, got {kind!r}")
    return f"layer.0.{_ENCODER_ATTENTION[kind]}"


def _biases(attention: str) -> tuple[str, ...]:
    """Name the relative-position biases that block 0 has and the others use."""
    kinds = ("", "global_") if "Global" in attention else ("",)
    return tuple(f"{attention}.{kind}relative_attention_bias.weight" for kind in kinds)


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Describe encoder and decoder. Only layer 0 of each has the relative-position bias."""
    stays = "its first layer hands a position bias to the others, and a block hands none on"

    def stack(name: Literal["encoder", "decoder"], key: str, layers: int) -> Stack:
        itself, cross = _attention(config, name), "layer.1.EncDecAttention"
        parts = {"self_attention": [f"{itself}.{projection}" for projection in _QKVO]}
        if name == "decoder":
            parts["cross_attention"] = [f"{cross}.{projection}" for projection in _QKVO]
        dense = f"layer.{len(parts)}.DenseReluDense"
        parts["feed_forward"] = [f"{dense}.{matrix}" for matrix in _feed_forward(config)]
        return Stack(name, f"{name}.block", key, layers, parts, _biases(itself), stays=stays)

    layers = config["num_layers"], int(config.get("num_decoder_layers") or config["num_layers"])
    return {
        "encoder": stack("encoder", "num_layers", layers[0]),
        "decoder": stack("decoder", "num_decoder_layers", layers[1]),
    }


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Map every distinct parameter's name in transformers to its shape."""
    width, vocabulary = config["d_model"], config["vocab_size"]
    inner = config["num_heads"] * config["d_kv"]
    shapes: dict[str, Shape] = {"shared.weight": (vocabulary, width)}

    def attention(prefix: str) -> None:
        for name in _QKVO[:3]:
            shapes[f"{prefix}.{name}.weight"] = (inner, width)
        shapes[f"{prefix}.o.weight"] = (width, inner)

    for side, stack in stacks(config).items():
        decoder, kind = side == "decoder", _attention(config, side)
        for layer in range(stack.layers):
            block = f"{stack.prefix}.{layer}"
            attention(f"{block}.{kind}")
            if layer == 0:
                buckets = (config["relative_attention_num_buckets"], config["num_heads"])
                shapes |= {f"{block}.{bias}": buckets for bias in stack.first_layer_only}
            if "Global" in kind:
                shapes[f"{block}.{kind}.global_input_layer_norm.weight"] = (width,)
            if decoder:
                attention(f"{block}.layer.1.EncDecAttention")
            last = 2 if decoder else 1
            for name in _feed_forward(config):
                shape = (width, config["d_ff"]) if name == "wo" else (config["d_ff"], width)
                shapes[f"{block}.layer.{last}.DenseReluDense.{name}.weight"] = shape
            for index in range(last + 1):
                shapes[f"{block}.layer.{index}.layer_norm.weight"] = (width,)
        shapes[f"{side}.final_layer_norm.weight"] = (width,)
    if config.get("tie_word_embeddings") is False if untied_head is None else untied_head:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _feed_forward(config: Mapping[str, Any]) -> tuple[str, ...]:
    gated = str(config["feed_forward_proj"]).startswith("gated")
    return ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")


def heads(config: Mapping[str, Any]) -> list[Units]:
    """List the heads of every attention; `d_kv` is a config's own, so their number is free.

    One column a head of the relative-position bias, in block 0, serves all layers of its stack:
    head h has to be the same head in each of them. Cross-attention has no such bias.
    """
    units = []
    for side, stack in stacks(config).items():
        itself, cross = _attention(config, side), "layer.1.EncDecAttention"
        for layer in stack.paths:
            for part in (itself, cross) if side == "decoder" else (itself,):
                first = part == itself and layer == stack.paths[0]
                biases = stack.first_layer_only if first else ()
                units.append(
                    Units(
                        f"{layer}.{part}",
                        "num_heads",
                        config["num_heads"],
                        {f"{layer}.{part}.{name}.weight": int(name == "o") for name in _QKVO},
                        carried={f"{layer}.{bias}": 1 for bias in biases},
                        stack=side,
                        chosen_with=f"{side}.self_attention" if part == itself else "",
                    )
                )
    return units


def feed_forward(config: Mapping[str, Any]) -> list[Units]:
    """List the feed-forward neurons of every layer; gated ones have two rows and a column each."""
    units = []
    for side, stack in stacks(config).items():
        part = f"layer.{2 if side == 'decoder' else 1}.DenseReluDense"
        units += stack.list_neurons(config, part, "d_ff", biases=False)
    return units


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """List the tokens of the vocabulary: one row each of the embedding, and of an untied head."""
    rows = {"shared.weight": 0, "lm_head.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]


def channels(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[Channels]:
    """List what a norm hands to linear layers, values to `o`, and neurons to `wo`.

    Values are averaged, and a norm or a neuron ends with a product (a ReLU lets one through): all
    pass a factor on. A tied head's channels are the embedding's too, and stay. LongT5's encoder
    reads its own in two ways, and is left out.
    """
    if config["model_type"] == "longt5":
        return []
    pairs, cross = [], []
    for side, stack in stacks(config).items():
        for block in stack.paths:
            itself, other = f"{block}.layer.0.SelfAttention", f"{block}.layer.1.EncDecAttention"
            norms = [f"{block}.layer.{i}.layer_norm.weight" for i in range(2)]
            pairs.append(([norms[0]], [f"{itself}.{name}.weight" for name in "qkv"]))
            pairs.append(([f"{itself}.v.weight"], [f"{itself}.o.weight"]))
            if side == "decoder":
                pairs.append(([norms[1]], [f"{other}.q.weight"]))
                pairs.append(([f"{other}.v.weight"], [f"{other}.o.weight"]))
                cross += [f"{other}.k.weight", f"{other}.v.weight"]
            pairs += _neurons(config, f"{block}.layer.{2 if side == 'decoder' else 1}")
    pairs.append((["encoder.final_layer_norm.weight"], cross))
    if "lm_head.weight" in shapes:
        pairs.append((["decoder.final_layer_norm.weight"], ["lm_head.weight"]))
    return [Channels(tuple(writers), tuple(readers)) for writers, readers in pairs]


def _neurons(config: Mapping[str, Any], layer: str) -> list[tuple[list[str], list[str]]]:
    """List the channels of a feed-forward layer; neurons only where factors pass its activation."""
    dense, (*inner, last) = f"{layer}.DenseReluDense", _feed_forward(config)
    pairs = [([f"{layer}.layer_norm.weight"], [f"{dense}.{name}.weight" for name in inner])]
    if inner != ["wi"] or config["feed_forward_proj"] == "relu":
        pairs.append(([f"{dense}.{inner[-1]}.weight"], [f"{dense}.{last}.weight"]))
    return pairs


T5_TYPES = frozenset({"t5", "mt5", "longt5"})
