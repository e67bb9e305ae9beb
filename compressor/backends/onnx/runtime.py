"""Runs what `onnx_graphs` has written: numpy and ONNX Runtime, no torch and no transformers.

How a token is chosen is in `decoding`. Text is not here: sources are token ids.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.backends.beam_search import Tokens, beam_search, search_greedily
from compressor.backends.generation_config import BackendName
from compressor.backends.generation_settings import Settings
from compressor.backends.onnx.support import RUNS, require_packages
from compressor.backends.outputs import GenerationOutput, at_limits, valid_limits
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


class OnnxModel:
    """A model directory with graphs: an encoder-decoder that generates, or a classifier."""

    backend: BackendName = "onnxruntime"
    device = "cpu"

    def __init__(
        self,
        sessions: dict[str, InferenceSession],
        configs: dict[str, Any],
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self._sessions, self._configs, self.tokenizer = sessions, configs, tokenizer

    @classmethod
    def load(cls, folder: Path, *, threads: int | None = None) -> OnnxModel:
        """Read a directory. `threads`: of a product; None: a thread a core. Raises StageError."""
        require_packages(*RUNS)
        names = ("encoder", "decoder") if (folder / "encoder.onnx").is_file() else ("model",)
        sessions = {name: _open_session(folder / f"{name}.onnx", threads) for name in names}
        configs = {}
        for name in ("config", "generation_config"):
            path = folder / f"{name}.json"
            if path.is_file():
                configs[name] = json.loads(path.read_text(encoding="utf-8"))
        reads_texts = (folder / TOKENIZER).is_file() or is_marian(folder)
        tokenizer = Tokenizer.load(folder) if reads_texts else None
        return cls(sessions, configs, tokenizer)

    @property
    def vocabulary(self) -> int:
        """Tokens that the decoder chooses from."""
        return int(self._open_graph("decoder").get_outputs()[0].shape[-1])

    def sweep(
        self,
        sources: Sequence[list[int]],
        *,
        max_lengths: Sequence[int],
        num_beams: int = 1,
        min_length: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, GenerationOutput]:
        """Decode at each limit; see `compressor.backends.torch.generation.decode_sweep`."""

        def rows(limit: int, *, forced_end: bool) -> tuple[list[list[int]], float]:
            started = time.perf_counter()
            found = self.generate(
                sources,
                max_length=limit,
                num_beams=num_beams,
                min_length=min_length,
                forced_end=forced_end,
                progress=progress,
            )
            return found, time.perf_counter() - started

        config = self._configs.get("generation_config", {})
        return at_limits(
            rows, valid_limits(max_lengths), config, self.backend, greedy=num_beams == 1
        )

    def generate(
        self,
        sources: Sequence[Sequence[int]],
        *,
        max_length: int,
        num_beams: int = 1,
        min_length: int = 0,
        forced_end: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[int]]:
        """What transformers' `generate(do_sample=False, …)` gives for each source.

        Rows are without decoder start token and padding, up to and including their end token.
        `max_length` counts the start token: 20 gives at most 19. `min_length` likewise; 0 leaves
        it, like all else but lengths and beams, to the `generation_config.json`. `forced_end=False`
        leaves `forced_eos_token_id` out (of several, which score the same, the first is taken; beam
        search of transformers takes any one). `progress` gets the number of rows just done. Raises
        StageError for a setting that is not offered, ValueError for a `max_length` below 1.
        """
        if max_length < 1:
            raise ValueError(f"max_length counts the start token: {max_length} is below 1")
        config = self._configs.get("generation_config")
        if config is None:
            raise StageError("the directory has no generation_config.json")
        settings = Settings.of(config, max_length, min_length, forced_end=forced_end)
        rows: list[list[int]] = [[] for _ in sources]
        lengths = [len(source) + max_length for source in sources]
        for batch in evaluation_batches(lengths, tokens=BATCH_TOKENS // num_beams):
            if max_length > 1:
                found = self._decode([sources[row] for row in batch], num_beams, settings)
                for row, tokens in zip(batch, found, strict=True):
                    rows[row] = tokens
            if progress is not None:
                progress(len(batch))
        return rows

    def logits(
        self,
        sources: Sequence[Sequence[int]],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float64]:
        """A classifier's logits [N, labels] of token ids, in their order."""
        session = self._open_graph("model")
        labels = session.get_outputs()[0].shape[-1]
        found = np.empty((len(sources), labels), dtype=np.float64)
        for batch in evaluation_batches(list(map(len, sources)), tokens=BATCH_TOKENS):
            ids, mask = _pad_rows([sources[row] for row in batch], self._pad)
            (found[batch],) = session.run(None, {"input_ids": ids, "attention_mask": mask})
            if progress is not None:
                progress(len(batch))
        return found

    @property
    def _pad(self) -> int:
        """What fills a batch; it is masked, so that where none is set any token does."""
        return int(self._configs.get("config", {}).get("pad_token_id") or 0)

    def _open_graph(self, name: str) -> InferenceSession:
        if name not in self._sessions:
            found = ", ".join(f"{other}.onnx" for other in self._sessions)
            raise StageError(f"expected a directory with {name}.onnx, got one with {found}")
        return self._sessions[name]

    def _decode(
        self, sources: list[Sequence[int]], beams: int, settings: Settings
    ) -> list[list[int]]:
        decoder = self._encoded(sources, beams)
        if beams == 1:
            return search_greedily(decoder, len(sources), settings)
        return beam_search(decoder, len(sources), beams, settings)

    def _encoded(self, sources: list[Sequence[int]], beams: int) -> _Decoder:
        """A batch that is ready for its first step, with `beams` places for each source."""
        session = self._open_graph("encoder")
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
        return _Decoder(self._open_graph("decoder"), np.repeat(mask, beams, axis=0), cross)


class _Decoder:
    """A batch in the middle of being decoded: `decoding.Decoder`.

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
        found: NDArray[np.float32] = logits.numpy()
        return found

    def keep(self, rows: Tokens) -> None:
        self._source = {name: _wrap_array(v.numpy()[rows]) for name, v in self._source.items()}
        self.reorder(rows)

    def reorder(self, rows: Tokens) -> None:
        self._past = {name: _wrap_array(v.numpy()[rows]) for name, v in self._past.items()}


def _wrap_array(array: NDArray[Any]) -> OrtValue:
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _open_session(path: Path, threads: int | None) -> InferenceSession:
    """Raises StageError for a graph that is missing or damaged."""
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
    """Ids and mask, both rows x longest row."""
    longest = max(map(len, sources))
    ids = np.full((len(sources), longest), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, source in enumerate(sources):
        ids[row, : len(source)] = source
        mask[row, : len(source)] = 1
    return ids, mask
