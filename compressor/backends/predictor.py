"""The models that `compressor.load` gives: of any backend, taking texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.backends.base import EXPORT, Model
from compressor.backends.formats import ExportInfo, TextSettings
from compressor.backends.generation_config import BackendName
from compressor.backends.open import open_export
from compressor.core.errors import StageError
from compressor.data.examples import tokenize_sources

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.outputs import GenerationOutput


class Predictor:
    """A model with what it needs to read texts as it did when it was scored."""

    def __init__(self, model: Model, about: TextSettings) -> None:
        self._model, self.about = model, about

    @property
    def backend(self) -> BackendName:
        """What runs it."""
        return self._model.backend

    def summarize(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        min_length: int = 0,
        num_beams: int = 1,
    ) -> list[str]:
        """Summarize each text.

        `max_length` (tokens, the start token included; default: that of the targets it was trained
        on) and `min_length` as in transformers; `num_beams` 1 is greedy. A text longer than the
        model reads is cut as the recipe's data says. Raises StageError for a classifier.
        """
        decoded = self.decode(
            texts, max_length=max_length, min_length=min_length, num_beams=num_beams
        )
        return self.texts(decoded.tokens)

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Give the probability in [0, 1] of each label, for each text.

        Of several labels that a text can have, each has its own; of labels of which a text has one,
        they add up to 1. Raises StageError for a model that gives no labels.
        """
        from compressor.backends.outputs import compute_probabilities

        self._require_head("sequence_classification", "a classifier")
        logits = self._model.logits(self.read(texts))
        names = self.about.labels or tuple(f"label {i}" for i in range(logits.shape[1]))
        rows = compute_probabilities(logits, self.about.task)
        return [dict(zip(names, map(float, row), strict=True)) for row in rows]

    def decode(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        min_length: int = 0,
        num_beams: int = 1,
    ) -> GenerationOutput:
        """Generate what `summarize` turns to text: token ids, and which rows the limit cut off."""
        self._require_head("seq2seq_lm", "an encoder-decoder")
        limit = self.about.max_target_length if max_length is None else max_length
        if limit < 1 or num_beams < 1:
            raise ValueError(f"expected at least 1, got max_length {limit}, num_beams {num_beams}")
        sources = self.read(texts)
        return self._model.generate_each_limit(
            sources, max_lengths=[limit], num_beams=num_beams, min_length=min_length
        )[limit]

    def texts(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of token ids to texts, without special tokens."""
        return list(self._model.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Compute a classifier's logits [texts, labels]; of another head, outputs at one token."""
        return self._model.logits(self.read(texts))

    def read(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts as the model reads them."""
        if self._model.tokenizer is None:
            raise StageError("the model has no tokenizer, and reads no texts")
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one text")
        return tokenize_sources(texts, self._model.tokenizer, self.about)[:]

    def _require_head(self, head: str, kind: str) -> None:
        if self.about.head != head:
            raise StageError(f"expected {kind}; this model has the head {self.about.head!r}")


def load_predictor(place: Path, *, threads: int | None = None) -> Predictor:
    """Load the model of an exported directory, a stage's folder or a run: see `compressor.load`."""
    place = place.absolute()  # not resolved: a run's stages are links
    try:
        for folder in (place, place / "model"):
            if (folder / EXPORT).is_file():
                info = ExportInfo.load(folder)
                return Predictor(open_export(folder, info, threads=threads), info)
        return _load_stage(place, threads)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise StageError(f"cannot load the model in {place}: {reason}") from error


def _load_stage(place: Path, threads: int | None) -> Predictor:
    """Load a model that a stage gives to the next; the run's recipe says how texts are read."""
    from compressor.models.checkpoint import Checkpoint
    from compressor.models.loading import CHECKPOINT_JSON

    stages = [place]
    recipe = place.parent.parent / "recipe.yaml"
    if (place / "recipe.yaml").is_file():
        recipe = place / "recipe.yaml"
        stages = sorted((place / "stages").iterdir(), reverse=True)
    folder = next((stage for stage in stages if (stage / CHECKPOINT_JSON).is_file()), None)
    if folder is None or not recipe.is_file():
        raise StageError(
            f"{place} has no model: expected a run's folder, one of its `stages/…`, or a directory "
            "that `export` wrote"
        )
    import yaml
    from pydantic import TypeAdapter

    from compressor.backends.torch.model import TorchModel
    from compressor.data.sources import Data

    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = TypeAdapter(Data).validate_python(values["data"])
    head = json.loads((folder / CHECKPOINT_JSON).read_text(encoding="utf-8"))["head"]
    model = TorchModel(Checkpoint.load(folder), threads=threads)
    about = TextSettings.of(data, head=head, model_type=model.checkpoint.model.config.model_type)
    return Predictor(model, about)
