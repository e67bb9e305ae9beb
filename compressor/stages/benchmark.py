"""`benchmark`: measure latency, throughput, memory and energy of models, in turn."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from compressor.backends.base import EXPORT
from compressor.core import machine
from compressor.core.settings import Counted, Integer, Length, Listed
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.stages.base import BackendReport, Context, Inputs, Planning

if TYPE_CHECKING:
    from compressor.core.progress import Bar
    from compressor.evaluation.timing import Reader

LEAST_BATCHES = 3
"""Batches that are timed at least, however few `texts` there are."""

_PHASES = ("prefill", "decode")
_FIRST_TOKEN = {"max_length": 1, "min_length": 1}

Results = dict[str, dict[str, Any]]
"""Model → its figures."""


@dataclass(frozen=True)
class Case:
    """One combination that is timed."""

    batch_size: int
    input_tokens: int | None
    """None: the test rows as they are."""
    output_tokens: int | None
    """None: until the model ends, at most `max_length`."""
    threads: int


@dataclass
class Times:
    """What was measured of a model in a case, over its batches."""

    seconds: list[float] = field(default_factory=list)
    """Of each batch."""
    first: list[float] = field(default_factory=list)
    """Of the same, until a decoder has read its prompts and written a token after each."""
    joules: list[float] = field(default_factory=list)
    """Of a text, in each batch; none where nothing counts them."""
    read: int = 0
    written: int = 0
    """Tokens of all batches."""


class Benchmark(BackendReport):
    """Time models on texts of the test split; the machine is part of the key.

    An encoder-decoder writes a text, greedily; a classifier gives its labels. To time what an
    `export` wrote, run by what it is made for, name that stage in `models`.

    Every model has a process of its own, and they read batch after batch in turn, A B A B, so that
    a slow moment of the machine slows all of them. For each batch size: the time of a batch
    (milliseconds: median, 95th and 99th percentile), texts and written tokens a second (at the
    median), `speedup` (the first model's time / this one's, median over turns), peak memory (bytes
    of the process, on a GPU of torch's tensors; null where unknown), and joules a text where the
    processor counts them (of the whole machine; null elsewhere). Tables show the latency of the
    smallest batch and the throughput of the largest. Also the time to load, and the resident bytes
    that loading and one text add to the process. Figures of a shared machine are noisy.

    Of decoders also the time to the first token (`first_token_ms`, of a batch, median), the tokens
    of prompts read a second in it (`prefill_tokens_per_second`), and the tokens written a second
    after it (`decode_tokens_per_second`): each batch is run once for one token, and once more for
    all, and the difference is the time of all but the first.

    Every combination of lengths and `threads` is timed. `training_step: true` adds, at each length
    of input, a step of `finetune` with one such row and a target of `data.max_target_length`
    tokens, AdamW's state included.

    Example: `benchmark: {models: [finetune, quantize], max_length: 64}`
    Example: `benchmark: {models: [finetune, ct2], batch_sizes: [1, 4], input_lengths: [256],
    output_lengths: [64], threads: [1, 2]}`
    Example: `benchmark: {input_lengths: [512, 2048, 8192], batch_sizes: [1], training_step: true}`
    """

    version: ClassVar[int] = 2
    together: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (
        *("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "speedup"),
        *("texts_per_second", "tokens_per_second", "peak_bytes", "resident_bytes"),
        *("first_token_ms", "prefill_tokens_per_second", "decode_tokens_per_second"),
    )

    max_length: Length = Field(64, description="Limit of a text, in tokens.")
    batch_sizes: Listed[Counted] = Field((1, 32), min_length=1, description="Texts read at once.")
    input_lengths: Listed[Length] = Field(
        (), description="Texts of exactly so many tokens, out of the rows; default: the rows."
    )
    output_lengths: Listed[Counted] = Field(
        (), description="Written texts of exactly so many tokens; default: as the model ends them."
    )
    threads: Listed[Counted] = Field(
        (), description="Numbers of threads to compute with; default: one for each core."
    )
    texts: Integer = Field(
        48, ge=1, description="Texts timed for each combination; at least 3 batches are."
    )
    warm_up: Integer = Field(2, ge=0, description="Batches read before any is timed.")
    training_step: bool = Field(
        False,
        description="Measure a training step too, at each of `input_lengths`; not of a quantized "
        "model.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether that step computes activations again to save memory."
    )

    @model_validator(mode="after")
    def _sizes(self) -> Benchmark:
        if self.training_step and not self.input_lengths:
            raise ValueError("training_step needs input_lengths, such as [512, 2048]")
        return self

    def reads(self) -> Mapping[Split, Reads]:
        return {"test": "sources"}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Identify the machine: a time measured on one says nothing of another."""
        target = {"target_tokens": planning.data.max_target_length} if self.training_step else {}
        return {"machine": machine.describe_machine(), **target}

    def parameters(self) -> dict[str, Any]:
        """Leave out settings of a step that is not measured."""
        unused = set() if self.training_step else {"training_step", "gradient_checkpointing"}
        return {k: v for k, v in super().parameters().items() if k not in unused}

    def preview(self, planning: Planning) -> Facts | None:
        facts = super().preview(planning)
        if facts is None:
            return None
        planning.check_rows(trains=self.training_step)
        planning.check_settings(
            self, of_summaries={"max_length", "output_lengths"}, of_labels=set()
        )
        for index, tokens in enumerate(self.input_lengths):
            planning.check_length(f"input_lengths.{index}", tokens, facts=facts)
        limits = {f"output_lengths.{i}": tokens for i, tokens in enumerate(self.output_lengths)}
        longest = {f"input_lengths.{i}": tokens for i, tokens in enumerate(self.input_lengths)}
        prompt = max(longest.items(), key=itemgetter(1), default=None)
        planning.check_decoding(limits or {"max_length": self.max_length}, prompt=prompt)
        if self.training_step and facts.config["head"] != "seq2seq_lm":
            planning.report("training_step", "measures encoder-decoders only")
        return facts

    def cases(self) -> list[Case]:
        """List every combination, those of equal threads together."""
        threads = sorted(set(self.threads)) or [machine.count_threads()]
        inputs: list[int | None] = [*sorted(set(self.input_lengths))] or [None]
        outputs: list[int | None] = [*sorted(set(self.output_lengths))] or [None]
        sizes = sorted(set(self.batch_sizes))
        return [
            Case(batch_size=size, input_tokens=read, output_tokens=written, threads=count)
            for count, read, written, size in itertools.product(threads, inputs, outputs, sizes)
        ]

    def run(self, inputs: Inputs, context: Context) -> None:
        """Start a process for each model, and time them in turn."""
        results: Results = {name: {"cases": []} for name in inputs.artifacts}
        context.metrics["models"] = results
        cases = self.cases()
        with context.progress.bar("benchmark", len(cases)) as bar:
            for threads, group in itertools.groupby(cases, key=lambda case: case.threads):
                self._measure(threads, list(group), (inputs, context), results, bar)
        for figures in results.values():
            figures.update(_summarize(figures["cases"]))

    def _measure(
        self,
        threads: int,
        cases: Sequence[Case],
        stage: tuple[Inputs, Context],
        results: Results,
        bar: Bar,
    ) -> None:
        """Measure all cases with one number of threads."""
        from compressor.backends.formats import TextSettings
        from compressor.evaluation.timing import Reader

        inputs, context = stage
        count = max(case.batch_size * self._turns(case) for case in cases)
        texts = context.rows("test").first(count).texts
        with ExitStack() as stack:
            readers: dict[str, Reader] = {}
            heads = {name: _read_head(folder) for name, folder in inputs.artifacts.items()}
            decoders = [name for name, head in heads.items() if head == "causal_lm"]
            for name, folder in inputs.artifacts.items():
                about = TextSettings.of(context.data, head=heads[name], model_type="")
                log = context.folder / f"{len(readers)}.log"
                reader = Reader(folder, texts, about, threads=threads, log=log)
                readers[name] = stack.enter_context(reader)
                loading = reader.read_answer()  # one after the other: loading is timed
                if "load_seconds" not in results[name]:
                    results[name].update(loading, threads=threads)
            for case in cases:
                for name, figures in self._time(case, readers, decoders).items():
                    results[name]["cases"].append(asdict(case) | figures)
                bar.advance()
            if self.training_step:
                self._train(cases, readers, results, context)

    def _turns(self, case: Case) -> int:
        return max(LEAST_BATCHES, self.texts // case.batch_size)

    def _time(
        self, case: Case, readers: Mapping[str, Reader], decoders: Collection[str]
    ) -> dict[str, dict[str, Any]]:
        """Have all models read the same batches, each batch in turn."""
        from compressor.evaluation.resources import Counters

        counters = Counters()
        times = {name: Times() for name in readers}
        for reader in readers.values():
            reader.ask(do="begin_peak")
        for turn in range(-self.warm_up, self._turns(case)):
            for name, reader in readers.items():
                request = self._request(case, max(0, turn), writes_on=name in decoders)
                first = reader.ask(**request | _FIRST_TOKEN) if name in decoders else None
                before = counters.read()
                answer = reader.ask(**request)
                joules = counters.joules(before, counters.read())
                if turn < 0:
                    continue
                model = times[name]
                model.seconds.append(answer["seconds"])
                model.written += answer["tokens"]
                model.read += answer["read"]
                if first is not None:
                    model.first.append(first["seconds"])
                if joules is not None:
                    model.joules.append(joules / case.batch_size)
        baseline = next(iter(times.values())).seconds
        return {
            name: _figures(case, model.seconds, baseline, model.written)
            | (_decoder_figures(case, model) if name in decoders else {})
            | {
                "peak_bytes": readers[name].ask(do="end_peak")["bytes"],
                "joules_per_text": statistics.median(model.joules) if model.joules else None,
            }
            for name, model in times.items()
        }

    def _request(self, case: Case, turn: int, *, writes_on: bool) -> dict[str, Any]:
        """Ask for the batch of a turn; `writes_on`: by a decoder, whose tokens are all new."""
        exact = case.output_tokens
        if exact is not None and not writes_on:
            exact += 1  # the start token
        if exact is None and writes_on:
            exact = self.max_length
        return {
            "do": "read",
            "start": turn * case.batch_size,
            "batch_size": case.batch_size,
            "input_tokens": case.input_tokens,
            "max_length": exact or self.max_length,
            "min_length": exact or 0,
        }

    def _train(
        self,
        cases: Sequence[Case],
        readers: Mapping[str, Reader],
        results: Results,
        context: Context,
    ) -> None:
        """Time a training step at each length, the shortest first; into the length's first case."""
        for name, reader in readers.items():
            if not results[name]["trains"]:
                continue
            figures = results[name]["cases"][-len(cases) :]
            first = {figure["input_tokens"]: figure for figure in reversed(figures)}
            for tokens in sorted(first):
                first[tokens]["training_step"] = reader.ask(
                    do="train",
                    tokens=tokens,
                    target_tokens=context.data.max_target_length,
                    gradient_checkpointing=self.gradient_checkpointing,
                    resume=str(context.folder / "training_step"),
                )


def _read_head(folder: Path) -> str:
    """Read the head of a model in an artifact, a stage's or an export's."""
    exported = folder / "model" / EXPORT
    file = exported if exported.is_file() else folder / "checkpoint.json"
    head: str = json.loads(file.read_text(encoding="utf-8"))["head"]
    return head


def _figures(
    case: Case, times: Sequence[float], first: Sequence[float], tokens: int
) -> dict[str, Any]:
    """Compute the figures of one model for a case, from its times and the first model's."""
    import numpy as np

    median, count = statistics.median(times), len(times)
    return {
        **{f"p{p}_ms": float(np.percentile(np.asarray(times) * 1000, p)) for p in (50, 95, 99)},
        "batches": count,
        "texts_per_second": case.batch_size / median,
        "tokens_per_second": tokens / count / median if tokens else None,
        "speedup": statistics.median(a / b for a, b in zip(first, times, strict=True)),
    }


def _decoder_figures(case: Case, times: Times) -> dict[str, Any]:
    """Compute the figures of prefill and decode, each over the median of its times."""
    first, batches = statistics.median(times.first), len(times.first)
    rest = statistics.median(a - b for a, b in zip(times.seconds, times.first, strict=True))
    later = times.written / batches - case.batch_size
    return {
        "first_token_ms": first * 1000,
        "prefill_tokens_per_second": times.read / batches / first,
        # Of a single token nothing is left; in noise it may take no time.
        "decode_tokens_per_second": later / rest if later > 0 and rest > 0 else None,
    }


def _summarize(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose what tables show: the smallest batch's latency, the largest one's throughput."""
    small, large = cases[0], max(cases, key=lambda case: case["batch_size"])
    of_decoder = {}
    if "first_token_ms" in small:
        of_decoder = {"first_token_ms": small["first_token_ms"]}
        of_decoder |= {f"{k}_tokens_per_second": large[f"{k}_tokens_per_second"] for k in _PHASES}
    return of_decoder | {
        **{f"latency_{key}": small[key] for key in ("p50_ms", "p95_ms", "p99_ms")},
        **{key: small[key] for key in ("speedup", "joules_per_text")},
        **{key: large[key] for key in ("texts_per_second", "tokens_per_second")},
        "peak_bytes": max((c["peak_bytes"] for c in cases if c["peak_bytes"]), default=None),
    }
