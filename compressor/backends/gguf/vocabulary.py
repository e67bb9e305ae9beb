"""A fast tokenizer as the vocabulary of a GGUF file. Only what llama.cpp reads alike is taken."""

from __future__ import annotations

import base64
import json
from itertools import product
from typing import TYPE_CHECKING, Any

from compressor.core.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace("{1,3}", ""): "qwen2"}
"""How Llama 3 and Qwen 2 and 3 cut a text before the merges → llama.cpp's name of it."""
_DIGITS = {"type": "Digits", "individual_digits": True}
_EXTRA_SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
"""Spaces or "▁" are put in their place; Metaspace makes both the same."""
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}


def add_vocabulary(writer: Any, tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
    """Add a tokenizer to a GGUF writer; `rows` are the embedding's, each of which needs a token.

    Taken are byte-level BPE as GPT-2, SmolLM, Llama 3 and Qwen have it, and T5's unigram model.
    Raises StageError for any other.
    """
    if tokenizer is None:
        raise StageError("a GGUF file holds its tokenizer, and the model has none")
    if not tokenizer.is_fast:
        raise StageError("the tokenizer must be a fast one")
    if tokenizer.eos_token_id is None:
        raise StageError("the tokenizer has no eos token, and llama.cpp would take another for it")
    saved = json.loads(tokenizer.backend_tokenizer.to_str())
    if saved["model"]["type"] == "BPE":
        _add_bpe(writer, saved)
    elif saved["model"]["type"] == "Unigram":
        _add_unigram(writer, saved, rows)
    else:
        raise _refuse_unknown(f"the model {saved['model']['type']}")
    _add_tokens(writer, tokenizer, saved, rows)
    _add_specials(writer, tokenizer)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _refuse_unknown(what: str) -> StageError:
    known = "byte-level BPE as GPT-2, SmolLM, Llama 3 and Qwen have it, and T5's unigram model"
    return StageError(
        f"llama.cpp would read texts otherwise: the tokenizer has {what}; it has {known}"
    )


def _add_bpe(writer: Any, saved: dict[str, Any]) -> None:
    """Add a BPE model. llama.cpp does not normalize; Qwen's NFC passes, as in its own files."""
    model, normalizer = saved["model"], saved["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refuse_unknown(f"the normalizer {normalizer['type']}")
    split = _name_split(saved["pre_tokenizer"])
    if bool(model.get("ignore_merges")) != (split == "llama-bpe"):
        raise _refuse_unknown(f"ignore_merges: {model.get('ignore_merges')}")
    if model.get("byte_fallback"):
        raise _refuse_unknown("byte_fallback")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    writer.add_token_merges(list(merges))


def _name_split(pre: dict[str, Any] | None) -> str:
    """Give llama.cpp's name of how a text is cut before the merges."""
    steps = (pre or {}).get("pretokenizers", [pre or {"type": "none"}])
    *before, last = steps
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        if last["use_regex"] and before in ([], [_DIGITS]):
            return "smollm" if before else "gpt-2"
        if len(before) == 1 and not last["use_regex"]:
            split = before[0]
            name = _SPLITS.get(split.get("pattern", {}).get("Regex"))
            if name and split["behavior"] == "Isolated" and not split["invert"]:
                return name
    raise _refuse_unknown(f"the pre-tokenizer {' + '.join(step['type'] for step in steps)}")


def _add_unigram(writer: Any, saved: dict[str, Any], rows: int) -> None:
    model, (charsmap, one_space) = saved["model"], _read_normalizer(saved["normalizer"])
    if model.get("byte_fallback"):
        raise _refuse_unknown("byte_fallback")
    pre = saved["pre_tokenizer"] or {}
    *before, last = pre.get("pretokenizers", [pre])
    splits = [step["type"] for step in before]
    if not last.items() >= _METASPACE.items() or splits not in ([], ["WhitespaceSplit"]):
        raise _refuse_unknown(
            "another pre-tokenizer than Metaspace, alone or after WhitespaceSplit"
        )
    if splits and charsmap is None:  # which makes spaces of tabs and new lines
        raise _refuse_unknown("WhitespaceSplit and no Precompiled normalizer")
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_add_space_prefix(True)
    writer.add_remove_extra_whitespaces(one_space or bool(splits))
    if charsmap:
        writer.add_precompiled_charsmap(charsmap)
    scores = [float(score) for _, score in model["vocab"]]
    writer.add_token_scores((scores + [-1000.0] * rows)[:rows])


def _read_normalizer(saved: dict[str, Any] | None) -> tuple[bytes | None, bool]:
    """Read SentencePiece's map of characters, and whether several spaces are made one."""
    steps = (saved or {}).get("normalizers", [saved] if saved else [])
    charsmap, one_space = None, False
    for step in steps:
        if step["type"] == "Precompiled":
            charsmap = base64.b64decode(step["precompiled_charsmap"])
        elif step.items() >= _EXTRA_SPACES.items():
            one_space = True
        else:
            raise _refuse_unknown(f"the normalizer {step['type']}")
    return charsmap, one_space


def _add_tokens(
    writer: Any, tokenizer: PreTrainedTokenizerBase, saved: dict[str, Any], rows: int
) -> None:
    """Add the text and the kind of each row's token; a row without one gets an unused token."""
    from gguf import TokenType

    texts = {index: text for text, index in tokenizer.get_vocab().items()}
    if max(texts) >= rows:
        raise StageError(f"the tokenizer has a token {max(texts)}, the model {rows} rows")
    added = {token["id"]: token["special"] for token in saved["added_tokens"]}
    kinds = []
    for index in range(rows):
        if index not in texts:
            kinds.append(TokenType.UNUSED)
        elif index in added:
            kinds.append(TokenType.CONTROL if added[index] else TokenType.USER_DEFINED)
        else:
            kinds.append(TokenType.NORMAL)
    if saved["model"]["type"] == "Unigram" and saved["model"].get("unk_id") is not None:
        kinds[saved["model"]["unk_id"]] = TokenType.UNKNOWN
    writer.add_token_list([texts.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types(kinds)


def _add_specials(writer: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the special tokens, and which of them the tokenizer puts around a text."""
    for name in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    around = tokenizer("a")["input_ids"]
    for begins, ends in product((False, True), repeat=2):
        bos, eos = [tokenizer.bos_token_id] * begins, [tokenizer.eos_token_id] * ends
        if around == [*bos, *bare, *eos]:
            writer.add_add_bos_token(begins)
            writer.add_add_eos_token(ends)
            return
    raise _refuse_unknown("other tokens around a text than bos and eos")
