"""`evaluate`: score a model's texts or labels. Each task's scoring is in `scoring`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from compressor.backends.open import open_artifact
from compressor.core.errors import StageError
from compressor.core.files import MANIFEST
from compressor.core.packages import versions
from compressor.core.settings import Integer, Listed, to_int
from compressor.data.source_base import Reads, Split
from compressor.evaluation.entities import SCORES as ENTITY_SCORES
from compressor.evaluation.harness import check_tasks, identify_tasks, name_task, score_tasks
from compressor.evaluation.harness import list_scores as list_task_scores
from compressor.evaluation.labels import SCORES as LABEL_SCORES
from compressor.evaluation.metric_names import (
    SCALES,
    MetricNames,
    identify_metrics,
    list_scores,
    name_score,
)
from compressor.evaluation.perplexity import PERPLEXITIES
from compressor.evaluation.rouge import METRIC_KEYS, RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import BackendReport, Context, Inputs, Planning
from compressor.stages.scoring.labels import check_threshold, score_labels
from compressor.stages.scoring.perplexity import check_windows, score_perplexity
from compressor.stages.scoring.tags import score_tags
from compressor.stages.scoring.texts import check_texts, score_texts

_OF_SUMMARIES = {"max_length", "min_length", "num_beams", "demo_text", "rouge_tokenizer"}
_OF_PERPLEXITY = {"window", "stride"}


class Evaluate(BackendReport):
    """Score what a model gives for the test split: its texts, its labels, or its perplexity.

    Texts: ROUGE-1/2/L/Lsum with bootstrap 95 % intervals. Words are English, or those of any
    script (`rouge_tokenizer`), as the references need. `metrics` names others, for translations,
    say: sacrebleu, chrf and ter (0 … 100, as sacrebleu counts them; its signature is recorded) and
    exact_match are at hand. Further ones of `evaluate` (meteor, bertscore, …, `owner/name`) are
    fetched from a hub, and `./my_metric.py` is one's own: both run code, and so want
    `trust_remote_code: true`. They are computed of a few rows before the decode, and have an
    interval where they are means over rows, or can be computed 200 times in a minute; more is taken
    to be better but of ter, wer, cer, character, charcut_mt and a metric that has
    `less_is_better = True`. Several `max_length`s cost one greedy decode
    at the longest, since a shorter limit's output is a prefix of a longer one's; with beams each is
    decoded. `max_length` counts the start token, as in transformers: 20 gives at most 19 tokens.
    `gen_len` is the mean number of generated tokens as transformers' `run_summarization.py` counts
    them: without pads, with a start token that is no pad (BART's). `cut_off` is the share of
    texts that the limit ended. Tables show the scores at the longest limit.

    The model's generation config decides everything but lengths, beams and sampling; settings that
    are not followed are refused while planning (`model.generation` changes them). A row's batch
    changes the last bit of its logits, and more with int8 activations, which round them: alone it
    can get another text.

    A decoder goes on from its prompt, and `max_length` counts the new tokens. Of texts alone (task
    language_modeling without `completion`) it has a perplexity: of every token but a text's first,
    in windows of `window` tokens that begin `stride` tokens apart, so that a token is told from at
    least `window - stride` others before it where there are so many. It reads each token some
    `window / stride` times. `perplexity`, `word_perplexity` (words between white space) and
    `byte_perplexity` (`bits_per_byte` is its logarithm) divide one sum of losses; `loss` is in nats
    a token. Models with other tokenizers compare by words or bytes alone. Of perplexities, where
    less is better, a retention is that score / this one's. After prompts, `metrics: [perplexity]`
    is that of the completions (of a row's first reference, to `data.max_target_length`) with their
    end token, as the validation loss of a training is.

    Labels: the loss (mean binary cross-entropy over labels, or cross-entropy over rows), micro and
    macro F1, ROC-AUC and average precision, of each label and their mean over labels that have
    rows with and without them. Of several labels, each is given from a probability of `threshold`.

    Tags of words: F1, precision and recall of entities, of all and of each type, as seqeval counts
    by default; the F1's bootstrap 95 % interval over rows; `strict_f1`, seqeval's where tags have a
    scheme such as IOB2; and the words' accuracy and loss. A word has its first token's tag; one
    beyond `data.max_source_length` counts as O, and `cut_words` says how many these are.

    `against: <stage>` adds `retentions` (this score / that one's; that one's / this where less is
    better) and `closenesses` (1 - |difference|, which flatter: two bad models are near 1), of
    precision, recall and F1 of each ROUGE, of other metrics' main numbers, or of each score of
    labels or entities. Tables show `retention` and `closeness`, those of the first of `metrics`
    (rougeLsum's F1), of the micro F1 or of the entities' F1.

    `harness` adds tasks of EleutherAI's lm-evaluation-harness (arc_easy, hellaswag, mmlu, …; the
    package lm_eval), with its own settings, of a decoder that torch runs: `harness.<task>.<metric>`
    of the metrics. `./my_task.yaml` is one's own, whose `task:` is `my_task`; it can run code, and
    so wants `trust_remote_code: true`.

    To score what an `export` wrote, run by what it is made for, name that stage in `models`. With
    beams, CTranslate2 ends a search by its own rules; an export's check is greedy.

    Several processes share the batches that one would make, and the first scores all of it. A model
    that torch does not run stays with one process.

    Example: `evaluate: {models: [load, recover], against: load, max_length: [20, 50, 128]}`
    Example: `evaluate: {models: [load, quantize], demo_text: "One text, from which each writes."}`
    Example: `evaluate: {models: [load, quantize], metrics: [sacrebleu, chrf], against: load}`
    Example: `evaluate: {models: [finetune, quantize], threshold: tuned}`
    Example: `evaluate: {models: [load, quantize], against: load, window: 1024, stride: 512}`
    Example: `evaluate: {models: [load, quantize], metrics: [perplexity, rouge], against: load}`
    Example: `evaluate: {models: [finetune, ct2, onnx], against: finetune}`
    Example: `evaluate: {models: [load, quantize], harness: [arc_easy, hellaswag]}`
    """

    version: ClassVar[int] = 4
    is_distributed: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (
        *(*METRIC_KEYS, "gen_len", "cut_off"),
        *(*LABEL_SCORES, "accuracy", "loss"),
        *(*ENTITY_SCORES, "strict_f1"),
        *(*PERPLEXITIES, "bits_per_byte"),
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
    min_length: Integer = Field(0, ge=0, description="A text has at least as many tokens.")
    num_beams: Integer = Field(1, ge=1, description="1 is greedy.")
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["tuned"] = Field(
        0.5,
        description="Probability from which one of several labels is given; tuned: for each label "
        "the one with the best F1 on the validation split.",
    )
    rouge_tokenizer: RougeTokenizerSetting = None
    metrics: MetricNames = ("rouge",)
    trust_remote_code: bool = Field(
        False, description="Run the code of metrics that are a hub's or a path's, and of tasks."
    )
    harness: Listed[str] = Field(
        (),
        description="Tasks of lm_eval that a decoder is scored by too, by name, or one's own by "
        "the path of its YAML.",
    )
    against: str | None = Field(
        None, description="The stage whose model the others are compared with."
    )
    demo_text: str | None = Field(
        None,
        min_length=1,
        description="A text from which each model writes one, at the longest limit; these are "
        "printed side by side.",
    )
    window: Integer | None = Field(
        None,
        ge=2,
        description="Of perplexity: tokens that the model reads at once; default: "
        "`data.max_source_length`.",
    )
    stride: Integer | None = Field(
        None,
        ge=1,
        description="Of perplexity: how far a window begins after the last; default: half of it.",
    )

    def reads(self) -> Mapping[Split, Reads]:
        tuned: dict[Split, Reads] = {"validation": "sources"} if self.threshold == "tuned" else {}
        return {**tuned, "test": "pairs" if PERPLEXITIES[0] in self.metrics else "sources"}

    @property
    def written_metrics(self) -> tuple[str, ...]:
        """The metrics that score texts which the model writes."""
        return tuple(metric for metric in self.metrics if metric != PERPLEXITIES[0])

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
        """Name the releases and code of what scores: others may give other scores."""
        if planning.data.task == "token_classification":
            return versions(("seqeval",))
        if planning.has_labels:
            return {}
        harness = identify_tasks(self.harness)
        return identify_metrics(self.written_metrics) | ({"harness": harness} if harness else {})

    def parameters(self) -> dict[str, Any]:
        parameters = super().parameters()
        del parameters["trust_remote_code"]
        parameters["metrics"] = [name_score(metric) for metric in self.metrics]
        parameters["harness"] = [name_task(task) for task in self.harness]
        unset = {name for name in _OF_PERPLEXITY if getattr(self, name) is None}
        for name, before in (("threshold", 0.5), ("metrics", ("rouge",)), ("harness", ())):
            if getattr(self, name) == before:  # as before there was such a setting
                unset.add(name)
        return {name: value for name, value in parameters.items() if name not in unset}

    def list_measures(self) -> tuple[str, ...]:
        absent = {*METRIC_KEYS} | ({"retention", "closeness"} if self.against is None else set())
        if self.metrics[0] not in ("rouge", *SCALES):  # 1 - |difference| of it means nothing
            absent.add("closeness")
        others = [name for name in self.measures if name not in absent]
        of_metrics, of_tasks = list_scores(self.metrics), list_task_scores(self.harness)
        return tuple(dict.fromkeys((*of_metrics, *others, *of_tasks)))

    @property
    def limits(self) -> list[int]:
        limits = self.max_length
        return sorted(set(limits)) if isinstance(limits, list) else [limits]

    def preview(self, planning: Planning) -> Facts | None:
        """Report settings that mean nothing for the rows' task, and what cannot be scored."""
        facts, task = super().preview(planning), planning.data.task
        if self.harness:
            self._check_harness(planning)
        if planning.data.is_text_alone:
            self._report_unused(planning, "where the perplexity of texts is measured")
            check_windows(self, planning)
            return facts
        self._report_unused(planning, "where texts or labels are given")
        planning.check_rows(trains=False)
        planning.check_settings(
            self,
            of_summaries=_OF_SUMMARIES | {"trust_remote_code"},
            of_labels={"threshold"},
        )
        if not planning.has_labels:
            check_texts(self, planning)
        elif "metrics" in self.model_fields_set:
            names = ENTITY_SCORES if task == "token_classification" else LABEL_SCORES
            message = f"labels are scored by {', '.join(names)}, accuracy and loss"
            planning.report("metrics", f"{message}; leave it out")
        check_threshold(self, planning)
        return facts

    def _report_unused(self, planning: Planning, where: str) -> None:
        """Report settings of perplexity, or where it is measured all that are of other scores."""
        unused = _OF_PERPLEXITY
        if planning.data.is_text_alone:
            code = set() if self.harness or not self.trust_remote_code else {"trust_remote_code"}
            unused = {*_OF_SUMMARIES, "metrics", "threshold", *code}
        for name in sorted(unused & self.model_fields_set):
            if getattr(self, name) is not None:
                planning.report(name, f"means nothing {where}; data.task is {planning.data.task}")

    def _check_harness(self, planning: Planning) -> None:
        head = planning.facts.config["head"] if planning.facts else "causal_lm"
        if head != "causal_lm":
            message = f"scores decoders, and the model has the head {head!r}; leave it out"
            planning.report("harness", message)
        elif planning.backend != "torch":
            planning.report("harness", f"scores what torch runs, and {planning.backend} runs this")
        else:
            reporters = planning.report, planning.report_unreached
            check_tasks(self.harness, *reporters, runs_code=self.trust_remote_code)

    def smoke_test_settings(self, planning: Planning) -> Self:
        """Leave lm_eval's tasks out, whose rows are not the data's."""
        lower = super().smoke_test_settings(planning)
        runs_code = self.trust_remote_code and not planning.data.is_text_alone  # of metrics
        update = {"harness": (), "trust_remote_code": runs_code}
        return lower.model_copy(update=update) if self.harness else lower

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode, classify or read the texts, write a file of rows, score."""
        model = open_artifact(inputs.model_folder, ranks=context.ranks)
        if model.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        if self.harness and context.ranks.is_first:
            decoder: Any = model  # torch's: planning lets no other come here
            scores = score_tasks(decoder.checkpoint.model, model.tokenizer, self.harness)
            context.metrics["harness"] = scores
        if context.data.task == "token_classification":
            comparison = score_tags(model, context)
        elif context.data.has_labels:
            comparison = score_labels(self, model, context)
        elif context.data.is_text_alone:
            comparison = score_perplexity(self, model, context)
        else:
            comparison = score_texts(self, model, context)
        if "against" in inputs.artifacts and context.ranks.is_first:
            manifest = json.loads((inputs.artifacts["against"] / MANIFEST).read_text("utf-8"))
            context.metrics.update(comparison.compare(context.metrics, manifest["metrics"]))
