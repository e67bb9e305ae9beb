"""Run models with CTranslate2, without torch or transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.backends.base import Model
from compressor.backends.generation_config import BackendName
from compressor.backends.outputs import NOT_FINITE, Report, Search, ignore, list_ids
from compressor.core import machine
from compressor.core.errors import StageError
from compressor.data.batching import evaluation_batches
from compressor.data.fast_tokenizer import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD, GENERATION = "head.safetensors", "generation_config.json"
BATCH_TOKENS = 16_384
"""Positions in a batch, source and target: bounds its memory."""
_SCORED_TOKENS = 2_048
"""Positions that are scored at once: each has the logits of the whole vocabulary."""
WORKERS = 4
"""At most so many parts of a batch are computed at once, each with its share of the threads. A
layer is over in less time than two threads take to meet: 4 texts, 256 tokens in and 64 out, took
T5-small in int8 0.55 s with one thread, 0.66 with two, 0.37 as two parts with a thread each."""

_LOOK_AT_PROMPT = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids")
"""Settings with which tokens of a decoder's prompt count as those written before."""

_ACTIVATIONS: Mapping[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "none": lambda x: x,
}


class _Writer(Model):
    """A model that writes. Greedily it gives what `generate` gives, but for rounding; beams end by
    other rules.
    """

    backend: BackendName = "ctranslate2"
    _kind: str
    """The class of CTranslate2 that runs it."""
    _vocabulary: str
    """The file of its tokens."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        import ctranslate2

        self.tokenizer = Tokens.load(folder)
        self.generation_config = json.loads((folder / GENERATION).read_text(encoding="utf-8"))
        self._model, self._workers = _open_model(getattr(ctranslate2, self._kind), folder, threads)
        self.device = str(self._model.device)
        self._tokens = json.loads((folder / self._vocabulary).read_text(encoding="utf-8"))
        self._ids = {token: index for index, token in reversed(list(enumerate(self._tokens)))}

    def _spell(self, ids: Sequence[int]) -> list[str]:
        return [self._tokens[index] for index in ids]

    def _choose_least(self, search: Search, before: int, *, counted: int) -> int:
        """Choose how many tokens are written at least. The generation config's `min_length` counts
        those `before` them too, and the recipe's only `counted` ones.
        """
        if search.min_length:
            return search.min_length - counted
        new = self.generation_config.get("min_new_tokens")
        return int((self.generation_config.get("min_length") or 0) - before if new is None else new)

    def _build_options(self, search: Search) -> dict[str, Any]:
        """Build settings of a search, all but lengths, that follow the generation config's."""
        config, beams = self.generation_config, search.num_beams
        never = [[token] for token in config.get("suppress_tokens") or ()]
        never += config.get("bad_words_ids") or ()
        return {
            "beam_size": beams,
            "end_token": list_ids(config.get("eos_token_id")),
            "return_end_token": True,
            "length_penalty": config.get("length_penalty", 1.0) if beams > 1 else 1.0,
            "repetition_penalty": config.get("repetition_penalty") or 1.0,
            "no_repeat_ngram_size": config.get("no_repeat_ngram_size") or 0,
            "suppress_sequences": [*map(self._spell, never)] or None,
        }


class Translator(_Writer):
    """An encoder-decoder."""

    _kind, _vocabulary = "Translator", "shared_vocabulary.json"

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        config, limit = self.generation_config, search.max_length
        rows: list[list[int]] = [[] for _ in sources]
        start = list_ids(config.get("forced_bos_token_id"))
        forced = list_ids(config.get("forced_eos_token_id")) if search.forced_end else []
        lengths = [len(source) + limit for source in sources]
        for batch in evaluation_batches(lengths, tokens=BATCH_TOKENS // search.num_beams):
            if limit > 1:
                results = self._model.translate_batch(
                    [self._spell(sources[index]) for index in batch],
                    target_prefix=[self._spell(start)] * len(batch) if start else None,
                    max_batch_size=-(-len(batch) // self._workers),
                    max_decoding_length=limit - 1,
                    min_decoding_length=max(
                        0, min(self._choose_least(search, 1, counted=1), limit - 1)
                    ),
                    max_input_length=0,  # by default what is beyond 1,024 tokens is cut off
                    **self._build_options(search),
                )
                for index, result in zip(batch, results, strict=True):
                    row = [self._ids[token] for token in result.hypotheses[0]]
                    if forced and len(row) == limit - 1:
                        row[-1] = min(forced)
                    rows[index] = row
            progress(len(batch))
        return rows


class Generator(_Writer):
    """A decoder. Of prompts of several lengths CTranslate2 would count the longer ones' last tokens
    as new: those of one length share a batch, and the workers take batches side by side.
    """

    _kind, _vocabulary, continues = "Generator", "vocabulary.json", True

    def _decode_rows(
        self, sources: Sequence[list[int]], search: Search, progress: Report
    ) -> list[list[int]]:
        config, limit = self.generation_config, search.max_length
        rows: list[list[int]] = [[] for _ in sources]
        forced = list_ids(config.get("forced_eos_token_id")) if search.forced_end else []
        # Else the prompt is read at once, and its tokens are unknown to the search.
        whole = any(config.get(name) not in (None, 0, 1) for name in _LOOK_AT_PROMPT)
        lengths, tokens = [len(source) + limit for source in sources], BATCH_TOKENS
        started = []
        for batch in evaluation_batches(lengths, tokens=tokens // search.num_beams, equal=True):
            prompt = len(sources[batch[0]])
            least = max(0, min(self._choose_least(search, prompt, counted=0), limit))
            counted = prompt if whole else 0
            begin = max(0, counted - 1)  # the first token is none of a length
            running = self._model.generate_batch(
                [self._spell(sources[index]) for index in batch],
                include_prompt_in_result=whole,
                max_length=begin + limit,
                min_length=begin + least,
                max_batch_size=-(-len(batch) // self._workers),
                asynchronous=True,
                **self._build_options(search),
            )
            started.append((batch, counted, running))
        for batch, counted, running in started:
            for index, result in zip(batch, running, strict=True):
                row = _wait_for(result).sequences_ids[0][counted:]
                if forced and len(row) == limit:
                    row[-1] = min(forced)
                rows[index] = row
            progress(len(batch))
        return rows

    def sum_losses(
        self,
        sources: Sequence[list[int]],
        targets: Sequence[list[int]],
        *,
        progress: Report = ignore,
    ) -> list[float]:
        losses = [0.0] * len(sources)
        whole = [[*source, *target] for source, target in zip(sources, targets, strict=True)]
        for batch in evaluation_batches(list(map(len, whole)), tokens=_SCORED_TOKENS):
            results = self._model.score_batch(
                [self._spell(whole[index]) for index in batch],
                max_input_length=0,
                max_batch_size=-(-len(batch) // self._workers),
            )
            for index, result in zip(batch, results, strict=True):
                losses[index] = -math.fsum(result.log_probs[len(sources[index]) - 1 :])
            progress(len(batch))
        if not all(map(math.isfinite, losses)):
            raise StageError(NOT_FINITE)
        return losses

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        """Compute the logits [rows, tokens] of the token after each row."""
        logits = np.empty((len(sources), len(self._tokens)), dtype=np.float64)
        for index, source in enumerate(sources):
            logits[index] = np.array(self._model.forward_batch([source]), dtype=np.float32)[0, -1]
            progress(1)
        return logits


def _wait_for(running: Any) -> Any:
    """Wait for a result. Raises StageError where CTranslate2 fails, as beyond a last position."""
    try:
        return running.result()
    except (RuntimeError, ValueError) as error:
        raise StageError(f"CTranslate2 cannot write: {error}") from error


class Encoder(Model):
    """A classifier: CTranslate2 runs its encoder, and the head is a few small products."""

    backend: BackendName = "ctranslate2"

    def __init__(self, folder: Path, threads: int | None) -> None:
        import ctranslate2
        from safetensors import safe_open

        self.tokenizer = Tokens.load(folder)
        self._model, self._workers = _open_model(ctranslate2.Encoder, folder, threads)
        self._pool = ThreadPoolExecutor(self._workers)
        self.device = str(self._model.device)
        with safe_open(folder / HEAD, "numpy") as file:
            activations = json.loads(file.metadata()["activations"])
            self._head = [
                (file.get_tensor(f"{i}.weight"), file.get_tensor(f"{i}.bias"), _ACTIVATIONS[name])
                for i, name in enumerate(activations)
            ]

    def logits(
        self, sources: Sequence[list[int]], *, progress: Report = ignore
    ) -> NDArray[np.float64]:
        logits = np.empty((len(sources), len(self._head[-1][1])), dtype=np.float64)
        for batch in evaluation_batches(list(map(len, sources)), tokens=BATCH_TOKENS):
            states = self._encode_rows([list(sources[index]) for index in batch])
            for weight, bias, activation in self._head:
                states = activation(states @ weight.T + bias)
            logits[batch] = states
            progress(len(batch))
        return logits

    def _encode_rows(self, rows: list[list[int]]) -> NDArray[np.float32]:
        """Compute the last state of each row's first token, [rows, width]."""

        def encode(part: list[list[int]]) -> NDArray[np.float32]:
            output = self._model.forward_batch(part)
            return np.array(output.last_hidden_state, dtype=np.float32)[:, 0]

        size = -(-len(rows) // self._workers)
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        return np.concatenate(list(self._pool.map(encode, parts)))


_KINDS: Mapping[str, Callable[[Path, int | None], Model]] = {
    "seq2seq_lm": Translator,
    "causal_lm": Generator,
    "sequence_classification": Encoder,
}


def load_model(folder: Path, head: str, *, threads: int | None = None) -> Model:
    """Load what `write_model` wrote. Raises StageError where CTranslate2 cannot."""
    return _KINDS[head](folder, threads)


def _open_model(kind: Any, folder: Path, threads: int | None) -> tuple[Any, int]:
    """Load a model; also how many parts of a batch it computes at once."""
    import ctranslate2

    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    threads = threads or machine.count_threads()
    workers = max(n for n in range(1, WORKERS + 1) if threads % n == 0) if device == "cpu" else 1
    share = {"inter_threads": workers, "intra_threads": threads // workers}
    try:
        return kind(str(folder), device=device, **share), workers
    except (RuntimeError, ValueError) as error:
        raise StageError(f"CTranslate2 cannot load {folder}: {error}") from error
