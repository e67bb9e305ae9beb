"""Decoding of encoder-decoder models for evaluation, many length limits from one decode; no text, no metrics.

Whatever decides the next token (encoder, logits processors, start and end tokens) is `generate`'s
own. Only its greedy loop is replaced, by one that stops computing rows that have ended; measured
without ended rows the two loops are equally fast. Sampling is not offered: it has no one answer.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation import logits_process

BATCH_TOKENS = 16_384
"""Source and target positions in one batch: 0.4 GB of float32 cache for T5-small, 1.6 GB for BART-large."""

DROP_SHARE = 0.125
"""Rows leave the batch once this share of it has ended. Dropping copies the cache, about the price
of a third of a step, so that an eighth fewer rows has paid for it within three steps."""

# These score each row by its own tokens and hold nothing per row, so rows may leave under them.
# The others (the encoder_* ones, classifier-free guidance, a user's own) keep the batch whole.
_ROWWISE = frozenset({
    logits_process.ExponentialDecayLengthPenalty,
    logits_process.ForcedBOSTokenLogitsProcessor,
    logits_process.ForcedEOSTokenLogitsProcessor,
    logits_process.InfNanRemoveLogitsProcessor,
    logits_process.LogitNormalization,
    logits_process.MinLengthLogitsProcessor,
    logits_process.MinNewTokensLengthLogitsProcessor,
    logits_process.NoBadWordsLogitsProcessor,
    logits_process.NoRepeatNGramLogitsProcessor,
    logits_process.RepetitionPenaltyLogitsProcessor,
    logits_process.SequenceBiasLogitsProcessor,
    logits_process.SuppressTokensAtBeginLogitsProcessor,
    logits_process.SuppressTokensLogitsProcessor,
})  # fmt: skip

# `generate` applies these after the forced last token, so that it need not be the one that wins.
_AFTER_FORCED_EOS = (
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """Generated rows under one `max_length`, in the order of the sources.

    `tokens`: without the decoder start token and padding, with the end token where there is one.
    `cut_off`: whether the limit, not the model, ended the row; such a row may still end in a
    *forced* end token. `seconds` and `generated` (tokens) are of the decode that the rows were
    taken from, which in a sweep may be the decode of a longer limit.
    """

    tokens: list[list[int]]
    cut_off: list[bool]
    seconds: float
    generated: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens generated per second of the decode behind these rows, its encoder included."""
        return self.generated / self.seconds if self.seconds else 0.0


def decode(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    max_length: int,
    num_beams: int = 1,
    min_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Decoded:
    """What `model.generate(do_sample=False, ...)` gives for each source, token for token.

    `sources` are token ids, end token included. `max_length` counts the decoder start token, as in
    Hugging Face: 20 gives at most 19 new tokens. `min_length=None` leaves it to the model's
    generation config, as is everything else there but its lengths, beams, sampling and kind of
    cache. A batch holds at most `batch_tokens` positions (source + `max_length`, padded, times
    beams), though always one row. `device` moves the model, which stays there. `progress` is
    called with the number of rows just done.

    Rows are batched by length: in float32 another batch changes logits by 1e-6, and so can turn
    an exact tie between two tokens. Raises ValueError for a `max_length` below 1.
    """
    return sweep(
        model, sources, max_lengths=[max_length], num_beams=num_beams, min_length=min_length,
        batch_tokens=batch_tokens, device=device, progress=progress,
    )[max_length]  # fmt: skip


def sweep(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    max_lengths: Sequence[int],
    num_beams: int = 1,
    min_length: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[int, Decoded]:
    """`decode` at each of `max_lengths`, for the price of the longest where that is exact.

    Greedy decoding does not look ahead, so a shorter limit is a prefix, also under `min_length`
    and penalties, which look at the tokens so far. A forced last token (BART's
    `forced_eos_token_id`) replaces the last one of a row that was cut off. Beam search ranks by
    the finished lengths, so there each limit is decoded, and `progress` sees the rows each time.
    """
    limits = list(dict.fromkeys(max_lengths))
    if bad := [limit for limit in limits if limit < 1]:
        raise ValueError(f"max_length counts the decoder start token, so it is 1 or more, not {bad[0]}")
    if device is not None:
        model.to(device)  # type: ignore[arg-type]  # the stub knows no str
    config = model.generation_config
    settings = {"num_beams": num_beams}
    if min_length is not None:
        settings |= {"min_length": min_length, "min_new_tokens": None}
    run = _Run(model, sources, settings, batch_tokens, progress)
    forced = _ids(config.forced_eos_token_id)
    if num_beams > 1 or (forced and any(getattr(config, name) for name in _AFTER_FORCED_EOS)):
        return {limit: run.at(limit, forced) for limit in limits}
    longest = run.at(max(limits), None) if limits else None
    return {limit: _limited(longest, limit, _ids(config.eos_token_id), forced) for limit in limits}
