"""`evaluate`: scores of a model's summaries or labels. Decoding and scoring are elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compressor.backends.generation_config import BackendName
from compressor.backends.open import open_artifact
from compressor.core.errors import StageError
from compressor.core.files import MANIFEST, write_json
from compressor.core.packages import versions
from compressor.core.settings import Integer, whole
from compressor.data.rows import Rows
from compressor.data.source_base import Reads, Split
from compressor.evaluation.labels import SCORES as LABEL_SCORES
from compressor.evaluation.rouge import KEYS, SCORERS, RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Report

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.backends.outputs import Decoded

MAIN, MAIN_OF_LABELS = "rougeLsum", "micro_f1"
"""What the retention in tables is of."""
ROW_SCORES = "row_scores.json"


class Evaluate(Report):
    """Score what a model gives for the test split: its summaries, or its labels.

    Summaries: ROUGE-1/2/L/Lsum with bootstrap 95 % intervals; its words are English, or those of
    any script (`rouge_tokenizer`), chosen by the references.
    Several `max_length`s cost one greedy decode at the longest, since a shorter limit's output is
    a prefix of a longer one's; with beams each is decoded. `max_length` counts the start token, as
    in transformers: 20 gives at most 19. `gen_len` is the mean of generated tokens, counted as
    transformers' `run_summarization.py` does: pads not, a start token that is no pad (BART's) too.
    `cut_off` is the share of summaries that the limit ended. Tables show the scores at the longest
    limit.

    All else but lengths, beams and sampling is as the model's generation config says; what is not
    followed is refused while planning (`model.generation` changes it). A row's batch changes its
    logits in the last bit, and more with int8 activations, which round that: alone it can get
    another text.

    Labels: the loss (mean binary cross-entropy over labels, or cross-entropy over rows), micro and
    macro F1, ROC-AUC and average precision, of each label and their mean over labels that have
    rows with and without them. A label of several is given from a probability of `threshold` on.

    `against: <stage>` adds `retentions` (this / that one's) and, under their own name, the
    `closenesses`, 1 - |difference|, which flatter: two bad models are near 1. They are of
    precision, recall and F1 of each ROUGE, or of each score of labels; `retention` and `closeness`,
    which tables show, are rougeLsum's F1's or the micro F1's.

    `demo_text` is summarized too, at the longest limit, and the models' summaries are shown side by
    side.

    What an `export` wrote is scored as what it is made for runs it: name that stage in `models`.
    With beams, CTranslate2 ends a search by rules of its own, and an export's check is greedy.

    With several processes each one computes a share of the batches that one would make, and the
    first scores all of it. What torch does not run stays with one process.

    Example: `evaluate: {models: [load, recover], against: load, max_length: [20, 50, 128]}`
    Example: `evaluate: {models: [load, quantize], demo_text: "One text, several summaries."}`
    Example: `evaluate: {models: [finetune, quantize], threshold: tuned}`
    Example: `evaluate: {models: [finetune, ct2, onnx], against: finetune}`
    """

    version: ClassVar[int] = 4
    runs_exports: ClassVar[bool] = True
    is_distributed: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (
        *(*KEYS, "gen_len", "cut_off"),
        *(*LABEL_SCORES, "accuracy", "loss"),
        *("retention", "closeness", "samples_per_second"),
    )

    backend: BackendName | None = Field(
        None,
        description="What must run the models: torch, ctranslate2 or onnxruntime; default: what "
        "each is made for. Planning tells of a model that is made for another.",
    )
    max_length: int | list[int] = Field(
        128,
        description="Limits, in tokens, at least 2.",
        json_schema_extra={
            "anyOf": [
                {"type": "integer", "minimum": 2},
                {"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 1},
            ]
        },
    )
    min_length: Integer = Field(0, ge=0, description="A summary has at least as many tokens.")
    num_beams: Integer = Field(1, ge=1, description="1 is greedy.")
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["tuned"] = Field(
        0.5,
        description="Probability from which one of several labels is given; tuned: for each label "
        "the one with the best F1 on the validation split.",
    )
    rouge_tokenizer: RougeTokenizerSetting = None
    against: str | None = Field(None, description="The stage whose model the others are held to.")
    demo_text: str | None = Field(
        None,
        min_length=1,
        description="A text that each model summarizes; the summaries are printed side by side.",
    )

    def reads(self) -> Mapping[Split, Reads]:
        tuned: dict[Split, Reads] = {"validation": "sources"} if self.threshold == "tuned" else {}
        return {**tuned, "test": "sources"}

    @field_validator("max_length", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return [whole(each) for each in value] if isinstance(value, list) else whole(value)

    @field_validator("max_length")
    @classmethod
    def _limits(cls, value: int | list[int]) -> int | list[int]:
        limits = value if isinstance(value, list) else [value]
        if not limits or min(limits) < 2:
            raise ValueError("expected limits of at least 2 tokens")
        return value

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Other releases of what counts words may give other scores."""
        return versions(SCORERS) if planning.data.task == "summarization" else {}

    def parameters(self) -> dict[str, Any]:
        own = super().parameters()
        del own["backend"]  # which each model has already
        if self.threshold == 0.5:  # as if there were no such setting
            del own["threshold"]
        return own

    @property
    def limits(self) -> list[int]:
        return sorted(
            set(self.max_length if isinstance(self.max_length, list) else [self.max_length])
        )

    def preview(self, planning: Planning) -> Facts | None:
        planning.check_rows(trains=False)
        planning.check_backend(self.backend)
        facts, labelled = planning.facts, planning.data.task != "summarization"
        if facts is not None and facts.config["head"] == "causal_lm":
            planning.problem("", "scores the summaries of encoder-decoders only")
        planning.check_decoding({"max_length": self.limits[-1]}, num_beams=self.num_beams)
        if self.min_length > self.limits[-1] and not labelled:
            message = f"{self.min_length} is more than max_length, {self.limits[-1]}"
            planning.problem("min_length", message)
        unused = (
            {"max_length", "min_length", "num_beams", "demo_text", "rouge_tokenizer"}
            if labelled
            else {"threshold"}
        )
        for name in sorted(unused & self.model_fields_set):
            what = "labels" if labelled else "summaries"
            planning.problem(name, f"means nothing for {what}; data.task is {planning.data.task}")
        if "threshold" in self.model_fields_set and planning.data.task == "single_label":
            planning.problem("threshold", "a row's one label is the likeliest; there is no limit")
        elif self.threshold == "tuned" and planning.data.scores_validation:
            message = (
                "the rows it would be tuned on are those that are scored; give data a test split"
            )
            planning.problem("threshold", message)
        return facts

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode or classify, write `predictions.csv`, score."""
        model = open_artifact(inputs.model_folder, ranks=context.ranks)
        if model.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        labelled = context.data.task != "summarization"
        (self._labels if labelled else self._summaries)(model, context)
        if "against" in inputs.artifacts and context.ranks.first:
            manifest = json.loads((inputs.artifacts["against"] / MANIFEST).read_text("utf-8"))
            names, main = (LABEL_SCORES, MAIN_OF_LABELS) if labelled else (KEYS, MAIN)
            self._compare(names, main, manifest["metrics"], context)

    def _summaries(self, model: Model, context: Context) -> None:
        from compressor.data.examples import source_ids

        rows = context.rows("test")
        sources = source_ids(rows.texts, model.tokenizer, context.data)
        started = time.perf_counter()
        decodes = len(self.limits) if self.num_beams > 1 else 1
        with context.progress.bar("decode", decodes * len(rows)) as bar:
            decoded = model.sweep(
                sources,
                max_lengths=self.limits,
                num_beams=self.num_beams,
                min_length=self.min_length,
                progress=bar.advance,
            )
        seconds = time.perf_counter() - started
        demo = None if self.demo_text is None else self._demo(self.demo_text, model, context)
        if not context.ranks.first:
            return
        lengths = self._score(rows, decoded, model.tokenizer, context)
        longest = lengths[str(self.limits[-1])]
        context.metrics.update(longest, samples_per_second=len(rows) / seconds, lengths=lengths)
        if demo is not None:
            context.metrics["demo"] = demo

    def _labels(self, model: Model, context: Context) -> None:
        from compressor.backends.outputs import probabilities
        from compressor.data.examples import source_ids
        from compressor.evaluation import labels as labelled
        from compressor.evaluation.labels import best_thresholds, mean_loss

        task, names = context.data.task, context.data.labels
        rows = context.rows("test")
        tune = context.rows("validation") if self.threshold == "tuned" else None
        with context.progress.bar("classify", len(rows) + len(tune or ())) as bar:
            started = time.perf_counter()
            sources = source_ids(rows.texts, model.tokenizer, context.data)
            found = model.logits(sources, progress=bar.advance)
            seconds = time.perf_counter() - started
            thresholds = [0.5 if self.threshold == "tuned" else self.threshold] * len(names)
            if tune is not None:
                sources = source_ids(tune.texts, model.tokenizer, context.data)
                tuned = model.logits(sources, progress=bar.advance)
                thresholds = best_thresholds(probabilities(tuned, task), tune.labels)
        if not context.ranks.first:
            return
        path = context.folder / "predictions.csv"
        given = probabilities(found, task)
        labelled.write(path, rows, given, names, thresholds, task)
        context.metrics.update(
            labelled.score(path),
            loss=mean_loss(found, rows.labels, task),
            samples_per_second=len(rows) / seconds,
        )
        if task == "multi_label":
            context.metrics["thresholds"] = dict(zip(names, thresholds, strict=True))

    def _score(
        self, rows: Rows, decoded: dict[int, Decoded], tokenizer: Any, context: Context
    ) -> dict[str, dict[str, Any]]:
        """Write `predictions.csv`, and score it as `compressor score` does.

        `row_scores.json` has each row's own rougeLsum at the longest limit.
        """
        from compressor.evaluation.predictions import (
            Prediction,
            score_predictions,
            write_predictions,
        )
        from compressor.evaluation.rouge import warn_of_wordless

        def predictions() -> Iterator[Prediction]:
            for limit in self.limits:
                tokens, cut_off = decoded[limit].tokens, decoded[limit].cut_off
                texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
                both = zip(rows.texts, rows.references, texts, strict=True)
                for index, (source, several, text) in enumerate(both):
                    first, *others = [several] if isinstance(several, str) else several
                    yield Prediction(
                        row=index,
                        max_length=limit,
                        source=source,
                        reference=first,
                        prediction=text,
                        tokens=decoded[limit].lengths[index],
                        cut_off=cut_off[index],
                        other_references=tuple(others),
                    )

        path = context.folder / "predictions.csv"
        most = max((len(several) for several in rows.several), default=1)
        write_predictions(path, predictions(), most)
        rows_: dict[int | None, list[float]] = {}
        scored = score_predictions(path, rows_, self.rouge_tokenizer)
        words = scored[self.limits[-1]]["rouge_tokenizer"]
        if words != "english":
            context.progress.say(f"  ROUGE's tokenizer: {words}")
        if warning := warn_of_wordless(scored[self.limits[-1]]):
            context.progress.say(f"  {warning}")
        longest = {"max_length": self.limits[-1], MAIN: rows_[self.limits[-1]]}
        write_json(context.folder / ROW_SCORES, longest)
        return {str(limit): scores for limit, scores in scored.items()}

    def _demo(self, text: str, model: Model, context: Context) -> dict[str, Any]:
        """What the model makes of the demo text: prefix, truncation and decoding as for a row."""
        from compressor.data.examples import source_ids

        limit = self.limits[-1]
        decoded = model.sweep(
            source_ids([text], model.tokenizer, context.data),
            max_lengths=[limit],
            num_beams=self.num_beams,
            min_length=self.min_length,
        )[limit]
        (summary,) = model.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
        return {"text": text, "summary": summary, "cut_off": decoded.cut_off[0]}

    def _compare(
        self, names: tuple[str, ...], main: str, other: Mapping[str, Any], context: Context
    ) -> None:
        from compressor.evaluation.rouge import closeness, retention

        own = context.metrics
        both = [name for name in names if None not in (own[name], other[name])]
        kept = {name: retention(own[name], other[name]) for name in both}
        close = {name: closeness(own[name], other[name]) for name in both}
        own.update(retention=kept[main], retentions=kept, closeness=close[main], closenesses=close)
