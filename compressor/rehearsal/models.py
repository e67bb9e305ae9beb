"""A small model's config from a large one's: the same kind, fewer layers, narrower. No tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.architectures import Facts, Widths, architecture, evenly_spaced
from compressor.generation_config import OF_TOKENS
from compressor.stages.load import Load, TrainTokenizer

WIDTH, HEADS = 64, 4
"""Of the small model: multiples of 32, which N:M patterns and formats with blocks divide."""
PIECES = 1024
"""Of a tokenizer that is trained for a rehearsal; `quantize` leaves smaller tables float."""
TRAINED = ""
"""Stands for a tokenizer that is trained on the rehearsal's rows."""
_NO_PART = frozenset(
    {
        *("head", "architectures", "torch_dtype", "dtype", "transformers_version"),
        *("_name_or_path", "task_specific_params", "quantization_config", "auto_map"),
    }
)
"""Keys of a config that say where a model came from, and nothing of its shape."""


def small_load(load: Load, real: Facts, layers: int, tokenizer: str | None) -> Load:
    """A `load` of a fresh model of the kind that `load` gives, whose facts are `real`.

    layers: at most so many in each stack. tokenizer: the directory of the model's own, with which
    it keeps its vocabulary, `TRAINED` for one that is trained on the rows; None: it has none.
    """
    config = small_config(real, layers)
    own: str | TrainTokenizer | None = tokenizer
    if tokenizer == TRAINED:
        config = _with_pieces(config, min(PIECES, config["vocab_size"]))
        asked = load.tokenizer.vocab_size if isinstance(load.tokenizer, TrainTokenizer) else PIECES
        own = TrainTokenizer(vocab_size=min(asked, config["vocab_size"]))
    generation = load.generation
    if tokenizer == TRAINED:  # whose tokens have other numbers
        generation = {k: v for k, v in generation.items() if k not in OF_TOKENS}
    changed = {
        "generation": generation,
        "source": None,
        "config": config,
        "tokenizer": own,
        "trust_remote_code": False,
    }
    return load.model_copy(update=changed)


def small_config(real: Facts, layers: int) -> dict[str, Any]:
    """The config of a model like `real` with at most `layers` in each stack, and `WIDTH` wide.

    Everything that is neither a count of layers nor a width stays: the kind of attention, the
    activation, what is tied, the table of positions. A model that is no wider keeps its widths.
    """
    module = architecture(real.model_type)
    left_out = {*_NO_PART, *module.ALIASES}
    config = {k: v for k, v in real.config.items() if k not in left_out and v is not None}
    for stack in real.stacks().values():
        kept = evenly_spaced(stack.layers, min(layers, stack.layers))
        config |= stack.config_after(real.config, kept)
    if "lm_head.weight" in real.shapes:
        config["tie_word_embeddings"] = False
    return {**config, **_narrow(real.config, module.WIDTHS)}


def _narrow(config: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """The widths that change: in proportion, and so that heads divide what they share."""
    own = int(config[widths.hidden])
    if own <= WIDTH:
        return {}
    changed: dict[str, Any] = {widths.hidden: WIDTH}
    for key in widths.feed_forward:
        if config.get(key):
            changed[key] = min(4 * WIDTH, max(32, round(config[key] * WIDTH / own / 32) * 32))
    for key in widths.heads:
        changed[key] = 1 << (min(HEADS, int(config.get(key) or HEADS)).bit_length() - 1)
    heads, before = changed[widths.heads[0]], int(config.get(widths.heads[0]) or HEADS)
    if widths.key_heads and config.get(widths.key_heads):
        share = before // int(config[widths.key_heads])
        changed[widths.key_heads] = max(1, heads // min(2, share)) if share < before else 1
    if widths.head_size and config.get(widths.head_size):
        inner = before * int(config[widths.head_size]) * WIDTH / own
        changed[widths.head_size] = min(64, max(8, round(inner / heads / 8) * 8))
    if widths.embedding and config.get(widths.embedding):
        changed[widths.embedding] = min(WIDTH // 2, int(config[widths.embedding]))
    return changed


def _with_pieces(config: Mapping[str, Any], pieces: int) -> dict[str, Any]:
    """The config for another tokenizer: its size, and no numbers of the old one's tokens."""
    kept = {k: v for k, v in config.items() if not k.endswith(("_token_id", "_token_ids"))}
    sizes = [key for key in ("vocab_size", "decoder_vocab_size") if kept.get(key)]
    return {**kept, **dict.fromkeys(sizes, pieces)}
