"""Trim a tokenizer's JSON, and train a tokenizer. Neither data nor the model are known here.

The ids of what stays are renumbered in their old order. Three models are understood, as the
`tokenizers` library writes them: Unigram (T5), BPE (byte-level or not) and WordPiece (BERT).
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


KINDS = ("Unigram", "BPE", "WordPiece")

_SENTINEL = re.compile(r"<extra_id_\d+>")

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """The pieces in a tokenizer's JSON, and what each of them needs beside it.

    Raises ValueError for a model that is none of `KINDS`.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document, self.model = document, document["model"]
        self.kind = str(self.model.get("type"))
        if self.kind not in KINDS:
            raise ValueError(f"cannot trim a {self.kind} tokenizer, only {', '.join(KINDS)}")
        self.added: dict[str, int] = {t["content"]: t["id"] for t in document["added_tokens"]}
        vocab = self.model["vocab"]
        if self.kind == "Unigram":
            vocab = {piece: index for index, (piece, _) in enumerate(vocab)}
        self.model_ids: dict[str, int] = vocab
        self.ids = vocab | self.added
        self.pieces = {index: piece for piece, index in self.ids.items()}
        self._parts = self._list_parts()

    def __len__(self) -> int:
        return len(self.ids)

    def find_required_ids(self, *, characters: bool, sentinels: bool) -> set[int]:
        """List ids that stay whatever the rows say: special tokens, bytes, what decides of others.

        `characters`: every piece of one character too, so that other text in them still encodes.
        `sentinels`: T5's `<extra_id_…>` too, which only its pretraining reads.
        """
        kept = {
            index for token, index in self.added.items() if sentinels or not _SENTINEL.match(token)
        }
        unknown = self.model.get("unk_token")
        if unknown in self.ids:
            kept.add(self.ids[unknown])
        if self.kind == "Unigram":
            if self.model["unk_id"] is not None:
                kept.add(self.model["unk_id"])
            # A character that is no piece costs 10 less than the lowest score of all pieces: as
            # long as that piece stays, no split of a text gets better than it was.
            scores = [score for _, score in self.model["vocab"]]
            kept.add(scores.index(min(scores)))
        if self.model.get("byte_fallback"):
            kept |= {index for piece, index in self.model_ids.items() if _BYTE.fullmatch(piece)}
        if characters or _is_byte_level(self.document):
            kept |= {
                index for piece, index in self.model_ids.items() if len(self._bare(piece)) == 1
            }
        return kept

    def add_parts(self, ids: Iterable[int]) -> set[int]:
        """Add to `ids`, in BPE, every piece that a merge on the way to one of them joins.

        With all of them, a text whose pieces are kept is merged step for step as it was: no merge
        that it took is gone, and none has come before another.
        """
        closure, pending = set[int](), list(ids)
        while pending:
            index = pending.pop()
            if index not in closure:
                closure.add(index)
                pending += self._parts.get(index, ())
        return closure

    def trim(self, kept: set[int]) -> tuple[dict[str, Any], list[int]]:
        """Give the JSON with only `kept`, and their old ids in the order of the new ones.

        `kept` holds its own parts. The model's own pieces come first, then the added tokens that
        it lacks, as the `tokenizers` library numbers them.
        """
        of_model = set(self.model_ids.values())
        order = sorted(kept & of_model) + sorted(kept - of_model)
        new = {old: index for index, old in enumerate(order)}
        # The deep parts (thousands of pieces, a charsmap) that do not change need no copy.
        document = {**self.document, "model": dict(self.model)}
        model = document["model"]
        if self.kind == "Unigram":
            model["vocab"] = [self.model["vocab"][old] for old in order if old in of_model]
            if model["unk_id"] is not None:
                model["unk_id"] = new[model["unk_id"]]
        else:
            model["vocab"] = {self.pieces[old]: new[old] for old in order if old in of_model}
        if self.kind == "BPE":
            merges = self.model["merges"]
            model["merges"] = [m for m in merges if self.ids.get(self._apply_merge(m)) in new]
        document["added_tokens"] = [
            {**token, "id": new[token["id"]]}
            for token in self.document["added_tokens"]
            if token["id"] in new
        ]
        for part in ("post_processor", "padding"):
            document[part] = self._renumber(copy.deepcopy(self.document[part]), new)
        return document, order

    def _bare(self, piece: str) -> str:
        """Strip from a piece what marks that it goes on, or ends, a word."""
        prefix = self.model.get("continuing_subword_prefix") or ""
        suffix = self.model.get("end_of_word_suffix") or ""
        return piece.removeprefix(prefix).removesuffix(suffix) or piece

    def _apply_merge(self, merge: str | list[str]) -> str:
        left, right = _split_merge(merge)
        return left + right.removeprefix(self.model.get("continuing_subword_prefix") or "")

    def _list_parts(self) -> dict[int, list[int]]:
        """Map an id to the ids of both parts of each merge that makes it; nothing but for BPE."""
        parts: dict[int, list[int]] = {}
        for merge in self.model.get("merges") or ():
            ids = parts.setdefault(self.ids[self._apply_merge(merge)], [])
            ids += [self.ids[part] for part in _split_merge(merge)]
        return parts

    def _renumber(self, node: Any, new: Mapping[int, int]) -> Any:
        """Renumber a post-processor or padding; both name each token beside its id."""
        if isinstance(node, list):
            if len(node) == 2 and isinstance(node[0], str) and node[1] == self.ids.get(node[0]):
                return [node[0], new[node[1]]]  # Bert's and Roberta's ["[SEP]", 102]
            return [self._renumber(item, new) for item in node]
        if isinstance(node, dict):
            node = {key: self._renumber(value, new) for key, value in node.items()}
            if "ids" in node and "tokens" in node:  # TemplateProcessing's special tokens
                node["ids"] = [new[index] for index in node["ids"]]
            if "pad_id" in node:
                node["pad_id"] = new.get(node["pad_id"], 0)
        return node


def _split_merge(merge: str | list[str]) -> tuple[str, str]:
    """Split a merge: "a b" in old files, ["a", "b"] in new ones."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _is_byte_level(document: Mapping[str, Any]) -> bool:
    """Tell whether texts come to the model as bytes, each written as one character."""
    return '"type": "ByteLevel"' in json.dumps([document["pre_tokenizer"], document["decoder"]])


SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
"""In the order of their ids: 0, 1 and 2, as in T5."""

_BYTES = 256

_NO_LIMIT = 10**30  # what transformers itself writes for "no maximum"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of at most `vocab_size` tokens, special ones included.

    The same texts in the same order give the same tokenizer. Any text is encoded without
    `<unk>`, ends with `</s>`, and decodes (special tokens skipped) to exactly what it was.
    Raises ValueError where `vocab_size` cannot hold the 256 bytes and the special tokens.
    """
    # Imported here: the two take seconds, and a plan only needs this module's name.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = _BYTES + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least {smallest}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    pad, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=eos,
        unk_token=unk,
        model_max_length=_NO_LIMIT,
        clean_up_tokenization_spaces=False,
    )
