"""Pico models of every family that is exported, with weights so large that outputs hang on all."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedTokenizerFast

from compressor.backends.base import Model
from compressor.backends.formats import FORMATS
from compressor.backends.torch.model import TorchModel
from compressor.data.source_base import DataBase
from compressor.data.tokenizers import train_tokenizer
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from compressor.stages.base import Context, Inputs, Launch
from compressor.stages.export import Export

LIMITS = [3, 9, 24]
EOS, PAD = 1, 0
TEXTS = ["some bills and the words of bills"] * 3
IN_GGUF = set[str]().union(*FORMATS["gguf"].models.values())  # type: ignore[union-attr]
T5_LIKE: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 3, "num_layers": 3, "num_decoder_layers": 2,
    "initializer_factor": 2.0,
}  # fmt: skip
BART_LIKE: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_layers": 3, "decoder_attention_heads": 4, "decoder_ffn_dim": 40, "init_std": 0.3,
    "max_position_embeddings": 64,
}  # fmt: skip
ENCODER: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
    "max_position_embeddings": 66, "initializer_range": 0.3, "num_labels": 3,
}  # fmt: skip
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "t5": T5_LIKE,
    "mt5": T5_LIKE,
    "bart": BART_LIKE | {"tie_word_embeddings": False},
    "mbart": BART_LIKE,
    "pegasus": BART_LIKE,
    "marian": BART_LIKE | {"tie_word_embeddings": False, "init_std": 1.0},
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": {
        "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 66,
        "initializer_range": 0.3, "num_labels": 3,
    },
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64, "n_inner": 48,
        "initializer_range": 0.3,
    },
    "llama": LLAMA_LIKE | {"head_dim": 12},
    "qwen2": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE | {"head_dim": 12},
}  # fmt: skip


def build_large(model_type: str, seed: int = 0, **values: Any) -> Checkpoint:
    """A model with large fresh weights and a tokenizer of 280 tokens, 7 fewer than its rows."""
    tokenizer, more, pad = train_tokenizer(TEXTS, vocab_size=280), 7, PAD
    if model_type == "marian":  # its pad is the last token, and starts a decode
        text = tokenizer.backend_tokenizer.to_str().replace('"<pad>"', '"<first>"')
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(text), pad_token="<pad>", eos_token="</s>",
            unk_token="<unk>",
        )  # fmt: skip
        more, pad = 0, len(tokenizer) - 1
    head: Any = next(
        head
        for name in ("ctranslate2", "gguf")
        for head, families in FORMATS[name].models.items()
        if model_type in families
    )
    special = {"vocab_size": len(tokenizer) + more, "pad_token_id": pad, "eos_token_id": EOS}
    if head != "sequence_classification":
        special |= {"bos_token_id": EOS, "decoder_start_token_id": pad}
    config = AutoConfig.for_model(model_type, **special | SHAPES[model_type] | values)
    torch.manual_seed(seed)
    model = build_model(config, head).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if (
                parameter.ndim == 1 and model_type in IN_GGUF
            ):  # norms and biases, all alike in a fresh model
                parameter.add_(0.3 * torch.randn_like(parameter))
            if name == "lm_head.weight" and head == "seq2seq_lm":
                parameter.normal_()
        if model_type == "marian":  # a pad's row is zero until it is trained
            model.model.decoder.embed_tokens.weight[pad].normal_(std=2)
    if head == "seq2seq_lm":
        model.generation_config.forced_eos_token_id = None
        model.generation_config.update(
            eos_token_id=EOS, pad_token_id=config.pad_token_id, decoder_start_token_id=pad
        )
    return Checkpoint(model, tokenizer, head)


def sources(count: int = 10) -> list[list[int]]:
    """Rows of 3 to 40 tokens."""
    draw = random.Random(0)
    return [
        [draw.randrange(3, 270) for _ in range(draw.randrange(2, 40))] + [EOS] for _ in range(count)
    ]


def assert_same_tokens(model: Model, checkpoint: Checkpoint) -> None:
    """At every limit what torch gives, cut off where that is; different tokens in each row."""
    expected = TorchModel(checkpoint).generate_each_limit(sources(), max_lengths=LIMITS)
    swept = model.generate_each_limit(sources(), max_lengths=LIMITS)
    rows = {tuple(row) for row in expected[24].tokens}
    assert len(rows) > 3 and len({token for row in rows for token in row}) > 4, "too alike to tell"
    for limit in LIMITS:
        assert swept[limit].tokens == expected[limit].tokens
        assert swept[limit].cut_off == expected[limit].cut_off


def export(model: Checkpoint, folder: Path, data: DataBase, kind: Any, weights: Any) -> Path:
    """What the stage writes, its gate left out."""
    model.save(folder / "saved")
    context = Context(folder, folder, data, 0, Launch(), progress=None, name="it")  # type: ignore[arg-type]
    Export(format=kind, weights=weights, parity=None).run(Inputs(folder / "saved"), context)
    return folder / "model"


def summarize_alone(folder: Path, texts: list[str]) -> list[str]:
    """By a process that imports neither torch nor transformers."""
    code = (
        "import json, sys, compressor;"
        "loaded = compressor.load(sys.argv[1]);"
        "print(json.dumps(loaded.summarize(json.loads(sys.stdin.read()))));"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'"
    )
    run = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(run, input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
