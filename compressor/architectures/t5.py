"""T5, Flan-T5 and mT5: parameter names and shapes, groups, stacks, ties. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.architectures import Shape, Stack, Units

_T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,  # as many as the encoder's
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "relu",
}
_MT5 = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
DEFAULTS = {"t5": _T5, "mt5": _T5 | _MT5 | {"feed_forward_proj": "gated-gelu"}}
"""What a config leaves out, for each model type, as transformers fills it in."""
TIES = {"lm_head.weight": "shared.weight"}
HEADS = ("seq2seq_lm",)
POSITION_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"


def _decoder_layers(config: Mapping[str, Any]) -> int:
    return int(config.get("num_decoder_layers") or config["num_layers"])


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Encoder and decoder. Only block 0 of each has the relative-position bias."""
    return {
        "encoder": Stack("encoder.block", "num_layers", config["num_layers"], (POSITION_BIAS,)),
        "decoder": Stack(
            "decoder.block", "num_decoder_layers", _decoder_layers(config), (POSITION_BIAS,)
        ),
    }


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every distinct parameter, under the names transformers gives them."""
    width, vocabulary = config["d_model"], config["vocab_size"]
    inner = config["num_heads"] * config["d_kv"]
    shapes: dict[str, Shape] = {"shared.weight": (vocabulary, width)}

    def attention(prefix: str) -> None:
        for name in "qkv":
            shapes[f"{prefix}.{name}.weight"] = (inner, width)
        shapes[f"{prefix}.o.weight"] = (width, inner)

    for stack in stacks(config).values():
        decoder = stack.prefix.startswith("decoder")
        for layer in range(stack.layers):
            block = f"{stack.prefix}.{layer}"
            attention(f"{block}.layer.0.SelfAttention")
            if layer == 0:
                buckets = (config["relative_attention_num_buckets"], config["num_heads"])
                shapes[f"{block}.{POSITION_BIAS}"] = buckets
            if decoder:
                attention(f"{block}.layer.1.EncDecAttention")
            last = 2 if decoder else 1
            for name in _feed_forward(config):
                shape = (width, config["d_ff"]) if name == "wo" else (config["d_ff"], width)
                shapes[f"{block}.layer.{last}.DenseReluDense.{name}.weight"] = shape
            for index in range(last + 1):
                shapes[f"{block}.layer.{index}.layer_norm.weight"] = (width,)
        shapes[f"{stack.prefix.split('.')[0]}.final_layer_norm.weight"] = (width,)
    if config.get("tie_word_embeddings") is False if untied_head is None else untied_head:
        shapes["lm_head.weight"] = (vocabulary, width)
    return shapes


def _feed_forward(config: Mapping[str, Any]) -> tuple[str, ...]:
    gated = str(config["feed_forward_proj"]).startswith("gated")
    return ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The six groups of `Linear` weights, in the order in which system B prunes them."""

    def weights(stack: str, part: str, names: tuple[str, ...]) -> tuple[str, ...]:
        spec = stacks(config)[stack]
        layers = range(spec.layers)
        return tuple(f"{spec.prefix}.{i}.layer.{part}.{n}.weight" for i in layers for n in names)

    feed_forward = _feed_forward(config)
    qkvo = ("q", "k", "v", "o")
    return {
        "encoder.self_attention": weights("encoder", "0.SelfAttention", qkvo),
        "encoder.feed_forward": weights("encoder", "1.DenseReluDense", feed_forward),
        "decoder.self_attention": weights("decoder", "0.SelfAttention", qkvo),
        "decoder.cross_attention": weights("decoder", "1.EncDecAttention", qkvo),
        "decoder.feed_forward": weights("decoder", "2.DenseReluDense", feed_forward),
        "lm_head": ("lm_head.weight",),
    }


def linear(shapes: Mapping[str, Shape]) -> list[str]:
    """The weights of `Linear` layers; the embedding is one where the head is tied to it."""
    tied = "lm_head.weight" not in shapes
    return [
        name
        for name, shape in shapes.items()
        if len(shape) == 2
        and not name.endswith("relative_attention_bias.weight")
        and (tied or name != "shared.weight")
    ]


def attentions(config: Mapping[str, Any]) -> list[Units]:
    """The heads of every attention; `d_kv` is a config's own, so their number is free.

    One column a head of the relative-position bias, in block 0, serves all layers of its stack:
    head h has to be the same head in each of them. Cross-attention has no such bias.
    """
    found = []
    for stack, spec in stacks(config).items():
        for layer in range(spec.layers):
            for part in ("0.SelfAttention", "1.EncDecAttention")[: 2 if stack == "decoder" else 1]:
                name = f"{spec.prefix}.{layer}.layer.{part}"
                own = part.startswith("0")
                bias = {f"{spec.prefix}.0.{POSITION_BIAS}": 1} if own and layer == 0 else {}
                found.append(
                    Units(
                        name,
                        "num_heads",
                        config["num_heads"],
                        {f"{name}.{matrix}.weight": int(matrix == "o") for matrix in "qkvo"},
                        carried=bias,
                        stack=stack,
                        chosen_with=f"{stack}.self_attention" if own else "",
                    )
                )
    return found


def feed_forwards(config: Mapping[str, Any]) -> list[Units]:
    """The neurons of every feed-forward layer; a gated one has two rows and a column of each."""
    found = []
    for stack, spec in stacks(config).items():
        last = 2 if stack == "decoder" else 1
        for layer in range(spec.layers):
            name = f"{spec.prefix}.{layer}.layer.{last}.DenseReluDense"
            matrices = {f"{name}.{m}.weight": int(m == "wo") for m in _feed_forward(config)}
            found.append(Units(name, "d_ff", config["d_ff"], matrices, stack=stack))
    return found


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """The pieces: a row each of the embedding, and of the head where it is not tied."""
    rows = {"shared.weight": 0, "lm_head.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
