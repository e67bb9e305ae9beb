"""Run, or plan, one stage without a recipe around it, on models and rows made here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from compressor.core.console import Console
from compressor.core.progress import Progress
from compressor.data.bills import Bills, make_bills
from compressor.data.sources import Data, Files
from compressor.data.tokenizers import train_tokenizer
from compressor.engine import worker
from compressor.models.checkpoint import Checkpoint
from compressor.models.facts import Facts
from compressor.models.loading import build_model
from compressor.stages.base import Context, Inputs, Planning, Stage, stage_class
from compressor.training.launch_config import Launch

TEXTS = [row["text"] for row in make_bills(40, seed=0, split="train")]
SUMMARIES = [row["summary"] for row in make_bills(40, seed=0, split="train")]
T5 = {
    "vocab_size": 304, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
BERT = {
    "vocab_size": 304, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "vocab_size": 304, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip
LABELS = ("good", "bad")


def tokenizer() -> Any:
    return train_tokenizer([*TEXTS, *SUMMARIES], vocab_size=304)


def pico_t5(**changes: Any) -> Checkpoint:
    """A T5 with an embedding of 304 rows, drawn from seed 0, and its tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("t5", **{**T5, **changes})
    return Checkpoint(build_model(config, "seq2seq_lm").eval(), tokenizer(), "seq2seq_lm")


def pico_classifier(model_type: str = "bert", *, labels: int = 2, **changes: Any) -> Checkpoint:
    """A classifier of two labels that a row can both have."""
    torch.manual_seed(0)
    sizes = BERT if model_type == "bert" else GPT2
    about = {"num_labels": labels, "problem_type": "multi_label_classification"}
    config = AutoConfig.for_model(model_type, **{**sizes, **about, **changes})
    model = build_model(config, "sequence_classification").eval()
    return Checkpoint(model, tokenizer(), "sequence_classification")


def rows_of_text(
    folder: Path,
    texts: Sequence[str] = TEXTS[:8],
    summaries: Sequence[str] = SUMMARIES[:8],
    **settings: Any,
) -> Data:
    """The same rows for every split."""
    rows = [{"text": t, "summary": s} for t, s in zip(texts, summaries, strict=True)]
    return data_of_rows(folder, rows, settings)


def rows_of_labels(
    folder: Path,
    texts: Sequence[str] = TEXTS[:8],
    truth: Iterable[tuple[int, int]] = ((0, 1), (1, 0)) * 4,
    **settings: Any,
) -> Data:
    """The same rows for every split, with 0 or 1 for each of `LABELS`."""
    rows = [
        {"text": text, **dict(zip(LABELS, labels, strict=True))}
        for text, labels in zip(texts, truth, strict=True)
    ]
    return data_of_rows(folder, rows, {"task": "multi_label", "labels": LABELS} | settings)


def data_of_rows(folder: Path, rows: list[dict[str, Any]], settings: Mapping[str, Any]) -> Data:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = dict.fromkeys(("train", "validation", "test"), str(path))
    limits = {"max_source_length": 48, "max_target_length": 16, "empty": "keep"}
    return Files.model_validate({"source": "files", "files": files} | limits | settings)


BILLS = Bills(source="bills")


def stage_context(folder: Path, data: Any = BILLS, name: str = "") -> Context:
    """Give a stage a folder of its own to write in."""
    folder.mkdir(parents=True, exist_ok=True)
    quiet = Progress(Console(quiet=True), quiet=True)
    return Context(folder, folder / "resume", data, 0, Launch(), quiet, name=name)


def run_stage(
    stage: Stage, checkpoint: Checkpoint, folder: Path, data: Any = BILLS
) -> tuple[Checkpoint, dict[str, Any]]:
    """Run a stage on a saved model: what it gives, as it is saved and loaded again, and metrics."""
    checkpoint.save(folder / "before")
    context = stage_context(folder / "stage", data)
    result = stage.run(Inputs(folder / "before"), context)
    assert result is not None
    result.save(folder / "after")
    return Checkpoint.load(folder / "after"), context.metrics


def preview(
    stage: Stage, facts: Facts | None, data: Any = BILLS, **others: Facts
) -> tuple[Facts | None, list[tuple[str, str]]]:
    """Plan a stage: the facts after it, and (path, message) of its problems. `others`: by role."""
    problems: list[tuple[str, str]] = []

    def report(path: str, message: str) -> None:
        problems.append((path, message))

    planning = Planning(facts, data, report, report, others=others)
    return stage.preview(planning), problems


def measure(
    kind: str,
    checkpoint: Checkpoint | Path,
    data: Data,
    folder: Path,
    artifacts: Mapping[str, Path] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Run a stage as the engine does, on a model or a folder of one, into `folder`/`kind`."""
    if isinstance(checkpoint, Checkpoint):
        checkpoint.save(folder / f"before_{kind}")
        checkpoint = folder / f"before_{kind}"
    assert not (folder / kind).exists(), "another one was run there"
    context = stage_context(folder / kind, data)
    stage = stage_class(kind).model_validate(settings)
    worker.run_stage(stage, Inputs(checkpoint, dict(artifacts or {})), context)
    return context.metrics
