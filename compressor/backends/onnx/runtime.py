"""Run what `onnx.export` has written: numpy and ONNX Runtime, no torch and no transformers.

How a token is chosen is in `beam_search`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.backends.base import Model
from compressor.backends.beam_search import Tokens, search_tokens
from compressor.backends.generation_config import FILE, BackendName, counts_prompt, load_settings
from compressor.backends.generation_settings import Settings, find_start, log_softmax
from compressor.backends.outputs import NOT_FINITE, Report, Search, ignore
from compressor.core import machine
from compressor.core.errors import StageError
from compressor.data.batching import evaluation_batches
from compressor.data.fast_tokenizer import FILE as TOKENIZER
from compressor.data.fast_tokenizer import Tokens as Tokenizer
from compressor.data.fast_tokenizer import is_marian

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

BATCH_TOKENS = 16_384
"""Positions in a batch, source and target: bounds its memory."""
_ENCODE_TOKENS = 2_048
"""Positions of sources, or of prompts, that are read at once."""
_SCORED_TOKENS = 256
"""Positions that are scored at once: each has the logits of the whole vocabulary."""


class OnnxModel(Model):
    """A model directory with graphs: an encoder-decoder or a decoder, or a classifier."""

    backend: BackendName = "onnxruntime"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Load a directory. `threads`: of a product; None: a thread a core. Raises StageError."""
        there = [name for name in ("encoder", "decoder") if (folder / f"{name}.onnx").is_file()]
        names = there or ["model"]
        self._sessions = {name: _open_session(folder / f"{name}.onnx", threads) for name in names}
        self.continues = names == ["decoder"]
        reads_texts = (folder / TOKENIZER).is_file() or is_marian(folder)
        self.tokenizer = Tokenizer.load(folder) if reads_texts else None
        self.generation_config = load_settings(folder / FILE) if "decoder" in names else {}
        # What fills a batch is masked, so that where none is set any token does.
        self._pad = int(load_settings(folder / "config.json").get("pad_token_id") or 0)

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        if "decoder" not in self._sessions:
            return super()._decode_rows(sources, search, progress)
        config, beams = self.generation_config, search.num_beams
        rows: list[list[int]] = [[] for _ in sources]
        lengths = [len(source) + search.max_length for source in sources]
        equal = self.continues and counts_prompt(config)
        for batch in evaluation_batches(lengths, tokens=BATCH_TOKENS // beams, equal=equal):
            some = [sources[row] for row in batch]
            decoder: _Decoder
            if self.continues:
                prompts, padding = _align_ends(some, self._pad)
                decoder = self._read_prompts(prompts, padding, beams)
                settings = Settings.of(config, search, prompt=prompts.shape[1])
            else:
                prompts = np.full((len(batch), 1), find_start(config))
                decoder = self._encode_batch(some, beams)
                settings = Settings.of(config, search)
            written = search_tokens(decoder, prompts, beams, settings)
            for row, tokens in zip(batch, written, strict=True):
                rows[row] = tokens
            progress(len(batch))
        return rows

    def sum_losses(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        progress: Report = ignore,
    ) -> list[float]:
        if not self.continues:
            return super().sum_losses(sources, targets)
        losses = np.zeros(len(sources))
        whole = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
        for batch in evaluation_batches(list(map(len, whole)), tokens=_ENCODE_TOKENS):
            ids, padding = _align_ends([whole[row] for row in batch], self._pad)
            counts = np.array([len(targets[row]) for row in batch])
            decoder = _Continuation(self._sessions["decoder"], padding)
            losses[batch] = _sum_losses(decoder, ids, counts)
            progress(len(batch))
        if not np.isfinite(losses).all():
            raise StageError(NOT_FINITE)
        return losses.tolist()

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        if self.continues:
            return self._score_next(sources, progress)
        session = self._sessions.get("model")
        if session is None:
            return super().logits(sources)
        labels = session.get_outputs()[0].shape[-1]
        rows: list[NDArray[np.float64]] = [np.empty((0, labels))] * len(sources)
        for batch in evaluation_batches(list(map(len, sources)), tokens=BATCH_TOKENS):
            ids, mask = _pad_rows([sources[row] for row in batch], self._pad)
            (values,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            for row, logits in zip(batch, values, strict=True):
                rows[row] = logits[: len(sources[row])] if logits.ndim == 2 else logits[None]
            progress(len(batch))
        return np.concatenate([np.empty((0, labels)), *rows])

    def _score_next(self, sources: Sequence[list[int]], progress: Report) -> NDArray[np.float64]:
        """Compute the logits [rows, tokens] of the token after each row."""
        session = self._sessions["decoder"]
        logits = np.empty((len(sources), session.get_outputs()[0].shape[-1]))
        for batch in evaluation_batches(list(map(len, sources)), tokens=_ENCODE_TOKENS):
            ids, padding = _align_ends([sources[row] for row in batch], self._pad)
            logits[batch] = _Continuation(session, padding).read_prompts(ids)
            progress(len(batch))
        return logits

    def _read_prompts(self, prompts: Tokens, padding: Tokens, beams: int) -> _Continuation:
        """Make a batch ready for its first step, with `beams` places for each prompt."""
        size = max(1, _ENCODE_TOKENS // prompts.shape[1])
        parts = []
        for at in range(0, len(prompts), size):
            part = _Continuation(self._sessions["decoder"], padding[at : at + size])
            part.read_prompts(prompts[at : at + size])
            parts.append(part)
        return _Continuation.join(parts, beams)

    def _encode_batch(self, sources: list[list[int]], beams: int) -> _Decoder:
        """Make a batch ready for its first step, with `beams` places for each source."""
        session = self._sessions["encoder"]
        ids, mask = _pad_rows(sources, self._pad)
        size = max(1, _ENCODE_TOKENS // ids.shape[1])
        pieces = [
            session.run(
                None, {"input_ids": ids[at : at + size], "attention_mask": mask[at : at + size]}
            )
            for at in range(0, len(ids), size)
        ]
        names = [output.name for output in session.get_outputs()]
        cross = {
            name: np.repeat(np.concatenate(parts), beams, axis=0)
            for name, parts in zip(names, zip(*pieces, strict=True), strict=True)
        }
        mask = np.repeat(mask, beams, axis=0)
        return _Decoder(self._sessions["decoder"], {"attention_mask": mask, **cross})


class _Decoder:
    """A batch in the middle of being decoded: see `beam_search.Decoder`.

    The cache stays in the runtime's own memory from one step to the next.
    """

    def __init__(self, session: InferenceSession, source: Mapping[str, NDArray[Any]]) -> None:
        """Begin with nothing read. `source`: inputs with a row for each place, always the same."""
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._source = {name: _wrap_array(values) for name, values in source.items()}
        rows = len(next(iter(source.values())))
        self._past = {
            past.name: _wrap_array(
                np.zeros((rows, past.shape[1], 0, past.shape[3]), dtype=np.float32)
            )
            for past in session.get_inputs()
            if past.name.startswith("past.")
        }

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        return self._run(input_ids=tokens[:, None])

    def _run(self, **new: NDArray[Any]) -> NDArray[np.float32]:
        feed = {name: _wrap_array(values) for name, values in new.items()}
        feed |= self._source | self._past
        logits, *present = self._session.run_with_ort_values(self._names, feed, None)
        self._past = dict(zip(self._past, present, strict=True))
        numbers: NDArray[np.float32] = logits.numpy()
        return numbers

    def keep(self, rows: Tokens) -> None:
        self._source = {name: _wrap_array(v.numpy()[rows]) for name, v in self._source.items()}
        self.reorder(rows)

    def reorder(self, rows: Tokens) -> None:
        self._past = {name: _wrap_array(v.numpy()[rows]) for name, v in self._past.items()}


class _Continuation(_Decoder):
    """The same of a decoder without an encoder, which reads prompts of any length first."""

    def __init__(self, session: InferenceSession, padding: Tokens) -> None:
        super().__init__(session, {"padding": padding})
        self._next: NDArray[np.float32] | None = None
        """The logits after prompts, which the first step gives."""

    def read(self, tokens: Tokens, kept: Tokens) -> NDArray[np.float32]:
        """Read tokens [R, T]; give the logits [R, N, V] after those at the kept places."""
        from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

        try:
            return self._run(input_ids=tokens, kept=kept)
        except InvalidArgument as error:  # as beyond a last position
            first = str(error).strip().splitlines()[0]
            raise StageError(f"ONNX Runtime cannot read these tokens: {first}") from error

    def read_prompts(self, prompts: Tokens) -> NDArray[np.float32]:
        """Read the whole of prompts [R, P]; give the logits [R, V] after them."""
        self._next = self.read(prompts, np.array([prompts.shape[1] - 1]))[:, 0]
        return self._next

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        if self._next is None:
            return self.read(tokens[:, None], np.array([0]))[:, 0]
        logits, self._next = self._next, None
        return logits

    @classmethod
    def join(cls, parts: Sequence[_Continuation], copies: int) -> _Continuation:
        """Join batches that have read prompts, with so many places for each of their rows."""

        def join_rows(arrays: Iterable[NDArray[Any]]) -> NDArray[Any]:
            return np.repeat(np.concatenate(list(arrays)), copies, axis=0)

        padding = join_rows(part._source["padding"].numpy() for part in parts)
        whole = cls(parts[0]._session, padding)
        for name in whole._past:
            states = join_rows(part._past[name].numpy() for part in parts)
            whole._past[name] = _wrap_array(states)
        whole._next = join_rows(part._next for part in parts if part._next is not None)
        return whole


def _sum_losses(decoder: _Continuation, ids: Tokens, counts: Tokens) -> NDArray[np.float64]:
    """Sum the losses [R] of the last `counts` [R] tokens of each row [R, T]; by pieces of rows."""
    end = ids.shape[1] - 1
    begin = end - int(counts.max())
    if begin:
        decoder.read(ids[:, :begin], np.arange(0))
    losses = np.zeros(len(ids))
    size = max(1, _SCORED_TOKENS // len(ids))
    for start in range(begin, end, size):
        places = np.arange(start, min(start + size, end))
        logits = decoder.read(ids[:, places], places - start)
        told = log_softmax(logits.reshape(-1, logits.shape[2])).reshape(logits.shape)
        scores = np.take_along_axis(told, ids[:, places + 1, None], axis=2)[..., 0]
        counted = places >= end - counts[:, None]
        losses -= np.where(counted, scores, 0).sum(axis=1, dtype=np.float64)
    return losses


def _wrap_array(array: NDArray[Any]) -> OrtValue:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _open_session(path: Path, threads: int | None) -> InferenceSession:
    """Load a graph. Raises StageError where it is missing or damaged."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, InvalidProtobuf

    if not path.is_file():
        raise StageError(f"no model in {path.parent}: expected {path.name}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or machine.count_threads()
    options.log_severity_level = 3
    # A waiting thread that spins takes a core from whoever else works on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidGraph, InvalidProtobuf) as error:
        first = str(error).strip().splitlines()[0]
        raise StageError(f"cannot load the model in {path.parent}: {first}") from error


def _align_ends(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tokens, Tokens]:
    """Make ids, rows x longest row, each row at the end of its line; also the pads before it."""
    ids, mask = _pad_rows([row[::-1] for row in rows], pad)
    return ids[:, ::-1], ids.shape[1] - mask.sum(axis=1)


def _pad_rows(sources: Sequence[Sequence[int]], pad: int) -> tuple[Tokens, Tokens]:
    """Make ids and mask, both rows x longest row."""
    longest = max(1, *map(len, sources))
    ids = np.full((len(sources), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
        mask[row, : len(source)] = 1
    return ids, mask
