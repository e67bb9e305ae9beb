"""`benchmark`: latency, throughput and memory of a model, in a process of its own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from compressor import machine
from compressor.architectures import Facts
from compressor.data.sources import Reads, Split
from compressor.errors import StageError
from compressor.stage import Context, Inputs, Planning, Report

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint


class Benchmark(Report):
    """Time the model on texts of the test split; the machine is part of the key.

    An encoder-decoder decodes a summary, greedily; a classifier gives its labels.

    Latency is that of one text at a time (milliseconds: median and 95th percentile); throughput
    that of one batch (texts a second, median). Resident memory (bytes) is what loading the model
    and reading one text added to the process. Figures of a shared machine are noisy.

    `input_lengths` measures single texts of just so many tokens, the test rows' put together:
    latency, and the peak of the process's memory (bytes; on a GPU that of its tensors).
    `training_step: true` adds a step of `finetune` with one row of such a length and a target of
    `data.max_target_length` tokens, AdamW's state included: what fits is known before a training.
    Where a system cannot reset its peak (others than Linux), one below an earlier peak is null.

    Example: `benchmark: {models: [finetune, quantize], max_length: 64}`
    Example: `benchmark: {input_lengths: [512, 2048, 8192], training_step: true}`
    """

    version: ClassVar[int] = 1
    splits: ClassVar[tuple[Split, ...]] = ("test",)
    isolated: ClassVar[bool] = True
    reads: ClassVar[Reads] = "sources"

    max_length: int = Field(64, ge=2, description="Limit of a summary, in tokens.")
    warm_up: int = Field(3, ge=0, description="Texts decoded before any is timed.")
    texts: int = Field(20, ge=2, description="Texts timed one at a time.")
    batch_size: int = Field(32, ge=1, description="Texts of the timed batch.")
    repeats: int = Field(3, ge=1, description="Times that the batch, and each length, is timed.")
    input_lengths: tuple[int, ...] = Field(
        (), description="Lengths of input, in tokens, to measure latency and peak memory at."
    )
    training_step: bool = Field(
        False,
        description="Measure a training step at each of `input_lengths` too; of a quantized model: "
        "none.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Whether that step computes activations again to save memory."
    )

    @model_validator(mode="after")
    def _lengths(self) -> Benchmark:
        if any(tokens < 2 for tokens in self.input_lengths):
            raise ValueError("input_lengths: expected lengths of at least 2 tokens")
        if self.training_step and not self.input_lengths:
            raise ValueError("training_step needs input_lengths, such as [512, 2048]")
        return self

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """A time measured on one machine says nothing of another."""
        target = {"target_tokens": planning.data.max_target_length} if self.training_step else {}
        return {"machine": machine.description(), **target}

    def parameters(self) -> dict[str, Any]:
        """Lengths that are not measured decide nothing."""
        unused = set() if self.training_step else {"training_step", "gradient_checkpointing"}
        unused |= set() if self.input_lengths else {"input_lengths"}
        return {key: value for key, value in super().parameters().items() if key not in unused}

    def preview(self, planning: Planning) -> Facts | None:
        planning.check_rows(trains=False)
        facts = planning.facts
        if facts is None:
            return None
        if facts.config["head"] == "causal_lm":
            planning.problem("", "times encoder-decoders and classifiers only")
        if "max_length" in self.model_fields_set and planning.data.task != "summarization":
            planning.problem("max_length", "limits summaries; a classifier writes none")
        if self.input_lengths and facts.config["head"] != "seq2seq_lm":
            planning.problem("input_lengths", "measures encoder-decoders only")
        for index, tokens in enumerate(self.input_lengths):
            if facts.positions is not None and tokens > facts.positions:
                message = f"the model has {facts.positions} positions, and {tokens} is more"
                planning.problem(f"input_lengths.{index}", message)
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
        if self.input_lengths:
            context.metrics["input_lengths"] = self._by_length(checkpoint, sources, context)

    def _by_length(
        self, checkpoint: Checkpoint, sources: list[list[int]], context: Context
    ) -> list[dict[str, Any]]:
        """For each length, the shortest first: latency, peak memory, and a training step's."""
        from compressor.input_lengths import read, train

        lengths = sorted(set(self.input_lengths))
        trained = self.training_step and checkpoint.quantization is None
        with context.progress.bar("lengths", len(lengths) * (1 + trained)) as bar:
            found = []
            for tokens in lengths:
                limits = {"tokens": tokens, "max_length": self.max_length}
                found.append(read(checkpoint, sources, repeats=self.repeats, **limits))
                bar.advance()
            for each in found if trained else ():
                each["training_step"] = train(
                    checkpoint,
                    sources,
                    tokens=each["tokens"],
                    target_tokens=context.data.max_target_length,
                    gradient_checkpointing=self.gradient_checkpointing,
                    resume=context.folder / "training_step",
                )
                bar.advance()
        return found
