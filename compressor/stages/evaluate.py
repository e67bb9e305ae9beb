"""`evaluate`: score a model's texts or labels. The scores are in `evaluation`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from compressor.backends.base import DECODERS
from compressor.backends.open import open_artifact
from compressor.core.errors import StageError
from compressor.core.files import MANIFEST, write_json
from compressor.core.packages import versions
from compressor.core.settings import Integer, Listed, to_int
from compressor.data.rows import Rows
from compressor.data.source_base import DataBase, Reads, Split
from compressor.evaluation.entities import SCORES as ENTITY_SCORES
from compressor.evaluation.harness import check_tasks, identify_tasks, name_task, score_tasks
from compressor.evaluation.labels import SCORES as LABEL_SCORES
from compressor.evaluation.metric_names import (
    BUNDLED,
    FETCHED,
    LESS_IS_BETTER,
    SCALES,
    check_metrics,
    identify_metrics,
    name_score,
)
from compressor.evaluation.perplexity import PERPLEXITIES
from compressor.evaluation.rouge import METRIC_KEYS, RougeTokenizerSetting
from compressor.models.facts import Facts
from compressor.stages.base import BackendReport, Context, Inputs, Planning

if TYPE_CHECKING:
    from compressor.backends.base import Model
    from compressor.backends.outputs import GenerationOutput
    from compressor.evaluation.metric import ForeignMetric

_OF_SUMMARIES = {"max_length", "min_length", "num_beams", "demo_text", "rouge_tokenizer"}
_OF_PERPLEXITY = {"window", "stride"}
MAIN_OF_LABELS, MAIN_OF_ENTITIES = "micro_f1", "entity_f1"
"""The scores whose retention tables show; of texts it is that of the first metric."""
ROW_SCORES = "row_scores.json"
_SCALES = {**dict.fromkeys((*METRIC_KEYS, *LABEL_SCORES, *ENTITY_SCORES), 1.0), **SCALES}
"""Scores that have a closeness → the best one, or the worst usual one."""
_RESERVED = {*METRIC_KEYS, "count", "gen_len", "cut_off", "lengths", "intervals", "demo"}


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
    less is better, a retention is that score / this one's.

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
    metrics: Listed[str] = Field(
        ("rouge",),
        min_length=1,
        description="What scores texts, the main one first: rouge, sacrebleu, chrf, ter, "
        "exact_match; others of `evaluate` by name, or one's own by path.",
    )
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

    @field_validator("metrics")
    @classmethod
    def _are_told_apart(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [name_score(metric) for metric in value]
        for metric, name in zip(value, names, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"{metric!r} is not the only metric that gives {name!r}")
            if name in _RESERVED and metric != "rouge":
                raise ValueError(f"{name!r} is the name of another number; call {metric!r} another")
        return value

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Name the releases and code of what scores: others may give other scores."""
        if planning.data.task == "token_classification":
            return versions(("seqeval",))
        if planning.has_labels:
            return {}
        harness = identify_tasks(self.harness)
        return identify_metrics(self.metrics) | ({"harness": harness} if harness else {})

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
        if self.metrics == ("rouge",):
            return self.measures
        of_rouge = METRIC_KEYS if "rouge" in self.metrics else ()
        more = (f"{metric}_{end}" for metric in self.metrics for end in FETCHED.get(metric, ()))
        others = (name for name in self.measures if name not in METRIC_KEYS)
        return (*of_rouge, *map(name_score, self.metrics), *more, *others)

    @property
    def limits(self) -> list[int]:
        limits = self.max_length
        return sorted(set(limits)) if isinstance(limits, list) else [limits]

    def preview(self, planning: Planning) -> Facts | None:
        facts = super().preview(planning)
        if self.harness:
            self._check_harness(planning)
        if planning.data.is_text_alone:
            self._check_windows(planning)
            return facts
        self._check_unused(planning, _OF_PERPLEXITY, "where texts or labels are given")
        planning.check_rows(trains=False)
        if facts and facts.config["head"] == "causal_lm" and planning.backend not in DECODERS:
            planning.report("", f"{planning.backend} writes nothing with a decoder; torch does")
        planning.check_decoding({"max_length": self.limits[-1]}, num_beams=self.num_beams)
        if self.min_length > self.limits[-1] and not planning.has_labels:
            message = f"{self.min_length} is more than max_length, {self.limits[-1]}"
            planning.report("min_length", message)
        planning.check_settings(
            self,
            of_summaries=_OF_SUMMARIES | {"trust_remote_code"},
            of_labels={"threshold"},
        )
        self._check_metrics(planning)
        chooses_one = planning.data.task in ("single_label", "token_classification")
        if "threshold" in self.model_fields_set and chooses_one:
            of = "row" if planning.data.task == "single_label" else "word"
            planning.report("threshold", f"a {of}'s one label is the likeliest; it needs no limit")
        elif self.threshold == "tuned" and planning.data.scores_validation:
            message = "it would be tuned on the rows that are scored; give data a test split"
            planning.report("threshold", message)
        return facts

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

    def _check_windows(self, planning: Planning) -> None:
        """Report what cannot be in a perplexity, where it is measured."""
        planning.check_rows(trains=False)
        means_nothing = "where the perplexity of texts is measured"
        unused = {*_OF_SUMMARIES, "metrics", "threshold"}
        if self.trust_remote_code and not self.harness:
            unused.add("trust_remote_code")
        self._check_unused(planning, unused, means_nothing)
        if planning.backend not in DECODERS:
            message = f"the perplexity of a model that {planning.backend} runs is not computed"
            planning.report("", message)
        window, stride = self._choose_windows(planning.data)
        if planning.facts is not None:
            planning.check_length("window", window, facts=planning.facts)
        if stride >= window:
            message = f"{stride} leaves a window of {window} tokens none to go on from; lower it"
            planning.report("stride", message)

    def _check_unused(self, planning: Planning, names: set[str], where: str) -> None:
        for name in sorted(names & self.model_fields_set):
            if getattr(self, name) is not None:
                planning.report(name, f"means nothing {where}; data.task is {planning.data.task}")

    def _choose_windows(self, data: DataBase) -> tuple[int, int]:
        """Choose the size of windows, and their stride."""
        window = self.window or data.max_source_length
        return window, self.stride or max(1, window // 2)

    def _check_metrics(self, planning: Planning) -> None:
        if planning.has_labels:
            if "metrics" in self.model_fields_set:
                is_tagged = planning.data.task == "token_classification"
                names = ENTITY_SCORES if is_tagged else LABEL_SCORES
                message = f"labels are scored by {', '.join(names)}, accuracy and loss"
                planning.report("metrics", f"{message}; leave it out")
            return
        if "rouge" not in self.metrics and self.rouge_tokenizer is not None:
            planning.report("rouge_tokenizer", "`metrics` has no rouge, whose words these are")
        reporters = planning.report, planning.report_unreached
        check_metrics(self.metrics, *reporters, runs_code=self.trust_remote_code)

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode, classify or read the texts, write a file of rows, score."""
        model = open_artifact(inputs.model_folder, ranks=context.ranks)
        if model.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        if self.harness and context.ranks.is_first:
            decoder: Any = model  # torch's: planning lets no other come here
            scores = score_tasks(decoder.checkpoint.model, model.tokenizer, self.harness)
            context.metrics["harness"] = scores
        names: Sequence[str] = LABEL_SCORES
        main, less = MAIN_OF_LABELS, set[str]()
        if context.data.task == "token_classification":
            self._tags(model, context)
            names, main = ENTITY_SCORES, MAIN_OF_ENTITIES
        elif context.data.has_labels:
            self._labels(model, context)
        elif context.data.is_text_alone:
            self._perplexity(model, context)
            names, main, less = PERPLEXITIES, PERPLEXITIES[0], set(PERPLEXITIES)
        else:
            foreign = self._summaries(model, context)
            others = [name_score(metric) for metric in self.metrics if metric != "rouge"]
            names = (*(METRIC_KEYS if "rouge" in self.metrics else ()), *others)
            main, less = name_score(self.metrics[0]), {*self.metrics} & LESS_IS_BETTER
            less |= {metric.name for metric in foreign if metric.less_is_better}
        if "against" in inputs.artifacts and context.ranks.is_first:
            manifest = json.loads((inputs.artifacts["against"] / MANIFEST).read_text("utf-8"))
            self._compare(names, main, less, manifest["metrics"], context)

    def _perplexity(self, model: Model, context: Context) -> None:
        from compressor.evaluation import perplexity

        rows = context.rows("test")
        texts = [context.data.prefix + text for text in rows.texts]
        size, stride = self._choose_windows(context.data)
        ids = perplexity.read_texts(texts, model.tokenizer)
        windows = perplexity.list_windows(ids, size=size, stride=stride)
        if context.ranks.is_first:
            tokens = f"{sum(ids.lengths()):,} tokens, {windows.count_tokens():,} to be read"
            context.progress.say(f"  {len(windows.rows):,} windows of {tokens}")
        started = time.perf_counter()
        with context.progress.bar("read", len(windows.rows)) as bar:
            table = perplexity.measure_texts(model, texts, windows, bar.advance)
        seconds = time.perf_counter() - started
        if not context.ranks.is_first:
            return
        perplexity.write_rows(context.folder / perplexity.FILE, texts, table)
        speed = {"samples_per_second": len(texts) / seconds}
        context.metrics.update(
            perplexity.summarize_rows(table), window=size, stride=stride, **speed
        )

    def _load_foreign(self, rows: Rows, context: Context) -> list[ForeignMetric]:
        """Load metrics whose code is not ours, and try each out on a few rows."""
        metrics = [metric for metric in self.metrics if metric not in BUNDLED]
        if not metrics or not context.ranks.is_first:
            return []
        from compressor.evaluation.metric import ForeignMetric

        loaded = [ForeignMetric(metric) for metric in metrics]
        references = [[some] if isinstance(some, str) else list(some) for some in rows.references]
        for metric in loaded:
            metric.try_out(references, rows.texts)
        return loaded

    def _summaries(self, model: Model, context: Context) -> list[ForeignMetric]:
        """Decode and score; give the metrics whose code is not ours."""
        from compressor.data.examples import tokenize_sources

        rows = context.rows("test")
        foreign = self._load_foreign(rows, context)
        continues = model.continues
        sources = tokenize_sources(rows.texts, model.tokenizer, context.data, continues=continues)
        started = time.perf_counter()
        times = len(self.limits) if self.num_beams > 1 else 1
        with context.progress.bar("decode", times * len(rows)) as bar:
            decoded = self._decode(model, sources, self.limits, progress=bar.advance)
        seconds = time.perf_counter() - started
        demo = None if self.demo_text is None else self._demo(self.demo_text, model, context)
        if not context.ranks.is_first:
            return foreign
        lengths = self._score(rows, decoded, model.tokenizer, foreign, context)
        longest = lengths[str(self.limits[-1])]
        context.metrics.update(longest, samples_per_second=len(rows) / seconds, lengths=lengths)
        if demo is not None:
            context.metrics["demo"] = demo
        return foreign

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

    def _tags(self, model: Model, context: Context) -> None:
        """Tag the words of each row, write `predictions.csv`, score it."""
        from compressor.backends.outputs import choose_tags, split_words
        from compressor.data.examples import tokenize_words
        from compressor.evaluation import entities

        rows, names = context.rows("test"), context.data.labels
        with context.progress.bar("tag", len(rows)) as bar:
            started = time.perf_counter()
            sources, places = tokenize_words(rows.texts, model.tokenizer, context.data)
            logits = model.logits(sources, progress=bar.advance)
            seconds = time.perf_counter() - started
        if not context.ranks.is_first:
            return
        words = split_words(logits, sources.lengths(), places)
        labels = rows.labels or [[] for _ in places]
        truth = [[names[tag] for tag in row] for row in labels]
        path, unread = context.folder / "predictions.csv", [row.count(-1) for row in places]
        entities.write_predictions(path, rows.texts, truth, choose_tags(words, names), unread)
        context.metrics.update(
            entities.score_predictions(path),
            loss=entities.mean_loss(words, labels),
            samples_per_second=len(rows) / seconds,
        )
        if cut := sum(unread):
            why = "they are beyond data.max_source_length, or have no token"
            context.progress.say(f"  {cut:,} words were not read, and count as O: {why}")

    def _score(
        self,
        rows: Rows,
        decoded: dict[int, GenerationOutput],
        tokenizer: Any,
        foreign: Sequence[ForeignMetric],
        context: Context,
    ) -> dict[str, dict[str, Any]]:
        """Write `predictions.csv`, score it as `compressor score` does; write rows' scores."""
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
        row_scores: dict[int | None, dict[str, list[float]]] = {}
        by_name: dict[str, str | ForeignMetric] = {metric.metric: metric for metric in foreign}
        metrics = [by_name.get(metric, metric) for metric in self.metrics]
        scores = predictions.score_predictions(path, row_scores, self.rouge_tokenizer, metrics)
        longest = self.limits[-1]
        if (words := scores[longest].get("rouge_tokenizer", "english")) != "english":
            context.progress.say(f"  ROUGE's tokenizer: {words}")
        if warning := warn_of_wordless(scores[longest]):
            context.progress.say(f"  {warning}")
        for name, interval in scores[longest]["intervals"].items():
            if interval is None:
                reason = "200 resamples take more than a minute, or fail"
                context.progress.say(f"  {name} has no interval: {reason}")
        write_json(context.folder / ROW_SCORES, {"max_length": longest, **row_scores[longest]})
        return {str(limit): values for limit, values in scores.items()}

    def _demo(self, text: str, model: Model, context: Context) -> dict[str, Any]:
        """Write from the demo text with the prefix, truncation and decoding of a row."""
        from compressor.data.examples import tokenize_sources

        given, limit = (model.tokenizer, context.data), self.limits[-1]
        sources = tokenize_sources([text], *given, continues=model.continues)
        decoded = self._decode(model, sources, [limit])[limit]
        (summary,) = model.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
        return {"text": text, "summary": summary, "cut_off": decoded.cut_off[0]}

    def _compare(
        self,
        names: Sequence[str],
        main: str,
        less_is_better: set[str],
        other: Mapping[str, Any],
        context: Context,
    ) -> None:
        """Compare scores with the other model's; closeness is of scores divided by their scales."""
        from compressor.evaluation.rouge import compute_closeness, compute_retention

        scores = context.metrics
        pairs = {name: (scores[name], other[name]) for name in names}
        pairs = {name: pair for name, pair in pairs.items() if None not in pair}
        kept = {
            name: compute_retention(*(reversed(pair) if name in less_is_better else pair))
            for name, pair in pairs.items()
        }
        close = {
            name: compute_closeness(*(score / _SCALES[name] for score in pair))
            for name, pair in pairs.items()
            if name in _SCALES
        }
        scores.update(retention=kept.get(main), retentions=kept)
        if close:
            scores["closenesses"] = close
        if main in close:
            scores["closeness"] = close[main]
