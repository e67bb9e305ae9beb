"""`evaluate`: scores of a model at several `max_length`s. Decoding itself is elsewhere."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from compressor.architectures import Facts
from compressor.data.sources import Reads, Rows, Split
from compressor.errors import StageError
from compressor.stage import Context, Inputs, Planning, Report
from compressor.store import MANIFEST

if TYPE_CHECKING:
    from compressor.generation import Decoded

MAIN = "rougeLsum"


class Evaluate(Report):
    """Summarize the test split and score it: ROUGE-1/2/L/Lsum with bootstrap 95 % intervals.

    Several `max_length`s cost one greedy decode at the longest, since a shorter limit's output is
    a prefix of a longer one's; with beams each is decoded. `max_length` counts the start token, as
    in transformers: 20 gives at most 19. `gen_len` is the mean of generated tokens, `cut_off` the
    share of summaries that the limit ended. Tables show the scores at the longest limit.

    `against: <stage>` adds, for each ROUGE, `retention` (this / that one's) and, under its own
    name, `closeness` = 1 - |difference|, which flatters: it is near 1 for two bad models.

    Example: `evaluate: {models: [load, recover], against: load, max_length: [20, 50, 128]}`
    """

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[Split, ...]] = ("test",)
    reads: ClassVar[Reads] = "sources"

    max_length: int | list[int] = Field(128, description="Limits, in tokens, at least 2.")
    min_length: int = Field(0, ge=0, description="A summary has at least as many tokens.")
    num_beams: int = Field(1, ge=1, description="1 is greedy.")
    against: str | None = Field(None, description="The stage whose model the others are held to.")

    @field_validator("max_length")
    @classmethod
    def _limits(cls, value: int | list[int]) -> int | list[int]:
        limits = value if isinstance(value, list) else [value]
        if not limits or min(limits) < 2:
            raise ValueError("expected limits of at least 2 tokens")
        return value

    @property
    def limits(self) -> list[int]:
        return sorted(
            set(self.max_length if isinstance(self.max_length, list) else [self.max_length])
        )

    def preview(self, planning: Planning) -> Facts | None:
        if planning.facts is not None and planning.facts.config["head"] != "seq2seq_lm":
            planning.problem("", "scores sequence-to-sequence models only")
        return planning.facts

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode, write `predictions.csv`, score."""
        import torch

        from compressor.data.examples import tokenize
        from compressor.generation import sweep

        checkpoint = inputs.checkpoint()
        if checkpoint.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        rows = context.rows("test")
        sources = tokenize(rows, checkpoint.tokenizer, context.data).sources
        model = checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
        started = time.perf_counter()
        decodes = len(self.limits) if self.num_beams > 1 else 1
        with context.progress.bar("decode", decodes * len(rows)) as bar:
            decoded = sweep(
                model,
                sources,
                max_lengths=self.limits,
                num_beams=self.num_beams,
                min_length=self.min_length,
                progress=bar.advance,
            )
        seconds = time.perf_counter() - started
        lengths = self._score(rows, decoded, checkpoint.tokenizer, context)
        longest = lengths[str(self.limits[-1])]
        context.metrics.update(longest, samples_per_second=len(rows) / seconds, lengths=lengths)
        if "against" in inputs.artifacts:
            manifest = json.loads((inputs.artifacts["against"] / MANIFEST).read_text("utf-8"))
            self._compare(longest, manifest["metrics"], context)

    def _score(
        self, rows: Rows, decoded: dict[int, Decoded], tokenizer: Any, context: Context
    ) -> dict[str, dict[str, Any]]:
        """Write `predictions.csv`, and score it as `compressor score` does."""
        from compressor.metrics.predictions import Prediction, score_predictions, write_predictions

        predictions = []
        for limit in self.limits:
            texts = tokenizer.batch_decode(decoded[limit].tokens, skip_special_tokens=True)
            for index, text in enumerate(texts):
                predictions.append(
                    Prediction(
                        row=index,
                        max_length=limit,
                        source=rows.texts[index],
                        reference=rows.summaries[index],
                        prediction=text,
                        tokens=len(decoded[limit].tokens[index]),
                        cut_off=decoded[limit].cut_off[index],
                    )
                )
        path = context.folder / "predictions.csv"
        write_predictions(path, predictions)
        return {str(limit): scores for limit, scores in score_predictions(path).items()}

    def _compare(self, own: dict[str, Any], other: dict[str, Any], context: Context) -> None:
        from compressor.metrics.rouge import NAMES, closeness, retention

        kept = {name: retention(own[name], other[name]) for name in NAMES}
        context.metrics.update(
            retention=kept[MAIN],
            retentions=kept,
            closeness={name: closeness(own[name], other[name]) for name in NAMES},
        )
