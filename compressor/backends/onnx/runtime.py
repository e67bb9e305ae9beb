"""Run what `onnx.export` has written: numpy and ONNX Runtime, no torch and no transformers.

How a token is chosen is in `beam_search`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.backends.base import Model
from compressor.backends.beam_search import Tokens, search_tokens
from compressor.backends.generation_config import FILE, BackendName, load_settings
from compressor.backends.generation_settings import Settings, find_start
from compressor.backends.outputs import Report, Search, ignore
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
"""Source positions encoded at once."""


class OnnxModel(Model):
    """A model directory with graphs: an encoder-decoder that generates, or a classifier."""

    backend: BackendName = "onnxruntime"

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """Load a directory. `threads`: of a product; None: a thread a core. Raises StageError."""
        names = ("encoder", "decoder") if (folder / "encoder.onnx").is_file() else ("model",)
        self._sessions = {name: _open_session(folder / f"{name}.onnx", threads) for name in names}
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
        settings = Settings.of(self.generation_config, search)
        start = find_start(self.generation_config)
        rows: list[list[int]] = [[] for _ in sources]
        lengths = [len(source) + search.max_length for source in sources]
        for batch in evaluation_batches(lengths, tokens=BATCH_TOKENS // search.num_beams):
            decoder = self._encode_batch([sources[row] for row in batch], search.num_beams)
            starts = np.full((len(batch), 1), start)
            written = search_tokens(decoder, starts, search.num_beams, settings)
            for row, tokens in zip(batch, written, strict=True):
                rows[row] = tokens
            progress(len(batch))
        return rows

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
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
        return _Decoder(self._sessions["decoder"], np.repeat(mask, beams, axis=0), cross)


class _Decoder:
    """A batch in the middle of being decoded: see `beam_search.Decoder`.

    The cache stays in the runtime's own memory from one step to the next.
    """

    def __init__(
        self, session: InferenceSession, mask: Tokens, cross: dict[str, NDArray[np.float32]]
    ) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._source = {"attention_mask": _wrap_array(mask)}
        self._source |= {name: _wrap_array(states) for name, states in cross.items()}
        rows, heads, _, size = next(iter(cross.values())).shape
        empty = np.zeros((rows, heads, 0, size), dtype=np.float32)
        self._past = {
            name.replace("present", "past"): _wrap_array(empty)
            for name in self._names
            if name != "logits"
        }

    def step(self, tokens: Tokens) -> NDArray[np.float32]:
        feed = {"input_ids": _wrap_array(tokens[:, None])} | self._source | self._past
        logits, *present = self._session.run_with_ort_values(self._names, feed, None)
        self._past = dict(zip(self._past, present, strict=True))
        numbers: NDArray[np.float32] = logits.numpy()
        return numbers

    def keep(self, rows: Tokens) -> None:
        self._source = {name: _wrap_array(v.numpy()[rows]) for name, v in self._source.items()}
        self.reorder(rows)

    def reorder(self, rows: Tokens) -> None:
        self._past = {name: _wrap_array(v.numpy()[rows]) for name, v in self._past.items()}


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


def _pad_rows(sources: Sequence[Sequence[int]], pad: int) -> tuple[Tokens, Tokens]:
    """Make ids and mask, both rows x longest row."""
    longest = max(map(len, sources))
    ids = np.full((len(sources), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
        mask[row, : len(source)] = 1
    return ids, mask
