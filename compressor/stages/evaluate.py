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
    from compressor.checkpoint import Checkpoint
    from compressor.generation import Decoded

MAIN = "rougeLsum"


class Evaluate(Report):
    """Summarize the test split and score it: ROUGE-1/2/L/Lsum with bootstrap 95 % intervals.

    Several `max_length`s cost one greedy decode at the longest, since a shorter limit's output is
    a prefix of a longer one's; with beams each is decoded. `max_length` counts the start token, as
    in transformers: 20 gives at most 19. `gen_len` is the mean of generated tokens, `cut_off` the
    share of summaries that the limit ended. Tables show the scores at the longest limit.

    `against: <stage>` adds, for precision, recall and F1 of each ROUGE, the `retentions` (this /
    that one's) and, under their own name, the `closenesses`, 1 - |difference|, which flatter: two
    bad models are near 1. `retention` and `closeness` are rougeLsum's F1's, which tables show.

    `demo_text` is summarized too, at the longest limit, and the models' summaries are shown side by
    side.

    Example: `evaluate: {models: [load, recover], against: load, max_length: [20, 50, 128]}`
    Example: `evaluate: {models: [load, quantize], demo_text: "One text, several summaries."}`
    """

    version: ClassVar[int] = 2
    splits: ClassVar[tuple[Split, ...]] = ("test",)
    reads: ClassVar[Reads] = "sources"

    max_length: int | list[int] = Field(128, description="Limits, in tokens, at least 2.")
    min_length: int = Field(0, ge=0, description="A summary has at least as many tokens.")
    num_beams: int = Field(1, ge=1, description="1 is greedy.")
    against: str | None = Field(None, description="The stage whose model the others are held to.")
    demo_text: str | None = Field(
        None,
        min_length=1,
        description="A text that each model summarizes; the summaries are printed side by side.",
    )

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
        if self.demo_text is not None:
            context.metrics["demo"] = self._demo(self.demo_text, checkpoint, context)
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

    def _demo(self, text: str, checkpoint: Checkpoint, context: Context) -> dict[str, Any]:
        """What the model makes of the demo text: prefix, truncation and decoding as for a row."""
        from compressor.data.examples import tokenize
        from compressor.generation import decode

        assert checkpoint.tokenizer is not None
        sources = tokenize(Rows([text], [""]), checkpoint.tokenizer, context.data).sources
        decoded = decode(
            checkpoint.model,
            sources,
            max_length=self.limits[-1],
            num_beams=self.num_beams,
            min_length=self.min_length,
        )
        (summary,) = checkpoint.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
        return {"text": text, "summary": summary, "cut_off": decoded.cut_off[0]}

    def _compare(self, own: dict[str, Any], other: dict[str, Any], context: Context) -> None:
        from compressor.metrics.rouge import KEYS, closeness, retention

        kept = {key: retention(own[key], other[key]) for key in KEYS}
        close = {key: closeness(own[key], other[key]) for key in KEYS}
        context.metrics.update(
            retention=kept[MAIN], retentions=kept, closeness=close[MAIN], closenesses=close
        )
