"""What a model can be exported to: which architectures, which weights, what runs it. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.backends.base import EXPORT
from compressor.backends.generation_config import BackendName
from compressor.backends.gguf.export import get_rope_type, list_unsupported
from compressor.core.errors import StageError
from compressor.core.packages import suggest_install
from compressor.core.settings import first_problem
from compressor.data.rows import Task
from compressor.data.source_base import DataBase, Truncate
from compressor.models.architectures.t5 import scales_outputs
from compressor.models.block_config import BLOCKS_KEY
from compressor.models.facts import Facts, model_types
from compressor.models.quantization import Grid

FormatName = Literal["huggingface", "packed", "ctranslate2", "onnx", "gguf"]

Weights = Literal[
    "float32",
    "bfloat16",
    "float16",
    "int8",
    "int8_float32",
    "int8_bfloat16",
    "int8_float16",
    "int4",
]

_BART_LIKE = {"bart", "mbart", "pegasus", "marian"}
_DECODERS = frozenset({"gpt2", "llama", "qwen2", "qwen3"})


@dataclass(frozen=True)
class Format:
    """One format, and what can be written in it."""

    backend: BackendName
    weights: tuple[Weights, ...]
    """How weights can be stored; the first is the default."""
    models: Mapping[str, frozenset[str]] | None = None
    """Head → model types; None: whatever transformers loads and this package knows."""
    runs: tuple[str, ...] = ()
    """The packages that run it, beyond this package's own dependencies."""
    writes: tuple[str, ...] = ()
    """Those that write it."""
    int8_block: int = 0
    """Entries that share one float16 scale in int8; 0: each row has one float32 scale."""
    blocks: bool = False
    """Whether a block of `approximate` can be in it."""

    @property
    def packages(self) -> tuple[str, ...]:
        return self.writes + self.runs

    def accepts(self, head: str, model_type: str) -> bool:
        return self.models is None or model_type in self.models.get(head, ())


FORMATS: Mapping[FormatName, Format] = {
    "huggingface": Format("torch", ("float32", "bfloat16", "float16"), blocks=True),
    "packed": Format("torch", ("int8", "bfloat16", "float32"), blocks=True),
    "ctranslate2": Format(
        "ctranslate2",
        (
            *("int8", "int8_float32", "int8_bfloat16", "int8_float16"),
            *("float32", "bfloat16", "float16"),
        ),
        {
            "seq2seq_lm": frozenset({"t5", "mt5", *_BART_LIKE}),
            "sequence_classification": frozenset({"bert", "distilbert", "roberta"}),
            "causal_lm": _DECODERS,
        },
        runs=("ctranslate2",),
    ),
    "onnx": Format(
        "onnxruntime",
        ("int8", "float32"),
        # Without LongT5, whose transient-global attention is traced for one length alone.
        {
            "seq2seq_lm": frozenset({"t5", "mt5", *_BART_LIKE}),
            "sequence_classification": frozenset(
                {"bert", "roberta", "electra", "distilbert", "gpt2", "llama", "qwen2", "qwen3"}
            ),
            "token_classification": frozenset({"bert", "roberta", "electra", "distilbert"}),
            "causal_lm": _DECODERS,
        },
        runs=("onnxruntime",),
        writes=("onnx", "onnxscript"),
        blocks=True,
    ),
    "gguf": Format(
        "llamacpp",
        ("int8", "float16", "bfloat16", "float32", "int4"),
        {
            "seq2seq_lm": frozenset({"t5", "mt5"}),
            "causal_lm": _DECODERS,
        },
        runs=("llama_cpp",),
        writes=("gguf",),
        int8_block=32,
    ),
}


def explain_refusal(name: FormatName, facts: Facts) -> str | None:
    """Explain why a model cannot be written in a format; None where it can."""
    export_format, head = FORMATS[name], str(facts.config["head"])
    if not export_format.accepts(head, facts.model_type):
        fitting = [other for other in FORMATS if FORMATS[other].accepts(head, facts.model_type)]
        return (
            f"{facts.model_type} with the head {head!r} cannot be written as {name!r}; "
            f"valid: {', '.join(fitting)}"
        )
    if facts.config.get(BLOCKS_KEY) and not export_format.blocks:
        return f"a model with a block cannot be written as {name!r}"
    if name == "onnx" and (rope := get_rope_type(facts.config)) in ("dynamic", "longrope"):
        return f"a graph does not follow rope_type {rope!r}, which changes with a text's length"
    if name == "ctranslate2" and head == "causal_lm":
        # Of Llama 3's rotations it leaves out the factor.
        names = list_unsupported(facts.config, ropes=("default", "linear"))
        if names := [name for name in names if name != "attention_bias"]:
            return f"CTranslate2 does not follow this model's {', '.join(names)}"
    elif name == "ctranslate2" and head != "seq2seq_lm" and facts.config.get("is_decoder"):
        return (
            f"CTranslate2 lets a {facts.model_type} read both ways: its config's is_decoder is true"
        )
    return explain_missing(name, export_format.packages)


def explain_missing(name: FormatName, packages: Iterable[str]) -> str | None:
    """Tell which packages of a format are not installed, and how to install them."""
    missing = [package for package in packages if find_spec(package) is None]
    if not missing:
        return None
    return f"{name!r} needs {', '.join(missing)}, which is not installed: {suggest_install(name)}"


def derive_stored_facts(facts: Facts, weights: Weights, name: FormatName = "huggingface") -> Facts:
    """Derive the facts of a model in a file of a format with such weights: matrices as they are
    called, with the format's scales of int8, and all else in the float type.
    """
    if name == "huggingface":
        facts = _with_readable_head(facts)
    matrices, _, other = weights.partition("_")
    int4 = facts.int4 if matrices == "int4" else frozenset()
    is_rounded = matrices in ("int8", "int4")
    int8 = {n for n, s in facts.shapes.items() if is_rounded and len(s) > 1} - int4
    if name == "onnx" and int8:
        int8 = {*Grid().choose_kinds("int8", facts), *chain(*facts.list_groups().values())}
    block = FORMATS[name].int8_block
    kept = other or ("float32" if int8 else matrices)
    integers: dict[str, Any] = {"int8": frozenset(int8), "int8_block": block}
    integers |= {"int4": int4, "group_size": block} if int4 else {}
    return replace(facts.dequantize(), weights=kept, **integers)


def _with_readable_head(facts: Facts) -> Facts:
    """Add the head of its own that a T5 without scaled outputs is written with, since transformers
    4 reads no other: see `checkpoint.fit_transformers_4`.
    """
    is_t5 = facts.model_type in ("t5", "mt5", "longt5")
    if not is_t5 or "lm_head.weight" in facts.shapes:
        return facts
    if scales_outputs(facts.model_type, facts.config):
        return facts
    head = {"lm_head.weight": facts.shapes["shared.weight"]}
    return replace(facts, shapes={**facts.shapes, **head})


def list_support() -> list[tuple[str, str, list[bool]]]:
    """List (head, model type, whether each of `FORMATS` accepts it) for all that can be loaded."""
    heads = ("seq2seq_lm", "sequence_classification", "token_classification", "causal_lm")
    return [
        (head, model_type, [known.accepts(head, model_type) for known in FORMATS.values()])
        for head in heads
        for model_type in model_types(head)
    ]


class TextSettings(BaseModel):
    """The settings by which a model's texts are read, and what it predicts from them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: str
    model_type: str
    task: Task
    labels: tuple[str, ...] = ()
    messages: str | None = None
    """Set where texts are chats, or what a user says."""
    prefix: str = ""
    max_source_length: int = Field(ge=1)
    max_target_length: int = Field(ge=1)
    truncate: Truncate = "tokens"

    @classmethod
    def of(cls, data: DataBase, **others: Any) -> Self:
        """Describe how rows of `data` are read; `others` are the fields that data do not have."""
        shared = cls.model_fields.keys() & type(data).model_fields.keys()
        return cls(**{name: getattr(data, name) for name in shared}, **others)


class ExportInfo(TextSettings):
    """The description of an exported model in `compressor.json`: its format and its texts."""

    version: Literal[1] = 1
    format: FormatName
    weights: Weights

    def save(self, folder: Path) -> None:
        """Write it into a model's directory."""
        (folder / EXPORT).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ExportInfo:
        """Read a model directory's. Raises StageError where it is not one that was written here."""
        path = folder / EXPORT
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise StageError(f"{folder} is no exported model: it has no {EXPORT}") from error
        except ValidationError as error:
            raise StageError(f"{path}: {first_problem(error)}") from error
