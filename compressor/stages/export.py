"""`export`: write a model for other programs, and check it against its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.backends import formats
from compressor.backends.base import WRITERS
from compressor.backends.generation_config import require_followed
from compressor.core.errors import StageError, nearest
from compressor.data.fast_tokenizer import Tokens, is_marian
from compressor.data.source_base import DataBase, Reads, Split
from compressor.evaluation.parity import Parity
from compressor.models.facts import HALF, Facts
from compressor.stages.base import Context, Inputs, Planning, Stage

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from compressor.core.progress import Progress
    from compressor.data.rows import Rows
    from compressor.models.checkpoint import Checkpoint


EXACT_VALUES: dict[str, tuple[str, ...]] = {
    "int8": ("int8",),
    "int4": (),
    "bfloat16": ("bfloat16", "float32"),
    "float16": ("float32",),
}
"""Weights of a quantized model → weights of a packed file that are the same numbers."""
OWN_TABLES = (
    "transformers 4 cannot load this model, transformers 5 can: its encoder and decoder look up "
    "words in tables of their own"
)
ROUNDING = 1e-5
"""Of the largest logit: what float32 products of equal numbers may differ by."""


class Export(Stage):
    """Write `model/`, a directory that other programs load, and check it.

    huggingface: for plain transformers, 5 or the last 4, `AutoModelFor….from_pretrained`. An mT5
    and a T5 v1.1 get the head as a tensor of its own. An int8 or int4 model is written as the float
    values that its weights stand for, since transformers has no such layers; a bfloat16 or float16
    model in its own type. Only `compressor.load_model` loads a model with a block (`approximate`).

    packed: for `compressor.load_model`. A weight with zeros is stored as one bit for each entry and
    the values of the others; matrices in int8 (one scale a row), bfloat16 or float32. It is small
    on the disk alone. An int8 model keeps its values and scales; there is no int4.

    ctranslate2: for `ctranslate2.Translator`, `Generator` (GPT-2, Llama, Qwen2, Qwen3; no sliding
    window, no YaRN, no scaling of Llama 3), or `Encoder` with the classifier's head beside it.
    int8 has one scale a row and computes in integers, embeddings included; the `_…` after it is the
    type of everything else. Needs the package `ctranslate2`.

    onnx: `encoder.onnx` and `decoder.onnx`, a decoder's `decoder.onnx` alone, or a classifier's
    `model.onnx`, and `weights.bin`. ONNX Runtime computes, and `compressor.load` decodes in numpy.
    int8 has one scale a row, and integer products of blocks of 32. Needs `onnx`,
    `onnxscript` and `onnxruntime`.

    gguf: one file with its tokenizer, for llama.cpp and what is built on it; `compressor.load` runs
    it on the CPU. int8 is Q8_0: blocks of 32 entries of a row share one float16 scale, so an int8
    model is rounded once more; products are of integers. int4 is Q4_0, for an int4 model, whose
    values it keeps; other matrices are int8. A matrix whose rows do not divide into 32s
    becomes float16; vectors and positions are always float32. T5 and mT5 (the decoder no deeper
    than the encoder), GPT-2, Llama, Qwen2 and Qwen3; no SentencePiece BPE (Llama 2), no sliding
    window, no YaRN. The settings of a search lie beside the file. Unlike transformers', T5's
    tokenizer drops spaces at the end of a text and before `<extra_id_…>`. Needs `gguf` and
    `llama-cpp-python`, whose installation compiles llama.cpp.

    A process of its own, which imports only what the format needs, then loads the directory and
    reads rows of the test split. It must give what the stage's model gives, within the limits of
    `parity`; else the stage fails, nothing is stored, and the rows stay in the run's folder under
    `parity/`. `parity: null` skips the check. To score or time the result, name this stage among
    the `models` of `evaluate` or `benchmark`.

    Example: `export: {model: recover, format: ctranslate2, weights: int8, parity: {rows: 64}}`
    """

    version: ClassVar[int] = 3
    measures: ClassVar[tuple[str, ...]] = ("disk_bytes", "gzip_bytes")

    format: formats.FormatName = Field("huggingface", description="What will load it.")
    weights: formats.Weights | None = Field(
        None,
        description="How weights are stored; default: int8, and for huggingface float32, or the "
        "model's own bfloat16 or float16.",
    )
    smooth: bool | None = Field(
        None,
        description="Smooth a float model before int8 rounds it, as the stage `smooth` does with "
        "its defaults. Default: for ctranslate2, where the architecture has such channels and the "
        "training split rows.",
    )
    parity: Parity | None = Field(
        Parity(), description="How the result is checked; null: it is not."
    )

    def resolve(self, planning: Planning) -> Export:
        facts = planning.facts
        if self.smooth is not None or facts is None or self.format != "ctranslate2":
            return self
        if facts.smoothed or not self._can_smooth(facts):
            return self
        missing = planning.explain_missing_loss()
        if missing:
            return self.choose(missing, smooth=False)
        return self.choose("int8 rounds activations, too", smooth=True)

    def _can_smooth(self, facts: Facts) -> bool:
        """Tell whether weights become int8 that have channels which can be rescaled."""
        becomes_int8 = self._choose_weights(facts.weights).startswith("int8")
        return becomes_int8 and not facts.quantized_kind and bool(facts.list_channels())

    def parameters(self) -> dict[str, Any]:
        """Leave out a smoothing that is not done."""
        return {k: v for k, v in super().parameters().items() if k != "smooth" or v}

    def reads(self) -> Mapping[Split, Reads]:
        reads: dict[Split, Reads] = {"test": "sources"} if self.parity is not None else {}
        return reads | ({"train": "pairs"} if self.smooth else {})

    @property
    def export_format(self) -> formats.Format:
        return formats.FORMATS[self.format]

    def _choose_weights(self, source: str) -> formats.Weights:
        """Choose how weights are stored that the model has as `source`."""
        if self.weights is None and self.format == "huggingface" and source in HALF:
            return source  # type: ignore[return-value]  # both of these are such weights
        return self.weights or self.export_format.weights[0]

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Identify how texts are read: it is written beside the model."""
        fields = {"task", "labels", "prefix", "max_source_length", "max_target_length", "truncate"}
        fields |= {"messages"} if planning.data.messages is not None else set()
        return {"texts": planning.data.model_dump(mode="json", include=fields)}

    def preview(self, planning: Planning) -> Facts | None:
        valid, facts = self.export_format.weights, planning.facts
        weights = self._choose_weights(facts.weights if facts else "float32")
        if weights not in valid:
            hint = nearest(weights, valid)
            planning.report("weights", f"{self.format!r} cannot store {weights!r}; {hint}")
        if facts is None:
            return None
        if (reason := formats.explain_refusal(self.format, facts)) is not None:
            planning.report("format", reason)
        elif self.format == "ctranslate2" and not facts.config.get(
            "share_encoder_decoder_embeddings", True
        ):
            reason = "CTranslate2 reads no Marian with two vocabularies; take 'onnx'"
            planning.report("format", reason)
        elif self.format == "packed":
            self._check_packed(facts, planning, weights)
        elif self.format == "gguf":
            self._check_gguf(facts, planning, weights)
        self._check_smooth(facts, planning)
        decodes, backend = facts.config["head"] == "seq2seq_lm", self.export_format.backend
        if backend != "torch":
            planning.check_decoding({}, backend=backend)
        if self.parity is not None and facts.config["head"] != "none":
            planning.check_rows(trains=False)
            limit = {"data.max_target_length": planning.data.max_target_length}
            if self.parity.max_length is not None:
                limit = {"parity.max_length": self.parity.max_length}
            if decodes:
                planning.check_decoding(limit, backend="torch")
        return formats.derive_stored_facts(facts, weights, self.format)

    def _check_smooth(self, facts: Facts, planning: Planning) -> None:
        """Report a model that cannot be smoothed, or rows that it cannot be smoothed by."""
        if not self.smooth:
            return
        if not self._can_smooth(facts):
            planning.report("smooth", "is for int8 of a float T5 or mT5; leave it out")
        planning.check_rows(trains=True)

    def _check_packed(self, facts: Facts, planning: Planning, weights: str) -> None:
        """Report values that are not those of a quantized model."""
        exact = EXACT_VALUES.get(facts.weights, (weights,))
        if not exact:
            planning.report("format", "a packed file has no int4; take 'huggingface'")
        elif weights not in exact:
            expected = " or ".join(map(repr, exact))
            message = f"the model is {facts.weights} already; expected {expected}"
            planning.report("weights", f"{message}, got {weights!r}")

    def _check_gguf(self, facts: Facts, planning: Planning, weights: str) -> None:
        """Report what llama.cpp cannot do of a model that it knows."""
        from compressor.backends.gguf.export import BLOCK, list_unsupported

        if names := list_unsupported(facts.config):
            planning.report("format", f"llama.cpp does not follow this model's {', '.join(names)}")
        if weights == "int4" and (not facts.int4 or facts.group_size % BLOCK):
            cure = f"`quantize: {{weights: int4, group_size: {BLOCK}}}`, or a multiple"
            planning.report("weights", f"int4 are those of an int4 model; put before it {cure}")
        if planning.data.truncate == "sentences":
            reason = "llama.cpp's tokenizer does not tell where a token ends; set 'tokens' for gguf"
            planning.report("data.truncate", reason)

    def run(self, inputs: Inputs, context: Context) -> None:
        """Write the model, measure its files, and run it in a fresh process."""
        from compressor.evaluation.resources import measure_sizes
        from compressor.models.checkpoint import save_tokenizer
        from compressor.models.surgery import list_int4_scales

        checkpoint, folder = inputs.checkpoint(), context.folder / "model"
        self._require_tokenizer(checkpoint)
        weights = self._choose_weights(checkpoint.weights)
        facts = replace(checkpoint.derive_facts(), int4=frozenset(list_int4_scales(checkpoint)))
        stored = formats.derive_stored_facts(facts, weights, self.format)
        if self.smooth:
            self._smooth(checkpoint, context)
        details = self._write(checkpoint, folder, weights, context.progress)
        if checkpoint.tokenizer is not None:
            save_tokenizer(checkpoint.tokenizer, folder)
            checked = self.parity is not None and self.export_format.backend != "torch"
            if checked and is_marian(folder):
                rows = context.rows("test")
                require_same_tokens(checkpoint.tokenizer, folder, rows, context.data)
        formats.ExportInfo.of(
            context.data,
            head=checkpoint.head,
            model_type=checkpoint.model.config.model_type,
            format=self.format,
            weights=weights,
        ).save(folder)
        measured = measure_sizes(folder)
        context.sizes["bytes"] = measured["bytes"]
        context.metrics.update(format=self.format, weights=weights, claimed_bytes=stored.bytes)
        context.metrics.update(**measured, **details)
        if self.parity is not None:
            context.metrics.update(self._check(self.parity, inputs, weights, context))

    def _smooth(self, checkpoint: Checkpoint, context: Context) -> None:
        """Move outliers of activations into weights, as the stage of that name does."""
        from compressor.compression.smoothing import smooth_checkpoint
        from compressor.stages.smooth import Smooth

        settings = Smooth()
        rows = context.rows("train").first(settings.calibration_rows)
        examples = checkpoint.tokenize_rows(rows, context.data)
        factors = smooth_checkpoint(checkpoint, examples, settings.alpha)
        context.metrics["smoothed_channels"] = sum(len(factor) for factor in factors)

    def _require_tokenizer(self, checkpoint: Checkpoint) -> None:
        """Raise StageError without the tokenizer, a fast one, that other programs read with."""
        tokenizer = checkpoint.tokenizer
        if tokenizer is None and (self.parity is not None or self.export_format.backend != "torch"):
            raise StageError("the model has no tokenizer, and reads no rows; set model.tokenizer")
        name = type(tokenizer).__name__
        is_read = name == "MarianTokenizer" or tokenizer is None or tokenizer.is_fast
        if self.export_format.backend != "torch" and not is_read:
            raise StageError(f"{self.format!r} needs a fast tokenizer, and {name} is not one")

    def _check(
        self, settings: Parity, inputs: Inputs, weights: str, context: Context
    ) -> dict[str, Any]:
        from compressor.evaluation.parity import check_parity

        source = inputs.checkpoint()
        evidence = context.run_folder / "parity" / context.name if context.run_folder else None
        return check_parity(
            settings,
            source,
            context.folder / "model",
            context.rows("test"),
            context.data,
            weights=(source.weights, weights),
            evidence=evidence,
        )

    def _write(
        self, checkpoint: Checkpoint, folder: Path, weights: formats.Weights, progress: Progress
    ) -> dict[str, Any]:
        """Write the model's own files, and measure what is special to the format."""
        if self.format == "huggingface":
            return self._write_plain(checkpoint, folder, weights, progress)
        if self.format == "packed":
            return self._write_packed(checkpoint, folder, weights)
        if self.format == "onnx":
            return self._write_onnx(checkpoint, folder, weights)
        from compressor.backends.ctranslate2 import export as ctranslate2
        from compressor.backends.gguf import export as gguf
        from compressor.models.surgery import dequantize_checkpoint, list_int4_scales

        scales = list_int4_scales(checkpoint) if weights == "int4" else {}
        floats = dequantize_checkpoint(checkpoint)
        if self.format == "gguf":
            gguf.write_model(floats, folder, weights, scales)
        else:
            ctranslate2.write_model(floats, folder, weights)
        return {}

    def _write_onnx(
        self, checkpoint: Checkpoint, folder: Path, weights: formats.Weights
    ) -> dict[str, Any]:
        from compressor.backends.onnx import export as onnx_graphs
        from compressor.models.checkpoint import save_config

        if checkpoint.head in WRITERS:
            settings = checkpoint.model.generation_config.to_dict()
            require_followed(settings, "onnxruntime", greedy=True)
        folder.mkdir()
        save_config(checkpoint.model, folder)
        onnx_graphs.write_model(checkpoint, folder, weights=weights)  # type: ignore[arg-type]  # planned
        return {}

    def _write_plain(
        self, checkpoint: Checkpoint, folder: Path, weights: formats.Weights, progress: Progress
    ) -> dict[str, Any]:
        import torch

        from compressor.models.checkpoint import fit_transformers_4, save_pretrained
        from compressor.models.loading import load_pretrained
        from compressor.models.surgery import dequantize_checkpoint

        checkpoint = dequantize_checkpoint(checkpoint)
        if not fit_transformers_4(checkpoint.model):
            progress.say(f"  {OWN_TABLES}")
        model = checkpoint.model.to(getattr(torch, weights))
        save_pretrained(model, folder)
        again = load_pretrained(folder, checkpoint.head)
        return {"logits_difference": _require_equal(model.float(), again)}

    def _write_packed(
        self, checkpoint: Checkpoint, folder: Path, weights: formats.Weights
    ) -> dict[str, Any]:
        import torch

        from compressor.backends.packed import load_packed, save_packed
        from compressor.models.surgery import dequantize_checkpoint

        if checkpoint.weights in HALF:
            checkpoint = dequantize_checkpoint(checkpoint)
        packed = save_packed(checkpoint, folder, weights)  # type: ignore[arg-type]  # planned
        model = dequantize_checkpoint(checkpoint).model
        source, state = _logits(model), model.state_dict()
        with torch.no_grad():
            for name, entry in packed.items():
                state[name].copy_(entry.unpack())
        _require_equal(model, load_packed(folder))
        tensors = {
            name: {
                "shape": list(entry.shape),
                "values": str(entry.values.dtype).removeprefix("torch."),
                "kept": entry.values.numel(),
                "mask_bytes": entry.mask_bytes,
                "value_bytes": entry.value_bytes,
            }
            for name, entry in packed.items()
        }
        return {
            "mask_bytes": sum(entry.mask_bytes for entry in packed.values()),
            "value_bytes": sum(entry.value_bytes for entry in packed.values()),
            "logits_difference": float((source - _logits(model)).abs().max()),
            "tensors": tensors,
        }


def require_same_tokens(
    tokenizer: PreTrainedTokenizerBase, folder: Path, rows: Rows, data: DataBase
) -> None:
    """Raise StageError unless the tokenizer in `folder` reads and writes rows as the original."""
    from compressor.data.examples import tokenize_rows, tokenize_sources

    saved, expected = Tokens.load(folder), tokenize_rows(rows, tokenizer, data)
    sources, targets = tokenize_sources(rows.texts, saved, data), expected.targets[:]
    expected_texts, texts = (
        t.batch_decode(targets, skip_special_tokens=True) for t in (tokenizer, saved)
    )
    for row in range(len(rows)):
        difference = ""
        if sources[row] != expected.sources[row]:
            difference = f"reads row {row} as other ids"
        elif texts[row] != expected_texts[row]:
            both = f"{texts[row]!r:.80}, not {expected_texts[row]!r:.80}"
            difference = f"writes the target of row {row} as {both}"
        if difference:
            raise StageError(f"of the test split, the exported tokenizer {difference}")


def _logits(model: PreTrainedModel) -> Tensor:
    """Compute the first output for some ids: enough to tell weights from others."""
    import torch

    ids = torch.arange(2, 10).remainder(model.config.vocab_size)[None]  # few positions suffice
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.inference_mode():
        logits: Tensor = next(iter(model(**inputs).values()))
    return logits


def _require_equal(source: PreTrainedModel, exported: PreTrainedModel) -> float:
    """Measure the largest difference of some logits. Raises StageError unless tensors are equal.

    Products of equal tensors may differ in their last bit, by where in memory they lie.
    """
    import torch

    state = exported.state_dict()
    for name, tensor in source.state_dict().items():
        if name not in state or not torch.equal(tensor, state[name]):
            raise StageError(f"the exported model's {name} is not its source's")
    logits = _logits(source)
    difference = float((logits - _logits(exported)).abs().max())
    if not difference <= ROUNDING * float(logits.abs().max()):
        raise StageError(f"the exported model's logits differ from its source's by {difference:g}")
    return difference
