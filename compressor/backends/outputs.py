"""What a decode gives, and what shorter limits leave of it. No model is run here."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

Report = Callable[[int], object]
"""Takes the number of rows that have just been done."""


def ignore(rows: int) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class Search:
    """Settings of one decode. Lengths count an encoder-decoder's start token, as in transformers;
    of a decoder, new tokens alone.
    """

    max_length: int
    num_beams: int = 1
    min_length: int = 0
    """0 leaves it to the generation config."""
    forced_end: bool = True
    """Whether the generation config's `forced_eos_token_id` holds."""


@dataclass(frozen=True)
class GenerationOutput:
    """Generated rows under one `max_length`, in the order of the sources.

    `tokens` are without decoder start token and padding, with the end token where there is one.
    `cut_off` says whether the limit, not the model, ended the row; with a forced last token such
    a row has an end token all the same. `seconds` and `generated` (tokens, up to the end token)
    are of the decode that the rows come from: in a sweep often that of the longest limit.
    `lengths` are those that transformers' `run_summarization.py` takes for `gen_len`: tokens that
    are no pad, the start token too, which is an end token in BART, and a pad in T5. A decoder's are
    its new tokens.
    """

    tokens: list[list[int]]
    cut_off: list[bool]
    lengths: list[int]
    seconds: float
    generated: int


def decode_limits(
    decode: Callable[[Search], list[list[int]]],
    max_lengths: Sequence[int],
    generation_config: Mapping[str, Any],
    backend: BackendName,
    *,
    num_beams: int,
    min_length: int,
    counts_start: bool = True,
) -> dict[int, GenerationOutput]:
    """Decode at each limit, in rising order; see `Model.generate_each_limit`.

    `counts_start`: a start token is counted, which rows lack.

    Greedy decoding does not look ahead, so what a shorter limit gives is a prefix. That holds with
    `min_length` and penalties, which look at the tokens so far. A forced last token (BART's
    `forced_eos_token_id`) takes the place of the last token at each limit. Beam search ranks by
    finished lengths, so with beams each limit is decoded.
    """
    limits = sorted(set(max_lengths), reverse=True)
    if limits and limits[-1] < 1:
        raise ValueError(f"max_length: {limits[-1]} is below 1")
    require_followed(generation_config, backend, greedy=num_beams == 1)
    eos, forced = (
        list_ids(generation_config.get(key)) for key in ("eos_token_id", "forced_eos_token_id")
    )
    overruled = forced and any(generation_config.get(key) for key in _AFTER_FORCED_EOS)
    start, pad = (generation_config.get(f"{name}_token_id") for name in ("decoder_start", "pad"))
    start = generation_config.get("bos_token_id") if start is None else start
    as_prefix = num_beams == 1 and not overruled
    outputs: dict[int, GenerationOutput] = {}
    for limit in limits:
        if not (as_prefix and outputs):
            started = time.perf_counter()
            rows = decode(Search(limit, num_beams, min_length, forced_end=not as_prefix))
            seconds = time.perf_counter() - started
        most = limit if counts_start else limit + 1
        cut = [cut_row(row, most, eos, forced, as_prefix=as_prefix) for row in rows]
        tokens, cut_off = [row for row, _ in cut], [is_cut for _, is_cut in cut]
        # As `run_summarization.py` counts: what is no pad, the start token too.
        lengths = [len(row) for row in tokens]
        if counts_start:
            lengths = [sum(token != pad for token in (start, *row)) for row in tokens]
        outputs[limit] = GenerationOutput(tokens, cut_off, lengths, seconds, sum(map(len, rows)))
    return dict(sorted(outputs.items()))


def list_ids(setting: int | Sequence[int] | None) -> list[int]:
    """List a token setting of the generation config, which may be one id, several, or none."""
    return [] if setting is None else [setting] if isinstance(setting, int) else list(setting)


def cut_row(
    row: Sequence[int],
    max_length: int,
    eos: Collection[int],
    forced: Collection[int] = (),
    *,
    as_prefix: bool = True,
) -> tuple[list[int], bool]:
    """Cut a row at a limit; also tell whether it is cut off: it has no end token of `eos` there.

    `max_length` counts the decoder start token, which rows lack. `as_prefix`: it is of a longer
    greedy decode without forced last token, which one of `forced` then takes the place of; else of
    a decode at this very limit, where one that a forced token fills counts as cut off.
    """
    kept = list(row[: max_length - 1])
    if forced and kept and len(kept) == max_length - 1:
        if not as_prefix:
            return kept, True
        cut_off = kept[-1] not in eos
        kept[-1] = min(forced)  # all forced ones score 0, and argmax takes the first
        return kept, cut_off
    return kept, not (kept and kept[-1] in eos)


def split_words(
    logits: NDArray[np.float64],
    lengths: Sequence[int],
    places: Sequence[Sequence[int]],
) -> list[NDArray[np.float64]]:
    """Select, of tokens' logits [tokens, L], those of each row's words [words, L].

    `lengths`: tokens of each row; `places`: of each word the place of its first token in the row,
    or -1, which gives NaN.
    """
    import numpy as np

    words, start = [], 0
    for length, row in zip(lengths, places, strict=True):
        taken = np.full((len(row), logits.shape[1]), np.nan)
        read = [word for word, place in enumerate(row) if place >= 0]
        taken[read] = logits[[start + row[word] for word in read]]
        words.append(taken)
        start += length
    return words


def choose_tags(words: Sequence[NDArray[np.float64]], names: Sequence[str]) -> list[list[str]]:
    """Choose the likeliest tag of each word; a word without logits is outside of any entity, O."""
    import numpy as np

    return [
        ["O" if np.isnan(word).any() else names[word.argmax()] for word in row] for row in words
    ]


def compute_probabilities(logits: NDArray[np.float64], task: Task) -> NDArray[np.float64]:
    """Logits [N, L] as probabilities [N, L]: of each label, or of the one label of a row."""
    from scipy.special import expit, softmax  # type: ignore[import-untyped]  # no types

    probabilities: NDArray[np.float64] = (
        softmax(logits, axis=1) if task == "single_label" else expit(logits)
    )
    return probabilities
