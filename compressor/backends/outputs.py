"""What a decode gives, and what shorter limits leave of it. No model is run here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from compressor.backends.generation_config import require_followed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.generation_config import BackendName
    from compressor.data.rows import Task


_AFTER_FORCED_EOS = (
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Settings that `generate` applies after the forced last token, which then need not win."""

NOT_FINITE = (
    "the model's logits are NaN or infinite, so that no token is the likeliest: its activations "
    "overflow, as float16's do in some models (take bfloat16), or its weights are far too large, "
    "as after a training that diverged"
)


@dataclass(frozen=True)
class GenerationOutput:
    """Generated rows under one `max_length`, in the order of the sources.

    `tokens` are without decoder start token and padding, with the end token where there is one.
    `cut_off` says whether the limit, not the model, ended the row; with a forced last token such
    a row has an end token all the same. `seconds` and `generated` (tokens, up to the end token)
    are of the decode that the rows come from: in a sweep often that of the longest limit.
    `lengths` are those that transformers' `run_summarization.py` takes for `gen_len`: tokens that
    are no pad, the start token too, which is an end token in BART, and a pad in T5.
    """

    tokens: list[list[int]]
    cut_off: list[bool]
    lengths: list[int]
    seconds: float
    generated: int

    @property
    def tokens_per_second(self) -> float:
        """Speed of the decode that the rows come from, its encoder included."""
        return self.generated / self.seconds if self.seconds else 0.0


def truncate_row(
    tokens: Sequence[int], max_length: int, eos: Collection[int]
) -> tuple[list[int], bool]:
    """The prefix of a greedily decoded row that a shorter limit leaves, and whether it is cut off.

    A row is cut off that has none of the end tokens `eos` within the limit. `max_length` counts
    the decoder start token, which `tokens` lack. A forced last token is not put in: see `sweep`.
    """
    kept = list(tokens[: max_length - 1])
    return kept, not (kept and kept[-1] in eos)


class Rows(Protocol):
    """Decodes all rows of a set under one limit."""

    def __call__(self, limit: int, *, forced_end: bool) -> tuple[list[list[int]], float]:
        """Rows up to their end token, and the seconds they took. Without `forced_end`, the
        generation config's `forced_eos_token_id` is left out.
        """


def valid_limits(max_lengths: Sequence[int]) -> list[int]:
    """The limits in rising order. Raises ValueError for one below 1."""
    limits = sorted(set(max_lengths))
    if limits and limits[0] < 1:
        raise ValueError(f"max_length counts the decoder start token: {limits[0]} is below 1")
    return limits


def at_limits(
    rows: Rows,
    limits: Sequence[int],
    generation_config: Mapping[str, Any],
    backend: BackendName,
    *,
    greedy: bool,
) -> dict[int, GenerationOutput]:
    """What each limit gives: of a greedy decode, prefixes of the longest one's rows.

    Raises StageError for a setting that `backend` does not follow.
    """
    require_followed(generation_config, backend, greedy=greedy)
    eos, forced = (
        token_ids(generation_config.get(key)) for key in ("eos_token_id", "forced_eos_token_id")
    )
    overruled = forced and any(generation_config.get(key) for key in _AFTER_FORCED_EOS)
    if greedy and not overruled:
        longest, seconds = rows(max(limits, default=1), forced_end=False)
        decodes = {limit: (_cut_at_limit(longest, limit, eos, forced), seconds) for limit in limits}
    else:
        decodes = {}
        for limit in limits:
            tokens, seconds = rows(limit, forced_end=True)
            decodes[limit] = (_with_cut_off(tokens, limit, eos, forced), seconds)
        longest = []
    return {
        limit: GenerationOutput(
            tokens,
            cut_off,
            [_count_length(row, generation_config) for row in tokens],
            seconds,
            sum(map(len, longest or tokens)),
        )
        for limit, ((tokens, cut_off), seconds) in decodes.items()
    }


def token_ids(setting: int | list[int] | None) -> list[int]:
    """A token setting of the generation config, which may be one id, several, or none."""
    return [] if setting is None else setting if isinstance(setting, list) else [setting]


def _count_length(row: Sequence[int], generation_config: Mapping[str, Any]) -> int:
    """Count what is no pad in a row and its start token, as `run_summarization.py` does."""
    start = generation_config.get("decoder_start_token_id")
    if start is None:
        start = generation_config.get("bos_token_id")
    pad = generation_config.get("pad_token_id")
    return sum(token != pad for token in (start, *row))


def _with_cut_off(
    rows: list[list[int]], limit: int, eos: list[int], forced: list[int]
) -> tuple[list[list[int]], list[bool]]:
    """Rows of a decode at this very limit; one that fills it by a forced end counts as cut off."""
    full = [bool(forced) and len(row) == limit - 1 for row in rows]
    return rows, [
        truncate_row(row, limit, eos)[1] or at for row, at in zip(rows, full, strict=True)
    ]


def _cut_at_limit(
    rows: list[list[int]], limit: int, eos: list[int], forced: list[int]
) -> tuple[list[list[int]], list[bool]]:
    """Rows of a longer greedy decode without a forced last token, as this limit gives them."""
    tokens, cut_off = [], []
    for row in rows:
        kept, cut = truncate_row(row, limit, eos)
        if forced and kept and len(kept) == limit - 1:
            kept[-1] = min(forced)  # all forced ones score 0, and argmax takes the first
        tokens.append(kept)
        cut_off.append(cut)
    return tokens, cut_off


def compute_probabilities(logits: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Logits [N, L] as probabilities [N, L]: of each label, or of the one label of a row."""
    from scipy.special import expit, softmax  # type: ignore[import-untyped]  # no types

    found: NDArray[np.float64] = (
        softmax(logits, axis=1) if task == "single_label" else expit(logits)
    )
    return found
