"""Tokenizers of every kind that can be trimmed, the rows that they read, and a T5 for each."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast, T5Config

from compressor.data.bills import Bills, make_bills
from compressor.data.tokenizers import train_tokenizer
from compressor.models.checkpoint import Checkpoint
from compressor.models.loading import build_model
from tests.support.families import TOKENIZERS

DATA = Bills(source="bills", prefix="summarize: ", rows={"train": 6, "validation": 3})
TEXTS = [text for row in make_bills(300, seed=7, split="train") for text in row.values()]
TEXTS += ["Ünïcode çafé naïve 漢字 😀 zebra quartz jumps", "[x] {y} 12,345.67 % & * § µ"]
SENTINELS = [f"<extra_id_{i}>" for i in (1, 0)]


@cache
def unigram() -> PreTrainedTokenizerFast:
    """As T5's is: scores, `▁`, sentinels at the end."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(SENTINELS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        extra_special_tokens=SENTINELS, model_max_length=77,
    )  # fmt: skip


@cache
def byte_level() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=700)


@cache
def characters_bpe() -> PreTrainedTokenizerFast:
    """BPE over characters, with the special tokens last, and ends of words marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", tokenizer.token_to_id("</s>")), ("<s>", tokenizer.token_to_id("<s>"))
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>",
        unk_token="<unk>",
    )  # fmt: skip


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    return TOKENIZERS["wordpiece"](Path())


KINDS = [unigram, byte_level, characters_bpe, wordpiece]


def t5(tokenizer, untied: bool = False, spare: int = 5) -> Checkpoint:
    """A model whose embedding has some rows more than the tokenizer has pieces, as T5's has."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    config = T5Config(
        vocab_size=len(tokenizer) + spare, d_model=16, d_kv=4, d_ff=32, num_heads=2, num_layers=1,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=end,
        decoder_start_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    model = build_model(config, "seq2seq_lm", untied_head=untied).eval()
    return Checkpoint(model, tokenizer, "seq2seq_lm")


@cache
def rows() -> list[str]:
    texts = []
    for split in ("train", "validation"):
        loaded = DATA.load(split)
        texts += [DATA.prefix + text for text in loaded.texts] + loaded.summaries
    return texts
