"""`evaluate`: score a model's summaries or labels. The scores are in `evaluation`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from compressor.backends.open import open_artifact
from compressor.core.errors import StageError
from compressor.core.files import MANIFEST, write_json
from compressor.core.packages import versions
from compressor.core.settings import Integer, to_int
from compressor.data.rows import Rows
from compressor.data.source_base import Reads, Split
from compressor.evaluation.labels import SCORES as LABEL_SCORES
from compressor.evaluation.rouge import METRIC_KEYS, SCORING_PACKAGES, RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import BackendReport, Context, Inputs, Planning

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.backends.outputs import GenerationOutput

MAIN, MAIN_OF_LABELS = "rougeLsum", "micro_f1"
"""The scores whose retention tables show."""
ROW_SCORES = "row_scores.json"


class Evaluate(BackendReport):
    """Score what a model gives for the test split: its summaries, or its labels.

    Summaries: ROUGE-1/2/L/Lsum with bootstrap 95 % intervals. Words are English, or those of any
    script (`rouge_tokenizer`), as the references need. Several `max_length`s cost one greedy decode
    at the longest, since a shorter limit's output is a prefix of a longer one's; with beams each is
    decoded. `max_length` counts the start token, as in transformers: 20 gives at most 19 tokens.
    `gen_len` is the mean number of generated tokens as transformers' `run_summarization.py` counts
    them: without pads, with a start token that is no pad (BART's). `cut_off` is the share of
    summaries that the limit ended. Tables show the scores at the longest limit.

    The model's generation config decides everything but lengths, beams and sampling; settings that
    are not followed are refused while planning (`model.generation` changes them). A row's batch
    changes the last bit of its logits, and more with int8 activations, which round them: alone it
    can get another text.

    Labels: the loss (mean binary cross-entropy over labels, or cross-entropy over rows), micro and
    macro F1, ROC-AUC and average precision, of each label and their mean over labels that have
    rows with and without them. Of several labels, each is given from a probability of `threshold`.

    `against: <stage>` adds `retentions` (this score / that one's) and `closenesses`
    (1 - |difference|, which flatter: two bad models are near 1), of precision, recall and F1 of
    each ROUGE or of each score of labels. Tables show `retention` and `closeness`, those of
    rougeLsum's F1 or of the micro F1.

    To score what an `export` wrote, run by what it is made for, name that stage in `models`. With
    beams, CTranslate2 ends a search by its own rules; an export's check is greedy.

    Several processes share the batches that one would make, and the first scores all of it. A model
    that torch does not run stays with one process.

    Example: `evaluate: {models: [load, recover], against: load, max_length: [20, 50, 128]}`
    Example: `evaluate: {models: [load, quantize], demo_text: "One text, several summaries."}`
    Example: `evaluate: {models: [finetune, quantize], threshold: tuned}`
    Example: `evaluate: {models: [finetune, ct2, onnx], against: finetune}`
    """

    version: ClassVar[int] = 4
    is_distributed: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (
        *(*METRIC_KEYS, "gen_len", "cut_off"),
        *(*LABEL_SCORES, "accuracy", "loss"),
        *("retention", "closeness", "samples_per_second"),
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
    against: str | None = Field(
        None, description="The stage whose model the others are compared with."
    )
    demo_text: str | None = Field(
        None,
        min_length=1,
        description="A text that each model summarizes, at the longest limit; the summaries are "
        "printed side by side.",
    )

    def reads(self) -> Mapping[Split, Reads]:
        tuned: dict[Split, Reads] = {"validation": "sources"} if self.threshold == "tuned" else {}
        return {**tuned, "test": "sources"}

    @field_validator("max_length", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return [to_int(limit) for limit in value] if isinstance(value, list) else to_int(value)

    @field_validator("max_length")
    @classmethod
    def _limits(cls, value: int | list[int]) -> int | list[int]:
        limits = value if isinstance(value, list) else [value]
        if not limits or min(limits) < 2:
            raise ValueError("expected limits of at least 2 tokens")
        return value

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Name the releases of what counts words: others may give other scores."""
        return {} if planning.has_labels else versions(SCORING_PACKAGES)

    def parameters(self) -> dict[str, Any]:
        parameters = super().parameters()
        if self.threshold == 0.5:  # as before there was such a setting
            del parameters["threshold"]
        return parameters

    @property
    def limits(self) -> list[int]:
        limits = self.max_length
        return sorted(set(limits)) if isinstance(limits, list) else [limits]

    def preview(self, planning: Planning) -> Facts | None:
        facts = super().preview(planning)
        planning.check_rows(trains=False)
        if facts is not None and facts.config["head"] == "causal_lm":
            planning.report("", "scores the summaries of encoder-decoders only")
        planning.check_decoding({"max_length": self.limits[-1]}, num_beams=self.num_beams)
        if self.min_length > self.limits[-1] and not planning.has_labels:
            message = f"{self.min_length} is more than max_length, {self.limits[-1]}"
            planning.report("min_length", message)
        planning.check_settings(
            self,
            of_summaries={"max_length", "min_length", "num_beams", "demo_text", "rouge_tokenizer"},
            of_labels={"threshold"},
        )
        if "threshold" in self.model_fields_set and planning.data.task == "single_label":
            planning.report("threshold", "a row's one label is the likeliest; it needs no limit")
        elif self.threshold == "tuned" and planning.data.scores_validation:
            message = "it would be tuned on the rows that are scored; give data a test split"
            planning.report("threshold", message)
        return facts

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode or classify, write `predictions.csv`, score."""
        model = open_artifact(inputs.model_folder, ranks=context.ranks)
        if model.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        labelled = context.data.has_labels
        (self._labels if labelled else self._summaries)(model, context)
        if "against" in inputs.artifacts and context.ranks.is_first:
            manifest = json.loads((inputs.artifacts["against"] / MANIFEST).read_text("utf-8"))
            names, main = (LABEL_SCORES, MAIN_OF_LABELS) if labelled else (METRIC_KEYS, MAIN)
            self._compare(names, main, manifest["metrics"], context)

    def _summaries(self, model: Model, context: Context) -> None:
        from compressor.data.examples import tokenize_sources

        rows = context.rows("test")
        sources = tokenize_sources(rows.texts, model.tokenizer, context.data)
        started = time.perf_counter()
        times = len(self.limits) if self.num_beams > 1 else 1
        with context.progress.bar("decode", times * len(rows)) as bar:
            decoded = self._decode(model, sources, self.limits, progress=bar.advance)
        seconds = time.perf_counter() - started
        demo = None if self.demo_text is None else self._demo(self.demo_text, model, context)
        if not context.ranks.is_first:
            return
        lengths = self._score(rows, decoded, model.tokenizer, context)
        longest = lengths[str(self.limits[-1])]
        context.metrics.update(longest, samples_per_second=len(rows) / seconds, lengths=lengths)
        if demo is not None:
            context.metrics["demo"] = demo

    def _decode(
        self, model: Model, sources: Sequence[list[int]], limits: list[int], **progress: Any
    ) -> dict[int, GenerationOutput]:
        search: dict[str, Any] = {"num_beams": self.num_beams, "min_length": self.min_length}
        return model.generate_each_limit(sources, max_lengths=limits, **search, **progress)

    def _labels(self, model: Model, context: Context) -> None:
        from compressor.backends.outputs import compute_probabilities
        from compressor.data.examples import tokenize_sources
        from compressor.evaluation import labels

        task, names = context.data.task, context.data.labels
        rows = context.rows("test")
        tuning = context.rows("validation") if self.threshold == "tuned" else None
        with context.progress.bar("classify", len(rows) + len(tuning or ())) as bar:
            started = time.perf_counter()
            sources = tokenize_sources(rows.texts, model.tokenizer, context.data)
            logits = model.logits(sources, progress=bar.advance)
            seconds = time.perf_counter() - started
            thresholds = [0.5 if self.threshold == "tuned" else self.threshold] * len(names)
            if tuning is not None:
                sources = tokenize_sources(tuning.texts, model.tokenizer, context.data)
                table = compute_probabilities(model.logits(sources, progress=bar.advance), task)
                thresholds = labels.best_thresholds(table, tuning.labels)
        if not context.ranks.is_first:
            return
        path = context.folder / "predictions.csv"
        table = compute_probabilities(logits, task)
        labels.write_predictions(path, rows, table, names, thresholds, task)
        context.metrics.update(
            labels.score_predictions(path),
            loss=labels.mean_loss(logits, rows.labels, task),
            samples_per_second=len(rows) / seconds,
        )
        if task == "multi_label":
            context.metrics["thresholds"] = dict(zip(names, thresholds, strict=True))

    def _score(
        self, rows: Rows, decoded: dict[int, GenerationOutput], tokenizer: Any, context: Context
    ) -> dict[str, dict[str, Any]]:
        """Write `predictions.csv`, score it as `compressor score` does; write rows' rougeLsum."""
        from compressor.evaluation import predictions
        from compressor.evaluation.rouge import warn_of_wordless

        def list_predictions() -> Iterator[predictions.Prediction]:
            for limit in self.limits:
                tokens, cut_off = decoded[limit].tokens, decoded[limit].cut_off
                texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
                triples = zip(rows.texts, rows.references, texts, strict=True)
                for index, (source, reference, text) in enumerate(triples):
                    first, *others = [reference] if isinstance(reference, str) else reference
                    yield predictions.Prediction(
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
        columns = max(map(len, rows.several), default=1)
        predictions.write_predictions(path, list_predictions(), columns)
        row_scores: dict[int | None, list[float]] = {}
        scores = predictions.score_predictions(path, row_scores, self.rouge_tokenizer)
        longest = self.limits[-1]
        if (words := scores[longest]["rouge_tokenizer"]) != "english":
            context.progress.say(f"  ROUGE's tokenizer: {words}")
        if warning := warn_of_wordless(scores[longest]):
            context.progress.say(f"  {warning}")
        write_json(context.folder / ROW_SCORES, {"max_length": longest, MAIN: row_scores[longest]})
        return {str(limit): values for limit, values in scores.items()}

    def _demo(self, text: str, model: Model, context: Context) -> dict[str, Any]:
        """Summarize the demo text with the prefix, truncation and decoding of a row."""
        from compressor.data.examples import tokenize_sources

        sources, limit = tokenize_sources([text], model.tokenizer, context.data), self.limits[-1]
        decoded = self._decode(model, sources, [limit])[limit]
        (summary,) = model.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
        return {"text": text, "summary": summary, "cut_off": decoded.cut_off[0]}

    def _compare(
        self, names: tuple[str, ...], main: str, other: Mapping[str, Any], context: Context
    ) -> None:
        from compressor.evaluation.rouge import compute_closeness, compute_retention

        scores = context.metrics
        names = tuple(name for name in names if None not in (scores[name], other[name]))
        kept = {name: compute_retention(scores[name], other[name]) for name in names}
        close = {name: compute_closeness(scores[name], other[name]) for name in names}
        scores.update(
            retention=kept[main], retentions=kept, closeness=close[main], closenesses=close
        )
