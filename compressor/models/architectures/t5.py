"""T5, Flan-T5, mT5 and LongT5: parameter names and shapes, groups, stacks, ties. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.facts import Channels, ConfigError, Shape, Stack, Units, Widths

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

WIDTHS = Widths("d_model", ("d_ff",), ("num_heads",), head_size="d_kv")

_ENCODER_ATTENTION = {
    "local": "LocalSelfAttention",
    "transient-global": "TransientGlobalSelfAttention",
}

_QKVO = ("q", "k", "v", "o")


def scales_outputs(kind: str, config: Mapping[str, Any]) -> bool:
    """Whether decoder outputs are multiplied by d_model**-0.5 before the head; an mT5's never are.

    A file says it by `tie_word_embeddings`, which transformers 5 reads into an entry of its own.
    """
    tied = config.get("tie_word_embeddings", True)
    return kind != "mt5" and bool(config.get("scale_decoder_outputs", tied))


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """The head is the embedding, unless it is a tensor of its own."""
    return {"lm_head.weight": "shared.weight"}


def _decoder_layers(config: Mapping[str, Any]) -> int:
    return int(config.get("num_decoder_layers") or config["num_layers"])


def _attention(config: Mapping[str, Any], stack: str) -> str:
    """The name, under a block, of a stack's self-attention: LongT5's encoder has its own kinds."""
    kind = config.get("encoder_attention_type", "local")
    if config["model_type"] != "longt5" or stack == "decoder":
        return "layer.0.SelfAttention"
    if kind not in _ENCODER_ATTENTION:
        known = " or ".join(_ENCODER_ATTENTION)
        raise ConfigError("encoder_attention_type", f"expected {known}, got {kind!r}")
    return f"layer.0.{_ENCODER_ATTENTION[kind]}"


def _biases(attention: str) -> tuple[str, ...]:
    """The relative-position biases that block 0 has and the others use."""
    kinds = ("", "global_") if "Global" in attention else ("",)
    return tuple(f"{attention}.{kind}relative_attention_bias.weight" for kind in kinds)


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    """Encoder and decoder. Only block 0 of each has the relative-position bias."""

    def stack(name: str, key: str, layers: int) -> Stack:
        return Stack(
            f"{name}.block",
            key,
            layers,
            _biases(_attention(config, name)),
            stays="its first layer hands a position bias to the others, and a block hands none on",
        )

    return {
        "encoder": stack("encoder", "num_layers", config["num_layers"]),
        "decoder": stack("decoder", "num_decoder_layers", _decoder_layers(config)),
    }


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every distinct parameter, under the names transformers gives them."""
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


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The six groups of `Linear` weights, in the order in which system B prunes them."""
    encoder, decoder = stacks(config)["encoder"], stacks(config)["decoder"]

    def under(part: str, names: tuple[str, ...]) -> list[str]:
        return [f"{part}.{name}" for name in names]

    inner = _feed_forward(config)
    return {
        "encoder.self_attention": encoder.list_weights(under(_attention(config, "encoder"), _QKVO)),
        "encoder.feed_forward": encoder.list_weights(under("layer.1.DenseReluDense", inner)),
        "decoder.self_attention": decoder.list_weights(under(_attention(config, "decoder"), _QKVO)),
        "decoder.cross_attention": decoder.list_weights(under("layer.1.EncDecAttention", _QKVO)),
        "decoder.feed_forward": decoder.list_weights(under("layer.2.DenseReluDense", inner)),
        "lm_head": ("lm_head.weight",),
    }


def linear(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
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
            parts = [_attention(config, stack), "layer.1.EncDecAttention"]
            for part in parts[: 2 if stack == "decoder" else 1]:
                name = f"{spec.prefix}.{layer}.{part}"
                own = part == parts[0]
                biases = spec.first_layer_only if own and layer == 0 else ()
                found.append(
                    Units(
                        name,
                        "num_heads",
                        config["num_heads"],
                        {f"{name}.{matrix}.weight": int(matrix == "o") for matrix in "qkvo"},
                        carried={f"{spec.prefix}.0.{bias}": 1 for bias in biases},
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


def channels(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[Channels]:
    """What a norm hands to linear layers, values to `o`, and neurons to `wo`.

    Values are averaged, and a norm or a neuron ends with a product (a ReLU lets one through): all
    pass a factor on. A tied head's channels are the embedding's too, and stay. LongT5's encoder
    reads its own in two ways, and is left out.
    """
    if config["model_type"] == "longt5":
        return []
    found, cross = [], []
    for side, stack in stacks(config).items():
        for block in (f"{stack.prefix}.{layer}" for layer in range(stack.layers)):
            own = f"{block}.layer.0.SelfAttention"
            readers = tuple(f"{own}.{name}.weight" for name in "qkv")
            found.append(Channels((f"{block}.layer.0.layer_norm.weight",), readers))
            found.append(Channels((f"{own}.v.weight",), (f"{own}.o.weight",)))
            if side == "decoder":
                other = f"{block}.layer.1.EncDecAttention"
                norm = f"{block}.layer.1.layer_norm.weight"
                found.append(Channels((norm,), (f"{other}.q.weight",)))
                found.append(Channels((f"{other}.v.weight",), (f"{other}.o.weight",)))
                cross += [f"{other}.k.weight", f"{other}.v.weight"]
            found += _neurons(config, f"{block}.layer.{2 if side == 'decoder' else 1}")
    found.append(Channels(("encoder.final_layer_norm.weight",), tuple(cross)))
    if "lm_head.weight" in shapes:
        found.append(Channels(("decoder.final_layer_norm.weight",), ("lm_head.weight",)))
    return found


def _neurons(config: Mapping[str, Any], layer: str) -> list[Channels]:
    """What a feed-forward layer reads and, where its activation passes factors on, its neurons."""
    dense, (*inner, last) = f"{layer}.DenseReluDense", _feed_forward(config)
    reads = Channels(
        (f"{layer}.layer_norm.weight",), tuple(f"{dense}.{name}.weight" for name in inner)
    )
    if inner == ["wi"] and config["feed_forward_proj"] != "relu":
        return [reads]
    return [reads, Channels((f"{dense}.{inner[-1]}.weight",), (f"{dense}.{last}.weight",))]


T5_TYPES = frozenset({"t5", "mt5", "longt5"})
