"""The smallest configs that show everything a family of models has. Every size is another."""

from __future__ import annotations

from typing import Any

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
