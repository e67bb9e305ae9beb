"""`pseudo_label`: have a model write what others learn. Decoding is in `backends.torch`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from compressor.backends.base import WRITERS
from compressor.core.settings import Integer, Length
from compressor.data.source_base import Reads, Split
from compressor.models.facts import Facts
from compressor.stages.base import Context, Inputs, Planning, Stage


class PseudoLabel(Stage):
    """Write a text for each training row with the model, a teacher, for students to learn from.

    Sequence-level distillation (Kim & Rush, arXiv 1606.07947; the "pseudo-labels" of Shleifer &
    Rush, 2010.13002): a `finetune` or `distill` whose `targets:` names this stage learns these
    texts instead of the references. The student may have another tokenizer, since it gets texts.
    `targets.jsonl` has a line for each row; where a text is empty, the reference is learned. The
    metrics compare the texts with the references, as in `evaluate`, and several processes share the
    decoding.

    Example: `pseudo_label: {model: teacher, max_length: 64, num_beams: 4}`
    """

    version: ClassVar[int] = 3
    is_distributed: ClassVar[bool] = True

    max_length: Length = Field(128, description="Limit of a text, in tokens.")
    min_length: Integer = Field(0, ge=0, description="A text has at least as many tokens.")
    num_beams: Integer = Field(1, ge=1, description="1 is greedy.")

    def reads(self) -> Mapping[Split, Reads]:
        return {"train": "sources"}

    def preview(self, planning: Planning) -> Facts | None:
        if planning.facts is not None and planning.facts.config["head"] not in WRITERS:
            planning.report("", "writes with encoder-decoders and decoders only")
        elif planning.data.is_text_alone:
            planning.report("", "nothing is written for texts alone; set data.completion")
        else:
            planning.check_rows(trains=False)
            planning.check_decoding({"max_length": self.max_length}, num_beams=self.num_beams)
        return planning.facts

    def run(self, inputs: Inputs, context: Context) -> None:
        """Decode, write `targets.jsonl`, compare with the references."""
        from compressor.backends.torch.model import TorchModel
        from compressor.data.examples import PSEUDO_LABELS, GeneratedSummary, write_pseudo_labels
        from compressor.evaluation.rouge import score_texts

        checkpoint = inputs.checkpoint()
        rows = context.rows("train")
        sources = checkpoint.tokenize_rows(rows, context.data).sources
        model = TorchModel(checkpoint, ranks=context.ranks)
        with context.progress.bar("decode", len(rows)) as bar:
            decoded = model.generate_each_limit(
                sources,
                max_lengths=[self.max_length],
                num_beams=self.num_beams,
                min_length=self.min_length,
                progress=bar.advance,
            )[self.max_length]
        if not context.ranks.is_first:
            return
        assert checkpoint.tokenizer is not None, "`examples` says so first"
        texts = checkpoint.tokenizer.batch_decode(decoded.tokens, skip_special_tokens=True)
        labels = [
            GeneratedSummary(text, length, cut_off)
            for text, length, cut_off in zip(texts, decoded.lengths, decoded.cut_off, strict=True)
        ]
        write_pseudo_labels(context.folder / PSEUDO_LABELS, labels)
        context.metrics.update(
            score_texts(texts, rows.references),
            gen_len=sum(label.tokens for label in labels) / len(labels),
            cut_off=sum(label.cut_off for label in labels) / len(labels),
            empty=sum(label.empty for label in labels),
            seconds=decoded.seconds,
            samples_per_second=len(rows) / decoded.seconds,
        )
