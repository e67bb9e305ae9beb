"""`benchmark`: latency, throughput, memory and energy of models, measured in turn."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema, model_validator

from compressor.backends.generation_config import BackendName
from compressor.core import machine
from compressor.core.settings import Counted, Integer, Listed
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Report

if TYPE_CHECKING:
    from compressor.core.progress import Bar
    from compressor.evaluation.timing import Reader

LEAST_BATCHES = 3
"""However few `texts` there are for a batch size."""

Length = Annotated[Integer, WithJsonSchema({"type": "integer", "minimum": 2})]


@dataclass(frozen=True)
class Case:
    """What is timed: one batch size, one length of input and of output, one number of threads."""

    batch_size: int
    input_tokens: int | None
    """None: the test rows as they are."""
    output_tokens: int | None
    """None: until the model ends, at most `max_length`."""
    threads: int


class Benchmark(Report):
    """Time models on texts of the test split; the machine is part of the key.

    An encoder-decoder decodes a summary, greedily; a classifier gives its labels. What an `export`
    wrote is run by what it is made for: name that stage in `models`.

    Every model has a process of its own, and they read batch after batch in turn, A B A B, so that
    a machine that is slow for a while is slow for all. For each batch size: the time of a batch
    (milliseconds: median, 95th and 99th percentile), texts and written tokens a second (of the
    median), `speedup` (the first model's time / this one's, median over turns), the peak of memory
    (bytes, of the process; on a GPU of torch's tensors; null where it cannot be known), and joules
    a text where the processor tells (the whole machine's; null elsewhere). Tables show the latency
    of the smallest batch and the throughput of the largest. Also the time to load and what loading
    and one text added to the process (resident bytes). Figures of a shared machine are noisy.

    `input_lengths` makes texts of just so many tokens out of the test rows; `output_lengths` has
    summaries end after just so many, `threads` are cores to compute with. Every combination is
    timed. `training_step: true` adds, at each length of input, a step of `finetune` with one such
    row and a target of `data.max_target_length` tokens, AdamW's state included.

    Example: `benchmark: {models: [finetune, quantize], max_length: 64}`
    Example: `benchmark: {models: [finetune, ct2], batch_sizes: [1, 4], input_lengths: [256],
    output_lengths: [64], threads: [1, 2]}`
    Example: `benchmark: {input_lengths: [512, 2048, 8192], batch_sizes: [1], training_step: true}`
    """

    version: ClassVar[int] = 2
    runs_exports: ClassVar[bool] = True
    together: ClassVar[bool] = True
    measures: ClassVar[tuple[str, ...]] = (
        *("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "speedup"),
        *("texts_per_second", "tokens_per_second", "peak_bytes", "resident_bytes"),
    )

    backend: BackendName | None = Field(
        None,
        description="What must run the models: torch, ctranslate2 or onnxruntime; default: what "
        "each is made for. Planning tells of a model that is made for another.",
    )
    max_length: Integer = Field(64, ge=2, description="Limit of a summary, in tokens.")
    batch_sizes: Listed[Counted] = Field((1, 32), min_length=1, description="Texts read at once.")
    input_lengths: Listed[Length] = Field(
        (), description="Lengths of input, in tokens; default: the rows as they are."
    )
    output_lengths: Listed[Counted] = Field(
        (), description="Lengths of summaries, in tokens; default: as the model ends them."
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
        description="Measure a training step at each of `input_lengths` too; of a quantized model: "
        "none.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether that step computes activations again to save memory."
    )

    @model_validator(mode="after")
    def _sizes(self) -> Benchmark:
        if any(tokens < 2 for tokens in self.input_lengths):
            raise ValueError("input_lengths: expected lengths of at least 2 tokens")
        if self.training_step and not self.input_lengths:
            raise ValueError("training_step needs input_lengths, such as [512, 2048]")
        return self

    def reads(self) -> Mapping[Split, Reads]:
        return {"test": "sources"}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """A time measured on one machine says nothing of another."""
        target = {"target_tokens": planning.data.max_target_length} if self.training_step else {}
        return {"machine": machine.description(), **target}

    def parameters(self) -> dict[str, Any]:
        """What is not measured decides nothing."""
        unused = set() if self.training_step else {"training_step", "gradient_checkpointing"}
        return {k: v for k, v in super().parameters().items() if k not in {*unused, "backend"}}

    def preview(self, planning: Planning) -> Facts | None:
        planning.check_rows(trains=self.training_step)
        planning.check_backend(self.backend)
        facts = planning.facts
        if facts is None:
            return None
        if facts.config["head"] == "causal_lm":
            planning.problem("", "times encoder-decoders and classifiers only")
        if planning.data.task != "summarization":
            for name in ("max_length", "output_lengths"):
                if name in self.model_fields_set:
                    planning.problem(name, "limits summaries; a classifier writes none")
        for index, tokens in enumerate(self.input_lengths):
            planning.check_length(f"input_lengths.{index}", tokens, facts=facts)
        written = {f"output_lengths.{i}": tokens for i, tokens in enumerate(self.output_lengths)}
        planning.check_decoding(written or {"max_length": self.max_length})
        if self.training_step and facts.config["head"] != "seq2seq_lm":
            planning.problem("training_step", "measures encoder-decoders only")
        return facts

    def cases(self) -> list[Case]:
        """Every combination, those of equal threads together."""
        read_lengths: list[int | None] = [*sorted(set(self.input_lengths))] or [None]
        written_lengths: list[int | None] = [*sorted(set(self.output_lengths))] or [None]
        return [
            Case(batch_size=size, input_tokens=read, output_tokens=written, threads=threads)
            for threads, read, written, size in itertools.product(
                sorted(set(self.threads)) or [machine.threads()],
                read_lengths,
                written_lengths,
                sorted(set(self.batch_sizes)),
            )
        ]

    def run(self, inputs: Inputs, context: Context) -> None:
        """Start a process for each model, and time them in turn."""
        measured: dict[str, dict[str, Any]] = {name: {"cases": []} for name in inputs.artifacts}
        cases = self.cases()
        with context.progress.bar("benchmark", len(cases)) as bar:
            for threads, same in itertools.groupby(cases, key=lambda case: case.threads):
                self._with_threads(threads, list(same), measured, (inputs, context), bar)
        for metrics in measured.values():
            metrics.update(_shown(metrics["cases"]))
        context.metrics["models"] = measured

    def _with_threads(
        self,
        threads: int,
        cases: Sequence[Case],
        measured: dict[str, dict[str, Any]],
        given: tuple[Inputs, Context],
        bar: Bar,
    ) -> None:
        """Everything that is computed with so many threads."""
        from compressor.backends.formats import Texts
        from compressor.evaluation.timing import Reader

        inputs, context = given
        read = max(case.batch_size * self._turns(case) for case in cases)
        texts = context.rows("test").first(read).texts
        with ExitStack() as stack:
            readers: dict[str, Reader] = {}
            for name, folder in inputs.artifacts.items():
                about = Texts.of(context.data, head=_head(folder), model_type="")
                log = context.folder / f"{len(readers)}.log"
                reader = Reader(folder, texts, about, threads=threads, log=log)
                readers[name] = stack.enter_context(reader)
                told = reader.answer()  # one after the other: loading is timed
                if "load_seconds" not in measured[name]:
                    measured[name].update(told, threads=threads)
            for case in cases:
                for name, figures in self._time(case, readers).items():
                    measured[name]["cases"].append(asdict(case) | figures)
                bar.advance()
            if self.training_step:
                self._train(cases, readers, measured, context)

    def _turns(self, case: Case) -> int:
        return max(LEAST_BATCHES, self.texts // case.batch_size)

    def _time(self, case: Case, readers: Mapping[str, Reader]) -> dict[str, dict[str, Any]]:
        """All models read the same batches, each batch in turn."""
        from compressor.evaluation.resources import Counters

        exact = None if case.output_tokens is None else case.output_tokens + 1  # the start token
        request = {
            "do": "read",
            "batch_size": case.batch_size,
            "input_tokens": case.input_tokens,
            "max_length": exact or self.max_length,
            "min_length": exact or 0,
        }
        counters, energy = Counters(), dict[str, list[float]]()
        turns = self._turns(case)
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        tokens = dict.fromkeys(readers, 0)
        for reader in readers.values():
            reader.ask(do="begin_peak")
        for turn in range(-self.warm_up, turns):
            start = max(0, turn) * case.batch_size
            for name, reader in readers.items():
                before = counters.read()
                told = reader.ask(**request, start=start)
                joules = counters.joules(before, counters.read())
                if turn < 0:
                    continue
                seconds[name].append(told["seconds"])
                tokens[name] += told["tokens"]
                if joules is not None:
                    energy.setdefault(name, []).append(joules / case.batch_size)
        first = next(iter(seconds.values()))
        return {
            name: _figures(case, took, first, tokens[name])
            | {
                "peak_bytes": readers[name].ask(do="end_peak")["bytes"],
                "joules_per_text": statistics.median(energy[name]) if name in energy else None,
            }
            for name, took in seconds.items()
        }

    def _train(
        self,
        cases: Sequence[Case],
        readers: Mapping[str, Reader],
        measured: dict[str, dict[str, Any]],
        context: Context,
    ) -> None:
        """A training step at each length, with the shortest first; into the length's first case."""
        for name, reader in readers.items():
            if not measured[name]["trains"]:
                continue
            done = set()
            for case, figures in zip(cases, measured[name]["cases"][-len(cases) :], strict=True):
                if case.input_tokens in done:
                    continue
                done.add(case.input_tokens)
                figures["training_step"] = reader.ask(
                    do="train",
                    tokens=case.input_tokens,
                    target_tokens=context.data.max_target_length,
                    gradient_checkpointing=self.gradient_checkpointing,
                    resume=str(context.folder / "training_step"),
                )


def _head(folder: Any) -> str:
    """The head of a model in an artifact, a stage's or an export's."""
    import json

    from compressor.backends.base import EXPORT

    exported = folder / "model" / EXPORT
    file = exported if exported.is_file() else folder / "checkpoint.json"
    head: str = json.loads(file.read_text(encoding="utf-8"))["head"]
    return head


def _figures(
    case: Case, took: Sequence[float], first: Sequence[float], tokens: int
) -> dict[str, Any]:
    """What is told of one model's times for a case."""
    import numpy as np

    median = statistics.median(took)
    low, middle, high = np.percentile(np.asarray(took) * 1000, [50, 95, 99]).tolist()
    return {
        "p50_ms": low,
        "p95_ms": middle,
        "p99_ms": high,
        "batches": len(took),
        "texts_per_second": case.batch_size / median,
        "tokens_per_second": tokens / len(took) / median if tokens else None,
        "speedup": statistics.median(a / b for a, b in zip(first, took, strict=True)),
    }


def _shown(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What tables show: the smallest batch's latency, the largest one's throughput."""
    small, large = cases[0], max(cases, key=lambda case: case["batch_size"])
    return {
        "latency_p50_ms": small["p50_ms"],
        "latency_p95_ms": small["p95_ms"],
        "latency_p99_ms": small["p99_ms"],
        "speedup": small["speedup"],
        "texts_per_second": large["texts_per_second"],
        "tokens_per_second": large["tokens_per_second"],
        "peak_bytes": max((c["peak_bytes"] for c in cases if c["peak_bytes"]), default=None),
        "joules_per_text": small["joules_per_text"],
    }
