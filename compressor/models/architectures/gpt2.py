"""GPT-2: parameter names and shapes, groups, stack, ties. No tensors here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.facts import NO_ENCODER, Shape, Stack, Units, Widths, count_labels

DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,  # four times n_embd
        "tie_word_embeddings": True,
    }
}
ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
HEADS = ("causal_lm", "sequence_classification", "none")
ONLY = {"add_cross_attention": NO_ENCODER}
WIDTHS = Widths("n_embd", ("n_inner",), ("n_head",))


def _prefix(config: Mapping[str, Any]) -> str:
    return "" if config["head"] == "none" else "transformer."


def ties(config: Mapping[str, Any]) -> dict[str, str]:
    """The head is the embedding, unless it is a tensor of its own."""
    return {"lm_head.weight": "transformer.wte.weight"} if config["head"] == "causal_lm" else {}


def stacks(config: Mapping[str, Any]) -> dict[str, Stack]:
    return {"decoder": Stack(f"{_prefix(config)}h", "n_layer", config["n_layer"])}


def parameters(config: Mapping[str, Any], *, untied_head: bool | None = None) -> dict[str, Shape]:
    """Name → shape of every distinct parameter.

    The layers' weights are `Conv1D`: (in, out), not (out, in); `c_attn` is query, key and value
    side by side, (n_embd, 3 n_embd).
    """
    base, width, head = _prefix(config), config["n_embd"], config["head"]
    inner = config.get("n_inner") or 4 * width
    shapes: dict[str, Shape] = {
        f"{base}wte.weight": (config["vocab_size"], width),
        f"{base}wpe.weight": (config["n_positions"], width),
    }

    def conv1d(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (into, out), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width,), (width,)

    for layer in range(config["n_layer"]):
        block = f"{base}h.{layer}"
        norm(f"{block}.ln_1")
        conv1d(f"{block}.attn.c_attn", width, 3 * width)
        conv1d(f"{block}.attn.c_proj", width, width)
        norm(f"{block}.ln_2")
        conv1d(f"{block}.mlp.c_fc", width, inner)
        conv1d(f"{block}.mlp.c_proj", inner, width)
    norm(f"{base}ln_f")
    if head == "sequence_classification":
        shapes["score.weight"] = (count_labels(config), width)
    untied = not config["tie_word_embeddings"] if untied_head is None else untied_head
    if head == "causal_lm" and untied:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def groups(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The groups of `Conv1D` weights of the layers, and the head."""
    decoder = stacks(config)["decoder"]
    found = {
        "decoder.self_attention": decoder.list_weights(("attn.c_attn", "attn.c_proj")),
        "decoder.feed_forward": decoder.list_weights(("mlp.c_fc", "mlp.c_proj")),
    }
    return found | ({"lm_head": ("lm_head.weight",)} if config["head"] == "causal_lm" else {})


def linear(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> list[str]:
    """The weight of the head, the only `nn.Linear`, under the name it goes by."""
    head = {"causal_lm": "lm_head.weight", "sequence_classification": "score.weight"}
    name = head.get(config["head"])
    return [] if name is None else [name if name in shapes else ties(config)[name]]


def attentions(config: Mapping[str, Any]) -> list[Units]:
    """The heads of every layer. They cannot leave: the config has no head size of its own."""
    stack = stacks(config)["decoder"]
    return [
        Units(
            f"{stack.prefix}.{layer}.attn",
            "n_head",
            config["n_head"],
            {f"{stack.prefix}.{layer}.attn.c_proj.weight": 0},
            stack="decoder",
            stays="heads cannot leave a GPT-2: its config has no head size of its own, which is "
            "n_embd / n_head",
        )
        for layer in range(stack.layers)
    ]


def feed_forwards(config: Mapping[str, Any]) -> list[Units]:
    """The neurons of every layer: columns of `c_fc` and rows of `c_proj`, as they are `Conv1D`."""
    stack = stacks(config)["decoder"]
    count = config.get("n_inner") or 4 * config["n_embd"]
    found = []
    for layer in range(stack.layers):
        name = f"{stack.prefix}.{layer}.mlp"
        matrices = {f"{name}.c_fc.weight": 1, f"{name}.c_proj.weight": 0}
        found.append(
            Units(name, "n_inner", count, matrices, {f"{name}.c_fc.bias": 0}, stack="decoder")
        )
    return found


def vocabulary(config: Mapping[str, Any]) -> list[Units]:
    """The pieces: a row each of the embedding, and of the head where it is not tied."""
    rows = {f"{_prefix(config)}wte.weight": 0, "lm_head.weight": 0}
    return [Units("vocabulary", "vocab_size", config["vocab_size"], rows)]
