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

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from compressor.data.examples import Examples
from tests.benchmarks.finetune import SHARED, WARM_UP, Laps
from tests.benchmarks.report import write

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
        examples = whole.tokenize_rows(data.load(split).first(count), data)
        (folder / f"{split}.json").write_text(json.dumps([examples.sources, examples.targets]))


def read(folder: Path, split: str) -> Examples:
    sources, targets = json.loads((folder / f"{split}.json").read_text())
    return Examples(sources, targets, "labels")


def theirs(folder: Path, train: Examples, *, padding: str) -> Any:
    """Trainer as its documentation shows it; (model, laps)."""
    import torch
    import transformers as hf

    model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    features = [
        {"input_ids": source, "labels": [float(one) for one in target]}
        for source, target in zip(train.sources, train.targets, strict=True)
    ]
    collator = hf.DataCollatorWithPadding(tokenizer, padding, max_length=MAX_LENGTH)
    laps = Laps(BATCH)

    class Lap(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            laps.advance()

    with tempfile.TemporaryDirectory() as out:
        arguments = hf.TrainingArguments(
            output_dir=out,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            weight_decay=0.01,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        hf.Trainer(
            model=model,
            args=arguments,
            train_dataset=features,
            data_collator=collator,
            callbacks=[Lap()],
        ).train()
    return model.cpu(), laps


def ours(folder: Path, train: Examples) -> Any:
    """The package's own loop; (model, laps)."""
    from compressor.models.checkpoint import Checkpoint
    from compressor.training.hyperparameters import Hyperparameters
    from compressor.training.loop import Training
    from compressor.training.losses import LabelLoss

    checkpoint = Checkpoint.load(folder)
    settings = Hyperparameters(
        batch_size=BATCH, learning_rate=RATE, weight_decay=0.01, checkpoint_seconds=1e9,
        precision="float32",
    )  # fmt: skip
    laps = Laps(BATCH)
    with tempfile.TemporaryDirectory() as resume:
        Training(
            loss=LabelLoss(checkpoint.model),
            model=checkpoint.model,
            train=train,
            validation=None,
            settings=settings,
            masks={},
            pad_id=checkpoint.pad_id,
            seed=0,
            resume=Path(resume),
            progress=laps,
        ).run()
    return checkpoint.model, laps


def once(case: str, folder: Path) -> None:
    """One measurement, printed for the parent."""
    import torch

    from compressor.training.loop import mean_loss
    from compressor.training.losses import LabelLoss

    train, held = read(folder, "train"), read(folder, "validation")
    if case == "ours":
        model, laps = ours(folder, train)
    else:
        padding = "max_length" if case == "theirs_max" else "longest"
        model, laps = theirs(folder, train, padding=padding)
    pad = model.config.pad_token_id or 0
    loss = mean_loss(LabelLoss(model.eval()), held, pad, torch.device("cpu"))
    print("RESULT " + json.dumps({"samples_per_second": laps.samples_per_second(), "loss": loss}))


def measured(case: str, folder: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.classify", "--once", case, str(folder)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.split("RESULT ")[1])
    print(case, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--once")
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.once:
        once(given.once, given.folder)
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # for both sides alike
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_inputs(folder, given.rows)
        lengths = read(folder, "train").lengths()
        for _ in range(given.rounds):
            for case, results in found.items():
                results.append(measured(case, folder))
    speeds = {case: [r["samples_per_second"] for r in results] for case, results in found.items()}
    middle = {case: statistics.median(values) for case, values in speeds.items()}
    write(
        "classify",
        {
            "ours": middle["ours"],
            "theirs": middle["theirs_max"],
            "ratio": middle["ours"] / middle["theirs_max"],
            "asked": ASKED,
            "unit": "samples/s",
            "against_dynamic_padding": middle["ours"] / middle["theirs"],
            "samples_per_second": speeds,
            "validation_loss": {case: [r["loss"] for r in rows] for case, rows in found.items()},
            "mean_tokens": sum(lengths) / len(lengths),
            "timed_steps": len(lengths) // BATCH - WARM_UP,
            "model": "two layers of MiniLM-L6"
            if REAL.is_dir()
            else "two fresh layers of its shape",
        },
    )


if __name__ == "__main__":
    main()
