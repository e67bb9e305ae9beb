"""`trim_vocabulary`: drop the tokens that the rows never use, from model and tokenizer.

`data.tokenizers` knows what a tokenizer's JSON needs for that.
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
from compressor.models.facts import Facts
from compressor.models.quantization import SMALL_TABLE
from compressor.models.structure import Units
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from compressor.models.checkpoint import Checkpoint

_FORBIDDEN = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
"""Lists of what a generation config forbids: a token that was dropped needs no entry."""
_TOKENIZER_SETTINGS = (
    *("model_max_length", "model_input_names", "padding_side", "truncation_side"),
    *("clean_up_tokenization_spaces", "chat_template"),
)
"""Settings of a tokenizer that its trimmed twin takes over."""
_BY_TASK = "task_specific_params"
"""Where a config, such as published mBARTs', has settings of a search for each task."""


class TrimVocabulary(Stage):
    """Drop the tokens that the rows never use from embedding, head and tokenizer.

    Every text (with the data's prefix, uncut) and target of the chosen splits encodes to the same
    tokens as before, under new ids: all of them are encoded again to make sure. The model gives
    each token that stays the logit it gave before. Special tokens stay and, unless
    `characters: false`, every token of one character, so that other text still encodes, in shorter
    tokens (T5 has some characters, such as ï, only inside longer tokens, which go if unused).
    Tokens of lowest id, the most frequent ones of the tokenizer's own training, fill the vocabulary
    up to `keep` or `size`. For fast tokenizers of the kinds Unigram (T5), BPE and WordPiece (BERT).
    After "Load What You Need" (Abdaoui et al., 2010.05609).

    Only a run knows how many tokens the rows use: without `size`, a plan gives an upper bound.
    Where `keep` or `size` is too small for what must stay, `keep` gives way, and `size` fails.

    Example: `trim_vocabulary: {multiple_of: 8}` or `trim_vocabulary: {size: 8000}`
    """

    version: ClassVar[int] = 2

    from_splits: Listed[Split] = Field(
        ("train", "validation"), min_length=1, description="Splits whose rows decide."
    )
    size: Counted | None = Field(None, description="Exactly so many rows of the embedding stay.")
    keep: Counted | None = Field(None, description="At least so many tokens stay.")
    multiple_of: Integer = Field(
        1, ge=1, description="Round the number of rows up to a multiple of this, by more tokens."
    )
    characters: bool = Field(
        True, description="Keep every token of one character; bytes stay in any case."
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
        """Name the prefix, which is encoded with every text."""
        return {"prefix": planning.data.prefix}

    def preview(self, planning: Planning) -> Facts | None:
        """Count exactly with `size`, else give an upper bound; report one that is too large."""
        facts = planning.facts
        if facts is None or not planning.require_float("trim"):
            return facts
        units = facts.list_units("vocabulary")
        if not units:
            planning.report("", f"{facts.model_type} has no vocabulary that could be trimmed")
            return facts
        if planning.data.messages is not None:
            planning.report("", "does not see the tokens of a chat template; leave it out")
        if facts.slow_tokenizer:
            planning.report("", "cannot trim Marian's own tokenizer, which is not a fast one")
            return facts
        rows = units[0].count
        for name in ("size", "keep"):
            count = getattr(self, name)
            if count is not None and count > rows:
                planning.report(name, f"{count} is outside 1 … {rows}, the tokens there are")
                return facts
        if self.size is None:
            return replace(facts, exact_size=False, exact=facts.exact and not facts.masked)
        return facts.resize(units, self._round_up(self.size, rows))

    def _round_up(self, count: int, rows: int) -> int:
        return min(rows, -(-count // self.multiple_of) * self.multiple_of)

    def smoke_test_settings(self, planning: Planning) -> Self:
        """Keep all of a small vocabulary, since few rows may use all of it."""
        small = super().smoke_test_settings(planning)
        units = planning.facts.list_units("vocabulary") if planning.facts else []
        if not units or units[0].count > SMALL_TABLE:
            return small
        changed = {name: units[0].count for name in ("size", "keep") if getattr(self, name)}
        return small.model_copy(update=changed)

    def run(self, inputs: Inputs, context: Context) -> Checkpoint:
        """Count tokens, choose, cut, renumber, and encode every row again."""
        from compressor.models.surgery import keep_units

        checkpoint = inputs.checkpoint()
        old, model = checkpoint.require_tokenizer(), checkpoint.model
        if not old.is_fast:
            raise StageError(f"cannot trim {type(old).__name__}, which is not a fast tokenizer")
        try:
            vocabulary = Vocabulary(json.loads(old.backend_tokenizer.to_str()))
        except ValueError as error:
            raise StageError(str(error)) from error
        (units,) = checkpoint.derive_facts().list_units("vocabulary")
        used = Counter[int]()
        for ids in _encode(old, context, self.from_splits):
            used.update(index for row in ids for index in row)

        configs = [model.config.to_dict()]
        if model.can_generate():
            configs.append(model.generation_config.to_dict())
        needed = {i for config in configs for i in _config_ids(config) if 0 <= i < units.count}
        pad = model.config.pad_token_id
        if model.config.model_type == "roberta":  # counts positions from its pad's id
            needed |= set(range(pad + 1))
        kept = self._choose(vocabulary, used, needed, units)
        document, order = vocabulary.trim(kept)
        rows = self._order_rows(order, needed, units)
        new = {row: index for index, row in enumerate(rows)}
        if model.config.model_type == "roberta" and new[pad] != pad:
            raise StageError(
                f"cannot trim this RoBERTa: it counts positions from its pad's id, {pad}, which "
                f"would be {new[pad]}"
            )
        tokenizer = _rebuild(old, document)
        self._require_same_tokens(old, tokenizer, new, context)
        smaller = keep_units(checkpoint, [(units, rows)], _renumber(configs[0], new))
        for key, value in _renumber(configs[-1], new).items() if configs[1:] else ():
            setattr(smaller.model.generation_config, key, value)
        smaller.tokenizer = tokenizer
        context.metrics.update(
            pieces_before=len(vocabulary), pieces=len(order), pieces_used=len(used), rows=len(rows)
        )
        return smaller

    def _choose(
        self, vocabulary: Vocabulary, used: Counter[int], needed: set[int], units: Units
    ) -> set[int]:
        """Choose the ids of tokens that stay. Raises StageError where `size` is too small."""
        must = vocabulary.find_required_ids(characters=self.characters, sentinels=self.sentinels)
        must |= needed & vocabulary.pieces.keys()
        kept = vocabulary.add_parts(must | used.keys())
        if self.size is not None and len(kept) > (room := self._round_up(self.size, units.count)):
            raise StageError(
                f"{len(kept)} tokens must stay, {len(used)} of them since the rows use them, more "
                f"than the {room} of `size`; raise it"
                + ("" if not self.characters else " or set `characters: false`")
            )
        target = self._round_up(max(self.size or 0, self.keep or 0, len(kept)), units.count)
        unused = vocabulary.pieces.keys() - kept - set(vocabulary.added.values())
        for index in sorted(unused):
            if len(kept) >= target:
                break
            more = vocabulary.add_parts([index]) - kept
            if len(kept) + len(more) <= target:
                kept |= more
        return kept

    def _order_rows(self, order: list[int], needed: set[int], units: Units) -> list[int]:
        """List old rows of the embedding in their new order: the tokens', then spare ones."""
        rows = order + sorted(needed - set(order))
        target = self._round_up(max(self.size or 0, len(rows)), units.count)
        # Rows of no token come first: T5's own embedding ends with 28 of them.
        spare = sorted(set(range(units.count)) - set(rows), reverse=True)
        return rows + spare[: target - len(rows)]

    def _require_same_tokens(
        self,
        old: PreTrainedTokenizerBase,
        new: PreTrainedTokenizerBase,
        ids: Mapping[int, int],
        context: Context,
    ) -> None:
        """Raise StageError where a row does not encode to the same tokens."""
        chunks = (_encode(tokenizer, context, self.from_splits) for tokenizer in (old, new))
        for before, after in zip(*chunks, strict=True):
            for row, (expected, tokens) in enumerate(zip(before, after, strict=True)):
                if [ids[index] for index in expected] != tokens:
                    raise StageError(
                        f"the trimmed tokenizer reads row {row} differently: "
                        f"{old.decode(expected)[:60]!r}; keep more tokens with `keep`"
                    )


def _encode(
    tokenizer: PreTrainedTokenizerBase, context: Context, splits: tuple[Split, ...]
) -> Iterator[list[list[int]]]:
    """Encode all texts, with their prefix, and targets, uncut, some rows at a time."""
    from compressor.data.examples import ROWS_AT_ONCE

    for split in splits:
        rows = context.rows(split)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            yield tokenizer([context.data.prefix + text for text in rows.texts[part]]).input_ids
            if rows.summaries:
                yield tokenizer(text_target=rows.summaries[part]).input_ids


def _rebuild(old: PreTrainedTokenizerBase, document: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Build a tokenizer that is what the JSON says: a class such as T5's adds to it when loaded."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    by_text = {token.content: token for token in old.added_tokens_decoder.values()}
    kept = {token["content"] for token in document["added_tokens"]}
    special = old.special_tokens_map.items()
    settings = {name: by_text.get(token, token) for name, token in special if type(token) is str}
    settings |= {name: getattr(old, name, None) for name in _TOKENIZER_SETTINGS}
    new: PreTrainedTokenizerBase = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(document)),
        extra_special_tokens=[by_text[t] for t in map(str, old.extra_special_tokens) if t in kept],
        **settings,
    )
    languages = {name: getattr(old, name, None) for name in ("src_lang", "tgt_lang")}
    if languages["tgt_lang"] in (None, languages["src_lang"]):
        return new
    # An mBART's ends targets with another language's token, which its own class alone knows.
    with tempfile.TemporaryDirectory() as folder:
        new.save_pretrained(folder)
        return type(old).from_pretrained(folder, trust_remote_code=False, **languages)


def _config_ids(config: Mapping[str, Any]) -> set[int]:
    """Collect the token ids that a config or generation config uses, which must have a row."""
    ids = set[int]()
    for key, value in config.items():
        if key.endswith(("_token_id", "_token_ids")):
            ids |= set(_ids(value))
        elif key == _BY_TASK:
            ids |= {token for settings in (value or {}).values() for token in _config_ids(settings)}
    return ids


def _ids(value: Any) -> Iterator[int]:
    """Yield the token ids in a setting that is one, or a list of such settings."""
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _ids(entry)
    elif _is_id(value):
        yield value


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _renumber(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Give the settings of a config that hold token ids the new ones.

    What is forbidden, or made likelier, with a token that was dropped is left out.
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
        if key.endswith(("_token_id", "_token_ids")):
            changed[key] = renumber(value)
        elif key == _BY_TASK:
            changed[key] = {
                task: {**settings, **_renumber(settings, new)} for task, settings in value.items()
            }
        elif key == "sequence_bias":
            pairs = value.items() if isinstance(value, Mapping) else value
            biases = [[renumber(word), bias] for word, bias in pairs if remain([word])]
            changed[key] = biases or None
        elif key in _FORBIDDEN:
            changed[key] = renumber(remain(value)) or None
    return changed
