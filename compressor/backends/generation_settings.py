"""What a generation config asks of greedy and beam search.

Logits processors are transformers', in its order, on numpy arrays. The search: `beam_search`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from compressor.backends.generation_config import require_followed
from compressor.backends.outputs import Search, list_ids
from compressor.core.errors import StageError

Tokens = NDArray[np.int64]
Scores = NDArray[np.float32]


def is_one_of(tokens: Tokens, some: Sequence[int]) -> NDArray[np.bool_]:
    """Tell of each token, in an array of any shape, whether it is among some."""
    return np.isin(tokens, np.array(some, dtype=np.int64))


@dataclass(frozen=True)
class Settings:
    """Settings that decide the next token, beside the model. Lengths count what is before it."""

    eos: Sequence[int]
    max_length: int
    prompt: int = 1
    """Tokens before the first that is written: an encoder-decoder's start, a decoder's prompt."""
    min_length: int = 0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()
    forced_bos: int | None = None
    forced_eos: Sequence[int] = ()
    suppressed: Sequence[int] = ()
    suppressed_first: Sequence[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    renormalize: bool = False

    @classmethod
    def of(
        cls, config: Mapping[str, Any], search: Search, *, prompt: int | None = None
    ) -> Settings:
        """Read a generation config, as far as `search` leaves it to that.

        `prompt`: the tokens of a decoder's, which those of `search` follow; None: it begins with a
        start token, which they count. Raises StageError where a setting is not offered.
        """
        require_followed(config, "onnxruntime", greedy=True)
        eos = list_ids(config.get("eos_token_id"))
        before, counted = (1, 0) if prompt is None else (prompt, prompt)
        min_length = search.min_length and counted + search.min_length
        if not min_length:
            new = config.get("min_new_tokens")
            min_length = config.get("min_length") or 0 if new is None else before + new
        bad = (tuple(words) for words in config.get("bad_words_ids") or ())
        return cls(
            eos=eos,
            max_length=counted + search.max_length,
            prompt=before,
            min_length=min_length,
            repetition_penalty=_get_first(config, "repetition_penalty", default=1.0),
            no_repeat_ngram_size=config.get("no_repeat_ngram_size") or 0,
            bad_words=tuple(words for words in bad if len(words) > 1 or words[0] not in eos),
            forced_bos=config.get("forced_bos_token_id"),
            forced_eos=list_ids(config.get("forced_eos_token_id")) if search.forced_end else (),
            suppressed=list_ids(config.get("suppress_tokens")),
            suppressed_first=list_ids(config.get("begin_suppress_tokens")),
            length_penalty=_get_first(config, "length_penalty", default=1.0),
            early_stopping=_get_first(config, "early_stopping", default=False),
            renormalize=bool(config.get("renormalize_logits")),
        )

    def process(self, tokens: Tokens, scores: Scores) -> Scores:
        """Adjust, in place, scores [R, V] of the token after rows [R, T], prompts included."""
        length = tokens.shape[1]
        if self.repetition_penalty != 1:
            _penalize_repeated(tokens, scores, self.repetition_penalty)
        if self.no_repeat_ngram_size:
            _forbid_repeated(tokens, scores, self.no_repeat_ngram_size)
        for words in self.bad_words:
            _forbid_word(tokens, scores, words)
        if length < self.min_length:
            scores[:, list(self.eos)] = -np.inf
        if length == 1 and self.forced_bos is not None:
            _force_tokens(scores, [self.forced_bos])
        if length == self.max_length - 1 and self.forced_eos:
            _force_tokens(scores, self.forced_eos)
        scores[:, list(self.suppressed)] = -np.inf
        if length == (2 if self.prompt == 1 and self.forced_bos is not None else self.prompt):
            scores[:, list(self.suppressed_first)] = -np.inf
        return log_softmax(scores) if self.renormalize else scores


def find_start(config: Mapping[str, Any]) -> int:
    """Find the token that an encoder-decoder's text begins with. Raises StageError without one."""
    start = _get_first(config, "decoder_start_token_id", "bos_token_id")
    if not isinstance(start, int):
        message = "expected one token as decoder_start_token_id"
        raise StageError(f"generation_config.json: {message}, got {start!r}")
    return start


def log_softmax(logits: Scores) -> Scores:
    """Logits [R, V] as logarithms of the probabilities of each row."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    normed: Scores = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return normed


def _get_first(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """Get the value of the first of some settings that is set."""
    return next((config[name] for name in names if config.get(name) is not None), default)


def _force_tokens(scores: Scores, tokens: Sequence[int]) -> None:
    scores[:] = -np.inf
    scores[:, list(tokens)] = 0


def _penalize_repeated(tokens: Tokens, scores: Scores, penalty: float) -> None:
    """Make tokens that a row has less likely, also its start token."""
    rows = np.arange(len(tokens))[:, None]
    inside = np.minimum(tokens, scores.shape[1] - 1)  # of two vocabularies, the start may be beyond
    old = scores[rows, inside]
    scores[rows, inside] = np.where(old < 0, old * penalty, old / penalty)


def _forbid_repeated(tokens: Tokens, scores: Scores, size: int) -> None:
    """Forbid tokens that would complete a run of `size` tokens that the row has already."""
    if tokens.shape[1] < size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)
    ending = tokens[:, tokens.shape[1] + 1 - size :]
    rows, places = (windows[..., :-1] == ending[:, None]).all(axis=2).nonzero()
    scores[rows, windows[rows, places, -1]] = -np.inf


def _forbid_word(tokens: Tokens, scores: Scores, word: tuple[int, ...]) -> None:
    """Forbid the last token of a word to rows that end in the tokens before it."""
    *before, last = word
    if len(before) <= tokens.shape[1]:
        ending = tokens[:, tokens.shape[1] - len(before) :]
        scores[(ending == np.array(before, dtype=np.int64)).all(axis=1), last] = -np.inf
