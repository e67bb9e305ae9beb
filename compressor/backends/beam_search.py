"""Greedy and beam search over any model, token for token as transformers'; numpy, no torch.

What a generation config may ask for is in `generation_settings`; how logits are computed is the
model's affair: a `Decoder` is one batch in the middle of being decoded. Sampling is not offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.backends.generation_settings import Settings, is_one_of, log_softmax
from compressor.backends.outputs import NOT_FINITE
from compressor.core.errors import StageError

Tokens = NDArray[np.int64]
Scores = NDArray[np.float32]

_DROP_SHARE = 0.125
"""Ended rows leave a batch once they are this share of it; leaving copies the cache."""
_NEVER = np.float32(-1e9)
"""The score of what cannot be chosen, small enough for the numbers of beam search to be kept."""


class Decoder(Protocol):
    """A batch of rows that a model goes on with, one token at a time."""

    def step(self, tokens: Tokens) -> Scores:
        """Give the logits [R, V] after each row's last token [R], which the caller may change."""

    def keep(self, rows: Tokens) -> None:
        """Go on with these rows alone, given by their place in the batch."""

    def reorder(self, rows: Tokens) -> None:
        """Go on at each place from the row named there, which has the same source."""


def search_tokens(
    decoder: Decoder, prompts: Tokens, beams: int, settings: Settings
) -> list[list[int]]:
    """Write a row after each of the prompts [N, P], up to its end token; greedily with one beam.

    An encoder-decoder's prompts are start tokens. The decoder's batch has `beams` places for each
    row, one after another.
    """
    if settings.max_length == settings.prompt:
        return [[] for _ in prompts]
    if beams == 1:
        rows = _search_greedily(decoder, prompts, settings)
    else:
        rows = _search_beams(decoder, prompts, beams, settings)
    return [up_to_end(row, settings.eos) for row in rows]


def _search_greedily(decoder: Decoder, prompts: Tokens, settings: Settings) -> list[list[int]]:
    """Take the likeliest token at each step; what follows an end token is undefined."""
    tokens, new = prompts, slice(settings.prompt, None)
    done: list[list[int]] = [[] for _ in prompts]
    live = np.arange(len(prompts))
    ended = np.zeros(len(prompts), dtype=bool)
    while len(live) and tokens.shape[1] < settings.max_length:
        scores = settings.process(tokens, _require_finite(decoder.step(tokens[:, -1])))
        tokens = np.concatenate([tokens, scores.argmax(axis=1)[:, None]], axis=1)
        ended |= is_one_of(tokens[:, -1], settings.eos)
        if ended.all() or ended.sum() >= max(1, _DROP_SHARE * len(live)):
            for over in ended.nonzero()[0]:
                done[live[over]] = tokens[over, new].tolist()
            stay = (~ended).nonzero()[0]
            live, tokens, ended = live[stay], tokens[stay], ended[stay]
            if len(live):
                decoder.keep(stay)
    for place, row in enumerate(live):
        done[row] = tokens[place, new].tolist()
    return done


def up_to_end(row: list[int], eos: Sequence[int]) -> list[int]:
    """Cut a row after its first end token."""
    ends = [place for place, token in enumerate(row, 1) if token in eos]
    return row[: ends[0]] if ends else row


def _search_beams(
    decoder: Decoder, prompts: Tokens, beams: int, settings: Settings
) -> list[list[int]]:
    """Take the best finished beam of each row; what follows an end token is undefined.

    The rules are those of transformers' `_beam_search`: the best (1 + end tokens) · beams
    continuations are looked at, at least two a beam; an ended one counts if it is among the best
    `beams` of them; its score is its log-probability / new tokens ** length_penalty.
    """
    done: list[list[int]] = [[] for _ in prompts]
    live = np.arange(len(prompts))
    state = _Beams(prompts, beams, settings)
    while len(live):
        over, places = state.advance(decoder)
        for place in over.nonzero()[0]:
            done[live[place]] = state.finished[place, 0, settings.prompt :].tolist()
        if over.any():
            stay = (~over).nonzero()[0]
            live, places = live[stay], places[stay]
            state.keep(stay)
            if len(live):
                decoder.keep((stay[:, None] * beams + np.arange(beams)).ravel())
                places = np.arange(len(live))[:, None] * beams + places % beams
        if len(live):
            decoder.reorder(places.ravel())
    return done


class _Beams:
    """Running and finished beams of the rows in a batch, with their scores."""

    def __init__(self, prompts: Tokens, beams: int, settings: Settings) -> None:
        rows = len(prompts)
        self.beams, self.settings, self.length = beams, settings, settings.prompt
        self.kept = max(2, 1 + len(settings.eos)) * beams
        self.running = np.zeros((rows, beams, settings.max_length), dtype=np.int64)
        self.running[:, :, : self.length] = prompts[:, None]
        self.finished = self.running.copy()
        self.scores = np.zeros((rows, beams), dtype=np.float32)
        self.scores[:, 1:] = _NEVER  # at first all beams are equal, and one is enough
        self.finished_scores = np.full((rows, beams), _NEVER, dtype=np.float32)
        self.is_finished = np.zeros((rows, beams), dtype=bool)

    def keep(self, rows: Tokens) -> None:
        for name in ("running", "finished", "scores", "finished_scores", "is_finished"):
            setattr(self, name, getattr(self, name)[rows])

    def advance(self, decoder: Decoder) -> tuple[NDArray[np.bool_], Tokens]:
        """Add a token; tell which rows are over, and where each place's beam was [rows, beams]."""
        rows = len(self.running)
        best, beam, tokens = self._continuations(decoder)
        sequences = _gather_places(self.running, beam)
        sequences[:, :, self.length] = tokens
        at_limit = self.length + 1 >= self.settings.max_length
        stops: NDArray[np.bool_] = is_one_of(tokens, self.settings.eos) | at_limit
        running = best + stops.astype(np.float32) * _NEVER
        going = _find_largest(running, self.beams)
        self.running, self.scores = _gather_places(sequences, going), _gather_places(running, going)
        self._finish(sequences, best, stops)
        self.length += 1
        over = ~self._can_improve()
        if self.settings.early_stopping is True:
            over |= self.is_finished.all(axis=1)
        if stops.all():
            over[:] = True
        return over, np.arange(rows)[:, None] * self.beams + _gather_places(beam, going)

    def _continuations(self, decoder: Decoder) -> tuple[Scores, Tokens, Tokens]:
        """Log-probability, beam and token of the best continuations, each [rows, kept]."""
        rows = len(self.running)
        flat = self.running[:, :, : self.length].reshape(rows * self.beams, -1)
        scores = self.settings.process(
            flat, log_softmax(_require_finite(decoder.step(flat[:, -1])))
        )
        vocabulary = scores.shape[1]
        scores = (scores.reshape(rows, self.beams, -1) + self.scores[:, :, None]).reshape(rows, -1)
        chosen = _find_largest(scores, self.kept)
        return _gather_places(scores, chosen), chosen // vocabulary, chosen % vocabulary

    def _finish(self, sequences: Tokens, best: Scores, stops: NDArray[np.bool_]) -> None:
        """Take continuations that have just ended among the best into the finished ones."""
        just = stops & (np.arange(self.kept) < self.beams)
        new = self.length + 1 - self.settings.prompt
        scores = best / np.float32(new**self.settings.length_penalty)
        if self.settings.early_stopping is True:
            full = self.is_finished.all(axis=1, keepdims=True)
            scores = scores + full.astype(np.float32) * _NEVER
        scores = scores + (~just).astype(np.float32) * _NEVER
        merged = np.concatenate([self.finished_scores, scores], axis=1)
        top = _find_largest(merged, self.beams)
        self.finished_scores = _gather_places(merged, top)
        self.finished = _gather_places(np.concatenate([self.finished, sequences], axis=1), top)
        self.is_finished = _gather_places(np.concatenate([self.is_finished, just], axis=1), top)

    def _can_improve(self) -> NDArray[np.bool_]:
        """Tell which rows may still find a beam better than the worst of their finished ones."""
        penalty, length = self.settings.length_penalty, self.length
        if self.settings.early_stopping == "never" and penalty > 0:
            length = self.settings.max_length
        possible = self.scores[:, :1] / np.float32((length - self.settings.prompt) ** penalty)
        worst = np.where(self.is_finished, self.finished_scores.min(axis=1, keepdims=True), _NEVER)
        better: NDArray[np.bool_] = np.any(possible > worst, axis=1)
        return better


def _require_finite(logits: Scores) -> Scores:
    """Return the logits. Raises StageError where the largest of a row is NaN or infinite."""
    if not bool((logits.max(axis=1) < np.inf).all()):
        raise StageError(NOT_FINITE)
    return logits


def _find_largest(scores: Scores, count: int) -> Tokens:
    """Find the places of the `count` largest of each row, the largest first, then the earlier."""
    if count < scores.shape[1]:
        some = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
    else:
        some = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-_gather_places(scores, some), axis=1, kind="stable")
    top: Tokens = np.take_along_axis(some, order, axis=1)
    return top


def _gather_places(values: NDArray, places: Tokens) -> NDArray:  # type: ignore[type-arg]
    """Take of values [R, N, …] those at places [R, M], as [R, M, …]."""
    return values[np.arange(len(values))[:, None], places]
