"""Samples a second of `finetune` against transformers.Seq2SeqTrainer: same model, rows, batch.

    make bench NAME=finetune

Every measurement is a process of its own, so that no side inherits the other's memory; the sides
take turns, for several rounds. Each trains one epoch on the same rows (padded to the maximum, where
every step costs the same, only its first steps); timed are its optimizer steps but for the first
few, in which memory still grows. Then one and the same function measures the validation loss.
The model is a real T5 where `outputs/bench/models/t5-titles` has one, else T5-small's shape with
fresh weights; the rows are SciTLDR's where `../shared` has them, else generated bills.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.benchmarks.common import (
    SHARED,
    Laps,
    read_examples,
    time_trainings,
    train_ours,
    train_theirs,
    write,
    write_examples,
)

REAL = Path("outputs/bench/models/t5-titles")
MAX_SOURCE, MAX_TARGET, BATCH, RATE = 512, 128, 8, 3e-4
CASES = ("theirs", "theirs_max", "ours", "ours_bf16")
ASKED = (("ours", "theirs", 1.25), ("ours", "theirs_max", 2.5), ("ours_bf16", "theirs", 1.8))


def make_inputs(folder: Path, rows: int) -> None:
    """Write model, tokenizer and token ids once, for all measurements to read."""
    import torch
    from transformers import AutoTokenizer, T5Config

    from compressor.data.bills import Bills, make_bills
    from compressor.data.examples import tokenize_rows
    from compressor.data.sources import Rows
    from compressor.data.tokenizers import train_tokenizer
    from compressor.models.checkpoint import save_pretrained
    from compressor.models.loading import build_model, load_pretrained

    torch.manual_seed(0)
    if REAL.is_dir():
        model = load_pretrained(REAL, "seq2seq_lm")
        tokenizer = AutoTokenizer.from_pretrained(REAL)
    else:
        model = build_model(T5Config(decoder_start_token_id=0), "seq2seq_lm")
        bills = make_bills(1000, seed=0, split="train")
        tokenizer = train_tokenizer((row["text"] for row in bills), vocab_size=8000)
    save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    limits: Any = {"max_source_length": MAX_SOURCE, "max_target_length": MAX_TARGET}
    data = Bills(source="bills", prefix="summarize: ", **limits)
    for split, count in (("train", rows), ("validation", 48)):
        path = SHARED / "data" / "scitldr" / f"{split}.jsonl"
        lines: list[Any] = list(make_bills(count, seed=0, split=split))
        if path.is_file():
            lines = [json.loads(line) for line in path.read_text().splitlines()[:count]]
        texts = Rows([line["text"] for line in lines], [line["summary"] for line in lines])
        write_examples(folder, split, tokenize_rows(texts, tokenizer, data))


def train(case: str, folder: Path) -> tuple[Any, Laps]:
    import transformers as hf

    from compressor.models.loading import load_pretrained

    rows = read_examples(folder, "train")
    if case.startswith("ours"):
        model: Any = load_pretrained(folder, "seq2seq_lm")
        precision = "bfloat16" if case == "ours_bf16" else "float32"
        laps = train_ours(model, rows, 0, batch_size=BATCH, learning_rate=RATE, precision=precision)
        return model, laps
    model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder)
    pairs = list(zip(rows.sources, rows.targets, strict=True))
    features: list[Any] = [{"input_ids": source, "labels": target} for source, target in pairs]
    collator: Any = hf.DataCollatorForSeq2Seq(hf.AutoTokenizer.from_pretrained(folder), model)
    if case == "theirs_max":
        collator = hf.default_data_collator
        features = [
            {
                "input_ids": source + [0] * (MAX_SOURCE - len(source)),
                "attention_mask": [1] * len(source) + [0] * (MAX_SOURCE - len(source)),
                "labels": target + [-100] * (MAX_TARGET - len(target)),
            }
            for source, target in pairs
        ]
    laps = train_theirs(
        hf.Seq2SeqTrainer, hf.Seq2SeqTrainingArguments, model, features, collator,
        per_device_train_batch_size=BATCH, learning_rate=RATE,
        max_steps=7 if case == "theirs_max" else -1,
    )  # fmt: skip
    return model, laps


def main() -> None:
    _, middle, rounds = time_trainings(CASES, make_inputs, train, rows=160)
    speeds = rounds["samples_per_second"]
    write(
        "finetune",
        ours=middle["ours"],
        theirs=middle["theirs"],
        ratio=middle["ours"] / middle["theirs"],
        unit="samples/s",
        pairs=list(zip(speeds["ours"], speeds["theirs"], strict=True)),
        ratios={f"{a} / {b}": middle[a] / middle[b] for a, b, _ in ASKED},
        asked={f"{a} / {b}": asked for a, b, asked in ASKED},
        **rounds,
        model="real T5, 77 M" if REAL.is_dir() else "T5-small's shape, fresh, 60.5 M",
    )


if __name__ == "__main__":
    main()
