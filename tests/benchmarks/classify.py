"""Samples a second of a classifier's `finetune` against transformers.Trainer padding to 200 tokens.

    make bench NAME=classify

System E pads every comment to 200 tokens; the Trainer that pads to a batch's longest is measured
too. Every measurement is a process of its own, and the sides take turns. Each trains one epoch on
the same rows with the same settings; timed are its optimizer steps but for the first few. Then one
and the same function measures the validation loss. The model is MiniLM-L6's first and fourth layer
where `outputs/bench/models/minilm-l6` is, else a fresh one of that shape; the rows are
GoEmotions' where `../shared` has them, else generated messages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks.common import (
    SHARED,
    WARM_UP,
    Laps,
    read_examples,
    time_trainings,
    train_ours,
    train_theirs,
    write,
    write_examples,
)

REAL = Path("outputs/bench/models/minilm-l6")
MAX_LENGTH, BATCH, RATE = 200, 16, 3e-4
CASES = ("theirs_max", "theirs", "ours")
ASKED = 1.5
SHAPE = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}


def make_inputs(folder: Path, rows: int) -> None:
    """Write a checkpoint and token ids once, for all measurements to read."""
    import torch
    from transformers import AutoConfig, AutoTokenizer

    from compressor.data.messages import Messages
    from compressor.data.sources import Files
    from compressor.data.tokenizers import train_tokenizer
    from compressor.models.checkpoint import Checkpoint
    from compressor.models.classifier_head import label_config
    from compressor.models.loading import build_model, load_pretrained
    from compressor.models.surgery import keep_layers
    from compressor.recipe.compose import compose

    torch.manual_seed(0)
    where = SHARED / "data" / "goemotions"
    data: Any = Messages(source="messages", rows={"train": rows, "validation": 500})
    if where.is_dir():
        files = [f"data.files.{split}={where}/{split}.csv" for split in ("train", "validation")]
        data = compose("bert/emotions", ["data=go_emotions_files", *files]).recipe.data
        data = Files.model_validate(data.model_dump() | {"max_source_length": MAX_LENGTH})
    labels = label_config(data)
    if REAL.is_dir():
        model = load_pretrained(REAL, "sequence_classification", config=labels)
        tokenizer: Any = AutoTokenizer.from_pretrained(REAL)
    else:
        tokenizer = train_tokenizer(data.load("train").texts, vocab_size=8000)
        config = AutoConfig.for_model("bert", num_hidden_layers=6, **SHAPE, **labels)
        model = build_model(config, "sequence_classification", untied_head=False)
    whole = Checkpoint(model, tokenizer, "sequence_classification")
    whole = keep_layers(whole, {"encoder": [0, 3]})
    whole.save(folder)
    for split, count in (("train", rows), ("validation", 1000)):
        write_examples(folder, split, whole.tokenize_rows(data.load(split).first(count), data))


def train(case: str, folder: Path) -> tuple[Any, Laps]:
    import transformers as hf

    from compressor.models.checkpoint import Checkpoint

    rows, shared = (
        read_examples(folder, "train", "labels"),
        {"learning_rate": RATE, "weight_decay": 0.01},
    )
    if case == "ours":
        checkpoint = Checkpoint.load(folder)
        laps = train_ours(
            checkpoint.model, rows, checkpoint.pad_id, batch_size=BATCH, precision="float32",
            **shared,
        )  # fmt: skip
        return checkpoint.model, laps
    model: Any = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    features = [
        {"input_ids": source, "labels": list(map(float, target))}
        for source, target in zip(rows.sources, rows.targets, strict=True)
    ]
    padding = "max_length" if case == "theirs_max" else "longest"
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    collator = hf.DataCollatorWithPadding(tokenizer, padding, max_length=MAX_LENGTH)
    laps = train_theirs(
        hf.Trainer, hf.TrainingArguments, model, features, collator,
        per_device_train_batch_size=BATCH, **shared,
    )  # fmt: skip
    return model, laps


def main() -> None:
    rows, middle, rounds = time_trainings(CASES, make_inputs, train, rows=1600, layout="labels")
    write(
        "classify",
        ours=middle["ours"],
        theirs=middle["theirs_max"],
        ratio=middle["ours"] / middle["theirs_max"],
        asked=ASKED,
        unit="samples/s",
        against_dynamic_padding=middle["ours"] / middle["theirs"],
        **rounds,
        timed_steps=rows // BATCH - WARM_UP,
        model=f"two {'' if REAL.is_dir() else 'fresh '}layers of MiniLM-L6's shape",
    )


if __name__ == "__main__":
    main()
