"""Pico models of every family: the smallest that show everything that one has.

Every size in a config is another, so that none can stand for another unseen.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from compressor.backends.outputs import GenerationOutput
from compressor.backends.torch.model import TorchModel
from compressor.data.examples import Examples
from compressor.data.messages import Messages
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import load_architecture
from compressor.models.loading import build_model

T5 = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 3, "num_layers": 2}
BART = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "encoder_attention_heads": 2,
    "decoder_attention_heads": 4, "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip
BERT = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": 50, "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24,
    "max_position_embeddings": 20,
}  # fmt: skip
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20}
LLAMA = {
    "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24,
}  # fmt: skip
PICO: dict[str, dict[str, Any]] = {
    "t5": T5, "mt5": T5, "longt5": T5,
    "bart": BART, "mbart": BART, "pegasus": BART, "marian": BART,
    "bert": BERT, "roberta": BERT, "electra": BERT | {"embedding_size": 8},
    "distilbert": DISTILBERT, "gpt2": GPT2,
    "llama": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA | {"head_dim": 8},
}  # fmt: skip
UNTIED = {"tie_word_embeddings": False}
TWO_VOCABULARIES = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 30}
BLOCK = {"heads": 2, "head_size": 4, "depth": 1, "dropout": 0.1}
BLOCKS = {"encoder_blocks": [None, BLOCK, None]}
SPECIAL = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
_INVERSE = {"scale_attn_by_inverse_layer_idx": True}
_GLOBAL = {"encoder_attention_type": "transient-global"}
_ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
CHANGES = [
    *((model_type, {}) for model_type in PICO),
    ("t5", UNTIED | {"feed_forward_proj": "gated-gelu", "num_layers": 3}),
    ("longt5", _GLOBAL),
    ("longt5", _GLOBAL | {"local_radius": 3, "global_block_size": 2}),
    ("bart", UNTIED),
    ("marian", TWO_VOCABULARIES),
    ("pegasus", {"scale_embedding": True}),
    ("gpt2", UNTIED),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", WINDOW),
    ("qwen3", WINDOW | {"tie_word_embeddings": True}),
    ("gpt2", _INVERSE | {"n_inner": 40}),
    ("gpt2", _INVERSE | {"reorder_and_upcast_attn": True, "scale_attn_weights": False,
                         "activation_function": "relu"}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "rope_parameters": _ROPE}),
    ("qwen3", {"attention_bias": True, "sliding_window": 4, "use_sliding_window": True,
               "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("t5", {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 6,
            "relative_attention_num_buckets": 6, "layer_norm_epsilon": 1e-2}),
    ("mbart", {"scale_embedding": True, "activation_function": "relu",
               "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}),
    ("bert", {"is_decoder": True, "hidden_act": "relu", "layer_norm_eps": 1e-2}),
    ("distilbert", {"sinusoidal_pos_embds": True, "activation": "relu"}),
    *((kind, BLOCKS) for kind in ("bert", "roberta", "electra", "distilbert", "bart", "marian")),
]  # fmt: skip
CASES = [(m, c, head) for m, c in CHANGES for head in load_architecture(m).HEADS]
TWO_LABELS = Messages(source="messages", labels=("refund", "delivery"))
LAYOUTS = {
    "seq2seq_lm": "pairs", "causal_lm": "joined",
    "sequence_classification": "class", "token_classification": "labels",
}  # fmt: skip
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12, 1], [13, 14, 15, 16, 17, 18, 19, 20, 1]])


def build_case(model_type: str, changes: dict, head: str) -> Checkpoint:
    torch.manual_seed(0)
    values = PICO[model_type] | SPECIAL | changes
    if head == "seq2seq_lm":
        values |= {"decoder_start_token_id": 0, "forced_eos_token_id": None}
    config = AutoConfig.for_model(model_type, **values)
    untied = changes.get("tie_word_embeddings") is False
    model = build_model(config, head, untied_head=untied).eval()
    with torch.no_grad():  # biases and norms too, so that one that gets lost shows
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Checkpoint(model, None, head)


def outputs(model: nn.Module) -> torch.Tensor:
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = IDS[:, :5]
    with torch.inference_mode():
        return next(iter(model(**given).values()))


def examples(head: str, count: int = 12) -> Examples:
    chance = random.Random(0)

    def tokens(longest: int) -> list[int]:
        return [chance.randrange(3, 30) for _ in range(chance.randrange(2, longest))] + [1]

    sources = [tokens(10) for _ in range(count)]
    if head == "sequence_classification":
        return Examples(sources, [[row % 2] for row in range(count)], LAYOUTS[head])
    if head == "token_classification":
        places = [range(0, len(source), 2) for source in sources]
        targets = [[place // 2 % 2 for place in row] for row in places]
        return Examples(sources, targets, LAYOUTS[head], [[*row] for row in places])
    return Examples(sources, [tokens(6) for _ in range(count)], LAYOUTS[head])


def reload(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    checkpoint.save(folder)
    return Checkpoint.load(folder)


def decode_sweep(
    model: PreTrainedModel, sources: list[list[int]], *, max_lengths: list[int], **options: Any
) -> dict[int, GenerationOutput]:
    """Decode with torch at each limit."""
    checkpoint = Checkpoint(model, None, "seq2seq_lm")
    return TorchModel(checkpoint).generate_each_limit(sources, max_lengths=max_lengths, **options)


def generate_rows(
    model: PreTrainedModel, sources: list[list[int]], *, max_length: int, **options: Any
) -> GenerationOutput:
    return decode_sweep(model, sources, max_lengths=[max_length], **options)[max_length]
