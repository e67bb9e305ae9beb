"""The predictor that `compressor.load` returns: a model of any backend, from texts to answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.backends.base import EXPORT, WRITERS, Model
from compressor.backends.formats import ExportInfo, TextSettings
from compressor.backends.generation_config import BackendName
from compressor.backends.open import open_export
from compressor.core.errors import StageError, first_line
from compressor.data.examples import tokenize_sources, tokenize_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from compressor.backends.outputs import GenerationOutput


class Predictor:
    """A model of any backend with the settings by which its texts were read when it was scored."""

    def __init__(self, model: Model, text_settings: TextSettings) -> None:
        self._model, self.text_settings = model, text_settings

    @property
    def backend(self) -> BackendName:
        """The library that runs the model, such as "torch" or "onnxruntime"."""
        return self._model.backend

    def write(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        min_length: int = 0,
        num_beams: int = 1,
    ) -> list[str]:
        """Write a text for each: a summary, a translation; a decoder writes how a prompt goes on.

        `max_length` and `min_length` count tokens as in transformers, an encoder-decoder's start
        token included, and of a decoder the new ones; `max_length` None is the recipe's
        `data.max_target_length`. `num_beams` 1 is greedy. A text longer than the recipe's limit is
        cut as its data says. Raises StageError for a classifier.
        """
        output = self.generate(
            texts, max_length=max_length, min_length=min_length, num_beams=num_beams
        )
        return self.decode(output.tokens)

    summarize = write

    def classify(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Compute, for each text, the probability in [0, 1] of each label.

        They add up to 1 where a text has exactly one label (task single_label), and are independent
        where it can have several (multi_label). Raises StageError for a model without labels.
        """
        from compressor.backends.outputs import compute_probabilities

        self._require_head(("sequence_classification",), "a classifier")
        logits = self._model.logits(self.tokenize(texts))
        names = self.text_settings.labels or tuple(f"label {i}" for i in range(logits.shape[1]))
        rows = compute_probabilities(logits, self.text_settings.task)
        return [dict(zip(names, map(float, row), strict=True)) for row in rows]

    def tag(self, texts: Sequence[str | Sequence[str]]) -> list[list[str]]:
        """Give each word of each text its tag, such as B-PER.

        A text is a list of words, or is split at white space. Words beyond the source limit get O.
        Raises StageError for a model without tags.
        """
        from compressor.backends.outputs import choose_tags, split_words

        self._require_head(("token_classification",), "a model that tags words")
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one text")
        rows = [text.split() if isinstance(text, str) else list(text) for text in texts]
        if any(not word or " " in word for row in rows for word in row):
            raise ValueError("a word is not empty, and has no space")
        joined = [" ".join(row) for row in rows]
        tokenizer = self._require_tokenizer()
        sources, places = tokenize_words(joined, tokenizer, self.text_settings)
        words = split_words(self._model.logits(sources), sources.lengths(), places)
        return choose_tags(words, self.text_settings.labels)

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_length: int | None = None,
        min_length: int = 0,
        num_beams: int = 1,
    ) -> GenerationOutput:
        """Generate token ids, and tell which rows the limit cut off; arguments as `write`."""
        self._require_head(WRITERS, "a model that writes text")
        limit = self.text_settings.max_target_length if max_length is None else max_length
        if limit < 1 or num_beams < 1:
            raise ValueError(f"expected at least 1, got max_length {limit}, num_beams {num_beams}")
        outputs = self._model.generate_each_limit(
            self.tokenize(texts), max_lengths=[limit], num_beams=num_beams, min_length=min_length
        )
        return outputs[limit]

    def decode(self, tokens: Sequence[Sequence[int]]) -> list[str]:
        """Decode rows of token ids to texts, without special tokens."""
        return list(self._model.tokenizer.batch_decode(tokens, skip_special_tokens=True))

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Compute a classifier's logits, of shape (texts, labels), or of tokens: `Model.logits`."""
        return self._model.logits(self.tokenize(texts))

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts with the prefix, cut to the source limit: one list of token ids a text."""
        tokenizer = self._require_tokenizer()
        if isinstance(texts, str):
            raise TypeError("expected a list of texts, got one text")
        continues = self.text_settings.head == "causal_lm"
        return list(tokenize_sources(texts, tokenizer, self.text_settings, continues=continues))

    def _require_tokenizer(self) -> Any:
        if self._model.tokenizer is None:
            raise StageError("the model has no tokenizer, and reads no texts")
        return self._model.tokenizer

    def _require_head(self, heads: Sequence[str], expected: str) -> None:
        if self.text_settings.head not in heads:
            raise StageError(
                f"expected {expected}; this model has the head {self.text_settings.head!r}"
            )


def load_predictor(path: Path, *, threads: int | None = None) -> Predictor:
    """Load the model in the folder of an export, a stage or a run: see `compressor.load`."""
    path = path.absolute()  # not resolved, since a run's stages are links into the store
    try:
        for folder in (path, path / "model"):
            if (folder / EXPORT).is_file():
                info = ExportInfo.load(folder)
                return Predictor(open_export(folder, info, threads=threads), info)
        return _load_checkpoint(path, threads)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise StageError(f"cannot load the model in {path}: {first_line(error)}") from error


def _load_checkpoint(path: Path, threads: int | None) -> Predictor:
    """Load the checkpoint of a stage, or a run's last; the run's recipe says how texts are read."""
    from compressor.models.checkpoint import Checkpoint
    from compressor.models.loading import CHECKPOINT_JSON

    stages = [path]
    recipe = path.parent.parent / "recipe.yaml"
    if (path / "recipe.yaml").is_file():
        recipe = path / "recipe.yaml"
        stages = sorted((path / "stages").iterdir(), reverse=True)
    folder = next((stage for stage in stages if (stage / CHECKPOINT_JSON).is_file()), None)
    if folder is None or not recipe.is_file():
        raise StageError(
            f"{path} has no model: expected a run's folder, one of its `stages/…`, or a directory "
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
    model_type = model.checkpoint.model.config.model_type
    return Predictor(model, TextSettings.of(data, head=head, model_type=model_type))
