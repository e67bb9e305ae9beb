"""A pico model of every family, as a hub publishes it: a directory of plain transformers' files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Sequence, WhitespaceSplit
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from compressor.data import bills, messages

TEXTS = [
    *(text for row in bills.make_bills(60, seed=0, split="train") for text in row.values()),
    *(text for text, _ in messages.make_messages(60, seed=0, split="train", single=True)),
]
AUTO = {
    "seq2seq_lm": "AutoModelForSeq2SeqLM",
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
}
CLASSIFIER, TAGGER = "sequence_classification", "token_classification"
TAGS = ("O", "B-X", "I-X")


@dataclass(frozen=True)
class Family:
    """A row of the table: a model, and where plain transformers keeps its parts."""

    model_type: str
    head: str
    config: Mapping[str, Any]
    tokenizer: str
    """Its name in `TOKENIZERS`."""
    stacks: Mapping[str, str]
    """Stack → the name of its list of layers."""
    neurons: tuple[str, ...]
    """How the matrices of a feed-forward layer end that write neurons, and, last, that reads."""
    attention: str
    """A regular expression for the matrices of self-attention."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    task: str = "summarization"

    @property
    def is_labelled(self) -> bool:
        return self.head in (CLASSIFIER, TAGGER)

    @property
    def auto_class(self) -> Any:
        """The class of transformers that loads it."""
        return getattr(transformers, AUTO[self.head])


T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "max_position_embeddings": 128, "dropout": 0.0,
}  # fmt: skip
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
LLAMA = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 128,
}  # fmt: skip
DISTILBERT = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 128,
    "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip

_T5_STACKS = {"encoder": "encoder.block", "decoder": "decoder.block"}
_T5_ATTENTION = r"SelfAttention\.[qkvo]\."
_BART_STACKS = {"encoder": "model.encoder.layers", "decoder": "model.decoder.layers"}
_BART_ATTENTION = r"self_attn\.(q|k|v|out)_proj\.weight"


def _t5(model_type: str, **values: Any) -> Family:
    gated = "gated" in values.get("feed_forward_proj", "") or model_type == "mt5"
    neurons = ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")
    parts = (_T5_STACKS, neurons, _T5_ATTENTION)
    return Family(model_type, "seq2seq_lm", T5 | values, "sentencepiece", *parts)


def _bart(model_type: str, tokenizer: str, generation: Mapping[str, Any], **values: Any) -> Family:
    parts = (_BART_STACKS, ("fc1", "fc2"), _BART_ATTENTION)
    return Family(model_type, "seq2seq_lm", BART | values, tokenizer, *parts, generation)


def _bert(model_type: str, tokenizer: str, **values: Any) -> Family:
    stacks = {"encoder": f"{model_type}.encoder.layer"}
    neurons = ("intermediate.dense", "layer.\\d.output.dense")
    attention = r"attention\.(self\.(query|key|value)|output\.dense)\.weight"
    parts = (BERT | values, tokenizer, stacks, neurons, attention)
    return Family(model_type, CLASSIFIER, *parts, task="multi_label")


def _decoder(model_type: str, head: str, **values: Any) -> Family:
    task = "single_label" if head == "sequence_classification" else "summarization"
    if model_type == "gpt2":
        stacks, neurons = {"decoder": "transformer.h"}, ("mlp.c_fc", "mlp.c_proj")
        attention = r"attn\.(c_attn|c_proj)\.weight"
    else:
        stacks, neurons = {"decoder": "model.layers"}, ("gate_proj", "up_proj", "down_proj")
        attention = r"self_attn\.(q|k|v|o)_proj\.weight"
    tokenizer = {"gpt2": "gpt2", "llama": "llama3"}.get(model_type, "qwen")
    config = (GPT2 if model_type == "gpt2" else LLAMA) | values
    return Family(model_type, head, config, tokenizer, stacks, neurons, attention, task=task)


UNTIED = {"tie_word_embeddings": False}
GATED = {"feed_forward_proj": "gated-gelu"}
SCALED = {"scale_embedding": True}
SIX, LONGER = {"num_beams": 6}, {"num_beams": 8, "length_penalty": 0.8}
BEAMS = {"num_beams": 4, "early_stopping": True}

ENCODERS: Mapping[str, Family] = {
    "BERT": _bert("bert", "wordpiece"),
    "RoBERTa": _bert("roberta", "roberta", max_position_embeddings=130),
    "DistilBERT": Family(
        "distilbert", CLASSIFIER, DISTILBERT, "wordpiece",
        {"encoder": "distilbert.transformer.layer"}, ("ffn.lin1", "ffn.lin2"),
        r"attention\.(q|k|v|out)_lin\.weight", task="multi_label",
    ),
    "ELECTRA": _bert("electra", "wordpiece", embedding_size=16),
}  # fmt: skip
FAMILIES: Mapping[str, Family] = {
    "T5": _t5("t5"),
    "T5 v1.1": _t5("t5", **GATED, **UNTIED),
    "mT5": _t5("mt5", **UNTIED),
    "LongT5": _t5("longt5", encoder_attention_type="transient-global", **GATED, **UNTIED),
    "LongT5 local": _t5("longt5", encoder_attention_type="local", **GATED, **UNTIED),
    "BART": _bart("bart", "roberta", BEAMS | {"forced_eos_token_id": 2}),
    "BART untied": _bart("bart", "roberta", BEAMS | {"forced_eos_token_id": 2}, **UNTIED),
    "mBART": _bart("mbart", "mbart", BEAMS | {"forced_eos_token_id": 2}, **SCALED),
    "Pegasus": _bart("pegasus", "pegasus", LONGER | {"forced_eos_token_id": 1}, **SCALED),
    "Marian": _bart("marian", "marian", SIX | {"forced_eos_token_id": 0}, **SCALED),
    "Marian, 2 vocabularies": _bart(
        "marian", "marian_two", SIX | {"forced_eos_token_id": 0},
        share_encoder_decoder_embeddings=False, **UNTIED,
    ),
    **ENCODERS,
    **{f"{n} of words": replace(f, head=TAGGER, task=TAGGER) for n, f in ENCODERS.items()},
    "GPT-2": _decoder("gpt2", "causal_lm"),
    "Llama": _decoder("llama", "causal_lm"),
    "Qwen2": _decoder("qwen2", "causal_lm", tie_word_embeddings=True),
    "Qwen3": _decoder("qwen3", "causal_lm", head_dim=12),
    "GPT-2 classifier": _decoder("gpt2", CLASSIFIER),
    "Llama classifier": _decoder("llama", CLASSIFIER),
    "Qwen2 classifier": _decoder("qwen2", CLASSIFIER),
    "Qwen3 classifier": _decoder("qwen3", CLASSIFIER, head_dim=12),
}  # fmt: skip


@cache
def _unigram(size: int = 260) -> list[tuple[str, float]]:
    """Pieces of one SentencePiece-like training, without special ones."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=size, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(piece, score) for piece, score in vocabulary if piece != "<unk>"]


@cache
def _bpe(specials: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    about: Any = {"initial_alphabet": sorted(ByteLevel.alphabet()), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(specials), **about)
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


@cache
def _charsmap() -> bytes:
    """SentencePiece's own map of characters, which it puts into every model that it trains."""
    from sentencepiece import SentencePieceTrainer, sentencepiece_model_pb2

    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=100,
        hard_vocab_limit=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(written.getvalue())
    charsmap: bytes = model.normalizer_spec.precompiled_charsmap
    return charsmap


def _sentencepiece() -> PreTrainedTokenizerBase:
    """T5's: pad, end, unknown, pieces, sentinels."""
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    last = [(f"<extra_id_{i}>", 0.0) for i in reversed(range(4))]
    tokenizer = transformers.T5Tokenizer(vocab=[*first, *_unigram(), *last], extra_ids=4)
    tokenizer.backend_tokenizer.normalizer = normalizers.Precompiled(_charsmap())
    return tokenizer


def _pegasus() -> PreTrainedTokenizerBase:
    """Pegasus': pad, end, masks, unknown."""
    first = ("<pad>", "</s>", "<mask_1>", "<mask_2>", "<unk_2>", "<unk>")
    vocabulary = [*((piece, 0.0) for piece in first), *_unigram()]
    return transformers.PegasusTokenizer(vocab=vocabulary, offset=3)


def _mbart() -> PreTrainedTokenizerBase:
    """mBART's: its languages after the pieces, and after each text."""
    from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

    first = ("<s>", "<pad>", "</s>", "<unk>")
    last = (*FAIRSEQ_LANGUAGE_CODES, "<mask>")
    vocabulary = [*((p, 0.0) for p in first), *_unigram(), *((p, 0.0) for p in last)]
    return transformers.MBartTokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="en_XX")


@cache
def _wordpiece() -> dict[str, int]:
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = transformers.BertTokenizer().backend_tokenizer
    about: Any = {"special_tokens": specials, "show_progress": False}
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, **about))
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _byte_level(name: str, *specials: str) -> PreTrainedTokenizerBase:
    """RoBERTa's and BART's, between <s> and </s>; GPT-2's, without a pad; Qwen's."""
    vocabulary, merges = _bpe(specials)
    return getattr(transformers, name)(vocab=vocabulary, merges=merges)


def _llama3() -> PreTrainedTokenizerBase:
    """Llama 3's: byte-level, after a bos."""
    begin, end = "<|begin_of_text|>", "<|end_of_text|>"
    vocabulary, merges = _bpe((begin, end))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, eos_token=end)


def _marian(folder: Path, *, separate: bool = False) -> PreTrainedTokenizerBase:
    """OPUS-MT's: two SentencePiece models, and a vocabulary of both or one for each."""
    import sentencepiece

    pieces = []
    for name, texts in (("source", TEXTS[0::2]), ("target", TEXTS[1::2])):
        lines = folder / f"{name}.txt"
        lines.write_text("\n".join(texts), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(lines), model_prefix=str(folder / name), vocab_size=200, bos_id=-1,
            pad_id=-1, hard_vocab_limit=False, minloglevel=2, num_threads=1,
        )  # fmt: skip
        lines.unlink()
        (folder / f"{name}.vocab").unlink()
        (folder / f"{name}.model").rename(folder / f"{name}.spm")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / f"{name}.spm"))
        pieces.append([processor.id_to_piece(i) for i in range(processor.vocab_size())])
    parts = pieces if separate else [[*pieces[0], *pieces[1]]]
    names = ("vocab.json", "target_vocab.json")
    for name, part in zip(names, parts, strict=False):
        known = [p for p in dict.fromkeys(part) if p not in ("<s>", "</s>", "<unk>")]
        ids = {piece: i for i, piece in enumerate(["</s>", "<unk>", *known, "<pad>"])}
        (folder / name).write_text(json.dumps(ids), encoding="utf-8")
    settings = {"source_lang": "en", "target_lang": "xx", "separate_vocabs": separate}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "MarianTokenizer"}), encoding="utf-8"
    )
    return transformers.MarianTokenizer.from_pretrained(folder)


TOKENIZERS: Mapping[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "sentencepiece": lambda _: _sentencepiece(),
    "pegasus": lambda _: _pegasus(),
    "mbart": lambda _: _mbart(),
    "roberta": lambda _: _byte_level("RobertaTokenizer", "<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "wordpiece": lambda _: transformers.BertTokenizer(vocab=_wordpiece()),
    "gpt2": lambda _: _byte_level("GPT2Tokenizer", "<|endoftext|>"),
    "qwen": lambda _: _byte_level("Qwen2Tokenizer", "<|endoftext|>"),
    "llama3": lambda _: _llama3(),
    "marian": _marian,
    "marian_two": partial(_marian, separate=True),
}


def vary(model: nn.Module, seed: int, deviation: float) -> None:
    """Large weights, and norms and biases that are not all alike, so that a lost one shows.

    With weights twice as large, rounding alone makes a few steps of training part by a percent. T5
    does not divide by the square root of a head's size, which here is about 3.
    """
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if parameter.dim() > 1:
                table = any(part in name for part in ("shared", "embed", "wte", "wpe"))
                parameter.normal_(std=0.3 if table else deviation)
            elif name.endswith("weight"):
                parameter.normal_(1, 0.1)
            else:
                parameter.normal_(0, 0.2)


def write(family: Family, folder: Path, *, seed: int = 0) -> Path:
    """A directory with model and tokenizer, as `save_pretrained` leaves it."""
    folder.mkdir(parents=True)
    tokenizer = TOKENIZERS[family.tokenizer](folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    pad = tokenizer.pad_token_id
    ids["pad_token_id"] = ids["eos_token_id"] if pad is None else pad
    values: dict[str, Any] = {"vocab_size": len(tokenizer), **ids}
    if family.tokenizer == "sentencepiece":
        values["vocab_size"] += 7  # rows that no piece has, as T5's table has 28
    if family.model_type == "bart":
        values["decoder_start_token_id"] = ids["eos_token_id"]
    if family.model_type == "pegasus":
        values["decoder_start_token_id"] = pad
    if family.model_type == "mbart":
        values["decoder_start_token_id"] = tokenizer.convert_tokens_to_ids("en_XX")
    if family.model_type == "marian":
        values |= {"decoder_start_token_id": pad, "bos_token_id": 0}
        values["decoder_vocab_size"] = max(tokenizer.decoder) + 1
    if family.is_labelled:
        names = TAGS if family.head == TAGGER else messages.LABELS
        values |= {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }
    if family.head == CLASSIFIER:
        values["problem_type"] = f"{family.task}_classification"
    config = AutoConfig.for_model(family.model_type, **values | dict(family.config))
    model = family.auto_class.from_config(config)
    vary(model, seed, 0.15 if family.tokenizer == "sentencepiece" else 0.25)
    if model.can_generate():
        model.generation_config.update(**family.generation)
    model.save_pretrained(folder)
    if not (folder / "source.spm").is_file():
        tokenizer.save_pretrained(folder)
    return folder
