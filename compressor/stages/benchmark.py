"""`benchmark`: latency, throughput and memory of a model, in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from compressor import machine
from compressor.architectures import Facts
from compressor.data.sources import Reads, Split
from compressor.errors import StageError
from compressor.stage import Context, Inputs, Planning, Report


class Benchmark(Report):
    """Time the model on texts of the test split; the machine is part of the key.

    An encoder-decoder decodes a summary, greedily; a classifier gives its labels.

    Latency is that of one text at a time (milliseconds: median and 95th percentile); throughput
    that of one batch (texts a second, median). Resident memory (bytes) is what loading the model
    and reading one text added to the process. Figures of a shared machine are noisy.

    Example: `benchmark: {models: [finetune, quantize], max_length: 64}`
    """

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[Split, ...]] = ("test",)
    isolated: ClassVar[bool] = True
    reads: ClassVar[Reads] = "sources"

    max_length: int = Field(64, ge=2, description="Limit of a summary, in tokens.")
    warm_up: int = Field(3, ge=0, description="Texts decoded before any is timed.")
    texts: int = Field(20, ge=2, description="Texts timed one at a time.")
    batch_size: int = Field(32, ge=1, description="Texts of the timed batch.")
    repeats: int = Field(3, ge=1, description="Times that the batch is timed.")

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """A time measured on one machine says nothing of another."""
        return {"machine": machine.description()}

    def preview(self, planning: Planning) -> Facts | None:
        planning.check_rows(trains=False)
        facts = planning.facts
        if facts is not None and facts.config["head"] == "causal_lm":
            planning.problem("", "times encoder-decoders and classifiers only")
        if "max_length" in self.model_fields_set and planning.data.task != "summarization":
            planning.problem("max_length", "limits summaries; a classifier writes none")
        return facts

    def run(self, inputs: Inputs, context: Context) -> None:
        """Load, warm up, and time."""
        import psutil
        import torch

        from compressor.classification import of_sources
        from compressor.generation import decode

        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        checkpoint = inputs.checkpoint()
        load_seconds = time.perf_counter() - started
        if checkpoint.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        model = checkpoint.model.to("cuda" if torch.cuda.is_available() else "cpu")
        sources = checkpoint.examples(context.rows("test"), context.data).sources

        def timed(batch: list[list[int]]) -> float:
            begun = time.perf_counter()
            if checkpoint.head == "sequence_classification":
                of_sources(checkpoint, batch)
            else:
                decode(model, batch, max_length=self.max_length)
            return time.perf_counter() - begun

        def text(index: int) -> list[int]:
            return sources[index % len(sources)]

        timed([text(0)])
        resident = psutil.Process().memory_info().rss - before
        for index in range(self.warm_up):
            timed([text(index)])
        single = sorted(timed([text(index)]) for index in range(self.texts))
        batch = [text(index) for index in range(self.batch_size)]
        whole = statistics.median(timed(batch) for _ in range(self.repeats))
        context.metrics.update(
            latency_p50_ms=1000 * statistics.median(single),
            latency_p95_ms=1000 * single[min(len(single) - 1, round(0.95 * (len(single) - 1)))],
            texts_per_second=len(batch) / whole,
            load_seconds=load_seconds,
            resident_bytes=resident,
            threads=torch.get_num_threads(),
            device=str(model.device),
        )
