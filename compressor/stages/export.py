"""`export`: a model for other programs, checked against its source before it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from compressor.backends.formats import (
    FORMATS,
    Exported,
    Format,
    FormatName,
    Weights,
    refusal,
    stored,
)
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

    huggingface: plain transformers, 5 or the last 4, `AutoModelFor….from_pretrained`. For them an
    mT5 and a T5 v1.1 are written with the head as a tensor of its own. An int8 or int4 model is
    written with the float values that its weights stand for, since transformers has no such layer;
    a bfloat16 or float16 model in its own type. A model with a block (see `approximate`) is loaded
    by `compressor.load_model` alone.

    packed: for `compressor.load_model`. Of a weight with zeros a bit for each entry and the others'
    values, matrices in int8 (one scale a row), bfloat16 or float32. Small on the disk alone. An
    int8 model's values and scales stay as they are; there is no int4.

    ctranslate2: `ctranslate2.Translator`, or `Encoder` with the classifier's head beside it. int8
    has one scale a row and computes in integers, tables of embeddings included; the `_…` after it
    is the type of all else.
    Needs the package `ctranslate2`.

    onnx: `encoder.onnx` and `decoder.onnx`, or a classifier's `model.onnx`, and `weights.bin`; ONNX
    Runtime computes, and `compressor.load` decodes in numpy. int8 has one scale a row, and integer
    products of blocks of 32. Needs `onnx`, `onnxscript` and `onnxruntime`.

    gguf: one file with its tokenizer, for llama.cpp and what is built on it; `compressor.load` runs
    it on the CPU. int8 is Q8_0: blocks of 32 entries of a row share one float16 scale, so that an
    int8 model is rounded once more; the products are of integers. A matrix whose rows cannot be
    cut into 32s is float16 then, vectors and positions are always float32. T5 and mT5 (the decoder
    no deeper than the encoder), GPT-2, Llama, Qwen2 and Qwen3; no SentencePiece BPE (Llama 2), no
    sliding window, no YaRN. A search's settings are beside the file. T5's tokenizer differs from
    transformers' in that it drops spaces at the end of a text and before `<extra_id_…>`. Needs
    `gguf` and `llama-cpp-python`, whose installation compiles llama.cpp.

    A process of its own, which imports nothing that the format does not need, then loads the
    directory and reads rows of the test split. It must give what the stage's model gives, within
    the limits of `parity`; else the stage fails, nothing is stored, and the rows are left in the
    run's folder under `parity/`. `parity: null` leaves this out. What comes out can be looked at by
    `evaluate` and `benchmark`: name this stage among their `models`.

    Example: `export: {model: recover, format: ctranslate2, weights: int8, parity: {rows: 64}}`
    """

    version: ClassVar[int] = 3
    measures: ClassVar[tuple[str, ...]] = ("disk_bytes", "gzip_bytes")

    format: FormatName = Field("huggingface", description="What will load it.")
    weights: Weights | None = Field(
        None,
        description="How weights are stored; default: int8, and for huggingface float32, or the "
        "model's own bfloat16 or float16.",
    )
    parity: Parity | None = Field(
        Parity(), description="How the result is checked; null: it is not."
    )

    def reads(self) -> Mapping[Split, Reads]:
        return {"test": "sources"} if self.parity is not None else {}

    @property
    def export_format(self) -> Format:
        return FORMATS[self.format]

    def _stored(self, own: str) -> Weights:
        """How the weights of a model are stored, whose own are `own`."""
        if self.weights is None and self.format == "huggingface" and own in HALF:
            return own  # type: ignore[return-value]  # both of these are such weights
        return self.weights or self.export_format.weights[0]

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """How texts are read is written beside the model."""
        fields = {"task", "labels", "prefix", "max_source_length", "max_target_length", "truncate"}
        return {"texts": planning.data.model_dump(mode="json", include=fields)}

    def preview(self, planning: Planning) -> Facts | None:
        valid, facts = self.export_format.weights, planning.facts
        weights = self._stored(facts.weights if facts else "float32")
        if weights not in valid:
            hint = nearest(weights, valid)
            planning.problem("weights", f"{self.format!r} cannot store {weights!r}; {hint}")
        if facts is None:
            return None
        if (reason := refusal(self.format, facts)) is not None:
            planning.problem("format", reason)
        elif self.format == "ctranslate2" and facts.model_type == "marian":
            self._check_marian(facts, planning)
        elif self.format == "onnx" and weights == "int8" and facts.model_type == "gpt2":
            message = "gpt2's layers are of a kind that onnx keeps float; take 'float32'"
            planning.problem("weights", message)
        elif self.format == "packed":
            self._check_packed(facts, planning, weights)
        elif self.format == "gguf":
            self._check_gguf(facts, planning)
        if self.export_format.backend != "torch":
            planning.check_decoding({}, backend=self.export_format.backend)
        if self.parity is not None and facts.config["head"] != "none":
            planning.check_rows(trains=False)
            planning.check_decoding(self._parity_limit(planning.data), backend="torch")
        return stored(facts, weights, self.format)

    def _parity_limit(self, data: DataBase) -> dict[str, int]:
        """The longest summary of the check, by the key that says so."""
        own = self.parity.max_length if self.parity is not None else None
        if own is not None:
            return {"parity.max_length": own}
        return {"data.max_target_length": data.max_target_length}

    def _check_packed(self, facts: Facts, planning: Planning, weights: str) -> None:
        """Report values that are not those of a quantized model."""
        exact = EXACT_VALUES.get(facts.weights, (weights,))
        if not exact:
            planning.problem("format", "a packed file has no int4; take 'huggingface'")
        elif weights not in exact:
            expected = " or ".join(map(repr, exact))
            message = f"the model is {facts.weights} already; expected {expected}"
            planning.problem("weights", f"{message}, got {weights!r}")

    def _check_marian(self, facts: Facts, planning: Planning) -> None:
        """Report two vocabularies, of which CTranslate2's converter reads one."""
        if not facts.config.get("share_encoder_decoder_embeddings", True):
            reason = "CTranslate2 reads no Marian with two vocabularies; take 'onnx'"
            planning.problem("format", reason)

    def _check_gguf(self, facts: Facts, planning: Planning) -> None:
        """Report what llama.cpp cannot do of a model that it knows."""
        from compressor.backends.gguf.export import lost

        if names := lost(facts.config):
            planning.problem("format", f"llama.cpp does not follow this model's {', '.join(names)}")
        if planning.data.truncate == "sentences":
            reason = "llama.cpp's tokenizer does not tell where a token ends; set 'tokens' for gguf"
            planning.problem("data.truncate", reason)

    def run(self, inputs: Inputs, context: Context) -> None:
        """Write, measure, and run in a fresh process."""
        from compressor.evaluation.resources import sizes
        from compressor.models.checkpoint import save_tokenizer

        checkpoint, folder = inputs.checkpoint(), context.folder / "model"
        self._require_tokenizer(checkpoint)
        own = checkpoint.quantization.weights if checkpoint.quantization else "float32"
        weights = self._stored(own)
        facts = stored(checkpoint.facts(), weights, self.format)
        details = self._write(checkpoint, folder, weights, context.progress)
        if checkpoint.tokenizer is not None:
            save_tokenizer(checkpoint.tokenizer, folder)
            if (
                self.parity is not None
                and self.export_format.backend != "torch"
                and is_marian(folder)
            ):
                rows = context.rows("test")
                require_same_tokens(checkpoint.tokenizer, folder, rows, context.data)
        Exported.of(
            context.data,
            head=checkpoint.head,
            model_type=checkpoint.model.config.model_type,
            format=self.format,
            weights=weights,
        ).save(folder)
        ledger = sizes(folder)
        context.sizes["bytes"] = ledger["bytes"]
        context.metrics.update(
            format=self.format,
            weights=weights,
            claimed_bytes=facts.bytes,
            **ledger,
            **details,
        )
        if self.parity is not None:
            context.metrics.update(self._check(self.parity, inputs, weights, context))

    def _require_tokenizer(self, checkpoint: Checkpoint) -> None:
        """Before anything is written: what other programs run reads texts by a fast tokenizer."""
        tokenizer = checkpoint.tokenizer
        if tokenizer is None and (self.parity is not None or self.export_format.backend != "torch"):
            raise StageError("the model has no tokenizer, and reads no rows; set model.tokenizer")
        name = type(tokenizer).__name__
        is_read = name == "MarianTokenizer" or tokenizer is None or tokenizer.is_fast
        if self.export_format.backend != "torch" and not is_read:
            raise StageError(f"{self.format!r} needs a fast tokenizer, and {name} is none")

    def _check(
        self, settings: Parity, inputs: Inputs, weights: str, context: Context
    ) -> dict[str, Any]:
        from compressor.evaluation.parity import gate

        source = inputs.checkpoint()
        place = context.run_folder / "parity" / context.name if context.run_folder else None
        return gate(
            settings,
            source,
            context.folder / "model",
            context.rows("test"),
            context.data,
            weights=(source.quantization.weights if source.quantization else "float32", weights),
            evidence=place,
        )

    def _write(
        self, checkpoint: Checkpoint, folder: Path, weights: Weights, progress: Progress
    ) -> dict[str, Any]:
        """Write the model's own files; what is measured of them beyond their sizes."""
        if self.format == "huggingface":
            return self._plain(checkpoint, folder, weights, progress)
        if self.format == "packed":
            return self._packed(checkpoint, folder, weights)
        if self.format == "onnx":
            return self._onnx(checkpoint, folder, weights)
        from compressor.backends import ctranslate2
        from compressor.backends.gguf import export as gguf
        from compressor.models.surgery import dequantized

        if checkpoint.quantization is not None:
            checkpoint = dequantized(checkpoint)
        write = gguf.write if self.format == "gguf" else ctranslate2.write
        write(checkpoint, folder, weights)
        return {}

    def _onnx(self, checkpoint: Checkpoint, folder: Path, weights: Weights) -> dict[str, Any]:
        from compressor.backends.onnx import export as onnx_graphs
        from compressor.models.checkpoint import save_config

        if checkpoint.head == "seq2seq_lm":
            settings = checkpoint.model.generation_config.to_dict()
            require_followed(settings, "onnxruntime", greedy=True)
        folder.mkdir()
        save_config(checkpoint.model, folder)
        onnx_graphs.write(checkpoint, folder, weights=weights)  # type: ignore[arg-type]  # planned
        return {}

    def _plain(
        self, checkpoint: Checkpoint, folder: Path, weights: Weights, progress: Progress
    ) -> dict[str, Any]:
        import torch

        from compressor.models.checkpoint import fit_transformers_4, save_pretrained
        from compressor.models.loading import load_pretrained
        from compressor.models.surgery import dequantized

        if checkpoint.quantization is not None:
            checkpoint = dequantized(checkpoint)
        if not fit_transformers_4(checkpoint.model):
            progress.say(f"  {OWN_TABLES}")
        model = checkpoint.model.to(getattr(torch, weights))
        save_pretrained(model, folder)
        again = load_pretrained(folder, checkpoint.head)
        return {"logits_difference": _require_equal(model.float(), again)}

    def _packed(self, checkpoint: Checkpoint, folder: Path, weights: Weights) -> dict[str, Any]:
        import torch

        from compressor.backends.packed import load_packed, save_packed
        from compressor.models.surgery import dequantized

        if checkpoint.quantization is not None and checkpoint.quantization.half:
            checkpoint = dequantized(checkpoint)
        packed = save_packed(checkpoint, folder, weights)  # type: ignore[arg-type]  # planned
        if checkpoint.quantization is not None:
            checkpoint = dequantized(checkpoint)
        model = checkpoint.model
        source = _logits(model)
        state = model.state_dict()
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
    from compressor.data.examples import source_ids, tokenize

    saved, expected = Tokens.load(folder), tokenize(rows, tokenizer, data)
    read, ids = source_ids(rows.texts, saved, data), expected.targets[:]
    written, again = (t.batch_decode(ids, skip_special_tokens=True) for t in (tokenizer, saved))
    for row in range(len(rows)):
        if read[row] != expected.sources[row] or written[row] != again[row]:
            found = f"{again[row]!r:.80}, not {written[row]!r:.80}"
            how = f"writes the summary of row {row} as {found}"
            if read[row] != expected.sources[row]:
                how = f"reads row {row} as other ids"
            raise StageError(f"of the test split, the exported tokenizer {how}")


def _logits(model: PreTrainedModel) -> Tensor:
    """The first output for some ids: enough to tell one set of weights from another."""
    import torch

    ids = torch.arange(2, 10).remainder(model.config.vocab_size)[None]  # few positions suffice
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, :4]
    with torch.inference_mode():
        logits: Tensor = next(iter(model(**inputs).values()))
    return logits


def _require_equal(expected: PreTrainedModel, got: PreTrainedModel) -> float:
    """The largest difference of some logits. Raises StageError unless all tensors are equal.

    Equal tensors may differ in their last bit of a product, by where in memory they lie.
    """
    import torch

    found = got.state_dict()
    for name, tensor in expected.state_dict().items():
        if name not in found or not torch.equal(tensor, found[name]):
            raise StageError(f"the exported model's {name} is not its source's")
    source, again = _logits(expected), _logits(got)
    difference = float((source - again).abs().max())
    if not difference <= ROUNDING * float(source.abs().max()):
        raise StageError(f"the exported model's logits differ from its source's by {difference:g}")
    return difference
