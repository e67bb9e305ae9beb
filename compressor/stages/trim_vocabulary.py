"""`trim_vocabulary`: pieces that the rows never use leave a model and its tokenizer.

What a tokenizer's JSON needs for that is in `compressor.data.tokenizers`.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from compressor.core.errors import StageError
from compressor.core.settings import Counted, Integer, Listed
from compressor.data.source_base import Reads, Split
from compressor.data.tokenizers import Vocabulary
from compressor.models.facts import Facts, Units
from compressor.models.quantization import SMALL_TABLE
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.models.checkpoint import Checkpoint

_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""What a generation config forbids: of these, what has left is forbidden anyway."""
_BY_TASK = "task_specific_params"
"""Where a config, such as published mBARTs', has settings of a search for each task."""


class TrimVocabulary(Stage):
    """Take the pieces that the rows never use out of embedding, head and tokenizer.

    Every text (with the data's prefix, uncut) and summary of the chosen splits encodes to the same
    pieces as before, under new ids, which is asserted by encoding all of them again; the model
    gives each piece that stays the logit it gave it before. Special tokens stay and, unless
    `characters: false`, every piece of one character: other text in them still encodes, in shorter
    pieces (T5 has some characters, such as ï, only inside longer pieces, which leave if unused).
    Pieces of lowest id, the most frequent ones of the tokenizer's own training, fill the vocabulary
    up to `keep` or `size`. Fast tokenizers of the kinds Unigram (T5), BPE and WordPiece (BERT).
    After "Load What You Need" (Abdaoui et al., 2010.05609).

    How many pieces the rows use is known after the run: without `size`, a plan can only give an
    upper bound. Where `keep` or `size` is too small for what must stay, `keep` gives way, and
    `size` is an error.

    Example: `trim_vocabulary: {multiple_of: 8}` or `trim_vocabulary: {size: 8000}`
    """

    version: ClassVar[int] = 2

    from_splits: Listed[Split] = Field(
        ("train", "validation"), min_length=1, description="Splits whose rows decide."
    )
    size: Counted | None = Field(None, description="Exactly so many rows of the embedding stay.")
    keep: Counted | None = Field(None, description="At least so many pieces stay.")
    multiple_of: Integer = Field(
        1, ge=1, description="Round the number of rows up to a multiple of this, by more pieces."
    )
    characters: bool = Field(
        True, description="Keep every piece of one character; bytes stay in any case."
    )
    sentinels: bool = Field(
        False, description="Keep T5's `<extra_id_…>`, which only its pretraining uses."
    )

    @model_validator(mode="after")
    def _has_one_size(self) -> TrimVocabulary:
        if self.size is not None and self.keep is not None:
            raise ValueError("set `size` (exactly) or `keep` (at least), not both")
        return self

    def reads(self) -> Mapping[Split, Reads]:
        return dict.fromkeys(self.from_splits, "texts")

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """The prefix: it is encoded with every text."""
        return {"prefix": planning.data.prefix}

    def preview(self, planning: Planning) -> Facts | None:
        """The exact size with `size`, else an upper bound; reports one that is too large."""
        facts = planning.facts
        if facts is None:
            return None
        if facts.quantized:
            planning.problem("", f"cannot trim {facts.quantized}; put `quantize` after it")
            return facts
        units = facts.units("vocabulary")
        if not units:
            planning.problem("", f"{facts.model_type} has no vocabulary that could be trimmed")
            return facts
        if facts.slow_tokenizer:
            planning.problem("", "cannot trim Marian's own tokenizer, which is no fast one")
            return facts
        rows = units[0].count
        for name in ("size", "keep"):
            asked = getattr(self, name)
            if asked is not None and asked > rows:
                planning.problem(name, f"{asked} is outside 1 … {rows}, the pieces there are")
                return facts
        if self.size is None:
            return replace(facts, exact_size=False, exact=facts.exact and not facts.masked)
        return facts.resize(units, self._rounded(self.size, rows))

    def _rounded(self, pieces: int, rows: int) -> int:
        """How many rows stay for so many pieces, of so many rows."""
        return min(rows, -(-pieces // self.multiple_of) * self.multiple_of)

    def smoke_test_settings(self, planning: Planning) -> Self:
        """Keep all of a small vocabulary, since few rows may use all of it."""
        small = super().smoke_test_settings(planning)
        units = planning.facts.units("vocabulary") if planning.facts else []
        if not units or units[0].count > SMALL_TABLE:
            return small
        changed = {name: units[0].count for name in ("size", "keep") if getattr(self, name)}
        return small.model_copy(update=changed)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Count, choose, cut, renumber, and encode every row again."""
        from compressor.models.surgery import keep_units

        checkpoint = inputs.checkpoint()
        old, model = checkpoint.tokenizer, checkpoint.model
        if old is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        if not old.is_fast:
            raise StageError(f"cannot trim {type(old).__name__}, which is no fast tokenizer")
        try:
            vocabulary = Vocabulary(json.loads(old.backend_tokenizer.to_str()))
        except ValueError as error:
            raise StageError(str(error)) from error
        (units,) = checkpoint.facts().units("vocabulary")
        used = Counter[int]()
        for ids in _encoded(old, context, self.from_splits):
            used.update(index for row in ids for index in row)

        configs = [model.config.to_dict()]
        if model.can_generate():
            configs.append(model.generation_config.to_dict())
        named = {i for config in configs for i in _named(config) if 0 <= i < units.count}
        if model.config.model_type == "roberta":  # counts positions from its pad's number
            named |= set(range(model.config.pad_token_id + 1))
        kept = self._choose(vocabulary, used, named, units)
        document, order = vocabulary.only(kept)
        rows = self._rows(order, named, units)
        new = {row: index for index, row in enumerate(rows)}
        pad = model.config.pad_token_id
        if model.config.model_type == "roberta" and new[pad] != pad:
            raise StageError(
                f"cannot trim this RoBERTa: it counts positions from its pad's number, {pad}, "
                f"which would be {new[pad]}"
            )

        tokenizer = _rebuilt(old, document)
        self._check(old, tokenizer, new, context)
        smaller = keep_units(checkpoint, [(units, rows)], _renumbered(configs[0], new))
        for key, value in _renumbered(configs[-1], new).items() if configs[1:] else ():
            setattr(smaller.model.generation_config, key, value)
        smaller.tokenizer = tokenizer
        context.metrics.update(
            pieces_before=len(vocabulary), pieces=len(order), pieces_used=len(used), rows=len(rows)
        )
        return smaller

    def _choose(
        self, vocabulary: Vocabulary, used: Counter[int], named: set[int], units: Units
    ) -> set[int]:
        """The ids of the pieces that stay. Raises StageError where `size` has no room for them."""
        must = vocabulary.always(characters=self.characters, sentinels=self.sentinels)
        must |= named & vocabulary.pieces.keys()
        kept = vocabulary.with_parts(must | used.keys())
        if self.size is not None and len(kept) > (room := self._rounded(self.size, units.count)):
            raise StageError(
                f"{len(kept)} pieces must stay, {len(used)} of them since the rows use them, more "
                f"than the {room} of `size`; raise it"
                + ("" if not self.characters else " or set `characters: false`")
            )
        target = self._rounded(max(self.size or 0, self.keep or 0, len(kept)), units.count)
        unused = vocabulary.pieces.keys() - kept - set(vocabulary.added.values())
        for index in sorted(unused):
            if len(kept) >= target:
                break
            more = vocabulary.with_parts([index]) - kept
            if len(kept) + len(more) <= target:
                kept |= more
        return kept

    def _rows(self, order: list[int], named: set[int], units: Units) -> list[int]:
        """Old rows of the embedding in their new order: the pieces', then what fills up."""
        rows = order + sorted(named - set(order))
        target = self._rounded(max(self.size or 0, len(rows)), units.count)
        # Rows that no piece has come first: T5's own embedding ends with 28 of them.
        spare = sorted(set(range(units.count)) - set(rows), reverse=True)
        return rows + spare[: target - len(rows)]

    def _check(
        self,
        old: PreTrainedTokenizerBase,
        new: PreTrainedTokenizerBase,
        renumbered: Mapping[int, int],
        context: Context,
    ) -> None:
        """Raise StageError where a row does not encode to the same pieces."""
        pairs = zip(
            _encoded(old, context, self.from_splits),
            _encoded(new, context, self.from_splits),
            strict=True,
        )
        for before, after in pairs:
            for row, (was, now) in enumerate(zip(before, after, strict=True)):
                if [renumbered[index] for index in was] != now:
                    raise StageError(
                        f"the trimmed tokenizer reads row {row} otherwise: "
                        f"{old.decode(was)[:60]!r}; keep more pieces with `keep`"
                    )


def _encoded(
    tokenizer: PreTrainedTokenizerBase, context: Context, splits: tuple[Split, ...]
) -> Iterator[list[list[int]]]:
    """Token ids of all texts, with their prefix, and summaries, uncut, some rows at a time."""
    from compressor.data.examples import CHUNK

    for split in splits:
        rows = context.rows(split)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            yield tokenizer([context.data.prefix + text for text in rows.texts[part]]).input_ids
            if rows.summaries:
                yield tokenizer(text_target=rows.summaries[part]).input_ids


def _rebuilt(old: PreTrainedTokenizerBase, document: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """A tokenizer that is what the JSON says: a class such as T5's would add to it when loaded."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokens = old.added_tokens_decoder.values()
    by_text = {token.content: token for token in tokens}
    there = {token["content"] for token in document["added_tokens"]}
    named = {
        name: by_text.get(token, token)
        for name, token in old.special_tokens_map.items()
        if isinstance(token, str)
    }
    new: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        extra_special_tokens=[by_text[t] for t in map(str, old.extra_special_tokens) if t in there],
        model_max_length=old.model_max_length,
        model_input_names=old.model_input_names,
        padding_side=old.padding_side,
        truncation_side=old.truncation_side,
        clean_up_tokenization_spaces=old.clean_up_tokenization_spaces,
        chat_template=getattr(old, "chat_template", None),
        **named,
    )
    languages = {name: getattr(old, name, None) for name in ("src_lang", "tgt_lang")}
    if languages["tgt_lang"] in (None, languages["src_lang"]):
        return new
    # An mBART's ends targets with another language's token, which its own class alone knows.
    with tempfile.TemporaryDirectory() as folder:
        new.save_pretrained(folder)
        again: PreTrainedTokenizerBase = type(old).from_pretrained(
            folder, trust_remote_code=False, **languages
        )
    return again


def _named(config: Mapping[str, Any]) -> set[int]:
    """The token ids that a config or generation config asks for, which must have a row."""
    named = set[int]()
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_ids")) or key == "force_words_ids":
            named |= set(_ids(value))
        elif key == "forced_decoder_ids":
            named |= {token for _, token in value or () if _is_id(token)}
        elif key == _BY_TASK:
            named |= {token for settings in (value or {}).values() for token in _named(settings)}
    return named


def _ids(value: Any) -> Iterator[int]:
    """The token ids in a setting that is one, or a list of such settings."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _ids(entry)
    elif _is_id(value):
        yield value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _renumbered(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """The settings of a config that hold token ids, with the new ones.

    What is forbidden, or made likelier, with a token that has left is left out.
    """

    def renumber(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [renumber(entry) for entry in value]
        return new.get(value, value) if _is_id(value) else value

    def remain(words: Iterable[Any]) -> list[Any]:
        return [word for word in words if all(index in new for index in _ids(word))]

    changed: dict[str, Any] = {}
    for key, value in config.items():
        if value is None:
            continue
        if key.endswith(("_token_id", "_token_ids")) or key == "force_words_ids":
            changed[key] = renumber(value)
        elif key == "forced_decoder_ids":
            changed[key] = [[position, renumber(token)] for position, token in value]
        elif key == _BY_TASK:
            changed[key] = {
                task: {**settings, **_renumbered(settings, new)} for task, settings in value.items()
            }
        elif key == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            left = [[renumber(word), bias] for word, bias in pairs if remain([word])]
            changed[key] = left or None
        elif key in _LISTS:
            changed[key] = renumber(remain(value)) or None
    return changed
