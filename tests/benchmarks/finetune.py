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

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.core.progress import Progress
from compressor.data.examples import Examples
from tests.benchmarks.report import write

REAL = Path("outputs/bench/models/t5-titles")
SHARED = Path(__file__).parents[3] / "shared"
MAX_SOURCE, MAX_TARGET, BATCH, RATE, WARM_UP = 512, 128, 8, 3e-4, 3
CASES = {
    "theirs": {"padding": "longest"},
    "theirs_max": {"padding": "max_length"},
    "ours": {"precision": "float32"},
    "ours_bf16": {"precision": "bfloat16"},
}
ASKED = (("ours", "theirs", 1.25), ("ours", "theirs_max", 2.5), ("ours_bf16", "theirs", 1.8))


class Laps(Progress):
    """Records when each optimizer step ended; shows nothing."""

    def __init__(self, batch_size: int = BATCH) -> None:
        from compressor.core.console import Console

        super().__init__(Console(quiet=True), quiet=True)
        self.batch_size = batch_size
        self.times: list[float] = []

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        yield self

    def advance(self, steps: int = 1, **notes: str) -> None:
        self.times.append(time.perf_counter())

    def samples_per_second(self) -> float:
        """Without the steps of the warm-up."""
        steps = len(self.times) - WARM_UP
        return self.batch_size * steps / (self.times[-1] - self.times[WARM_UP - 1])


def make_inputs(folder: Path) -> None:
    """Write model, tokenizer and token ids once, for all measurements to read."""
    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        T5Config,
        T5ForConditionalGeneration,
    )

    from compressor.data.bills import Bills, make_bills
    from compressor.data.examples import tokenize_rows
    from compressor.data.sources import Rows
    from compressor.models.checkpoint import save_pretrained

    torch.manual_seed(0)
    if REAL.is_dir():
        model = AutoModelForSeq2SeqLM.from_pretrained(REAL)
        tokenizer = AutoTokenizer.from_pretrained(REAL)
    else:
        from compressor.data.tokenizers import train_tokenizer

        model = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0))
        tokenizer = train_tokenizer(
            (row["text"] for row in make_bills(1000, seed=0, split="train")), vocab_size=8000
        )
    save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    limits = Bills(
        source="bills",
        prefix="summarize: ",
        max_source_length=MAX_SOURCE,
        max_target_length=MAX_TARGET,
    )
    for split, count in (("train", 2000), ("validation", 48)):
        path = SHARED / "data" / "scitldr" / f"{split}.jsonl"
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text().splitlines()][:count]
        else:
            rows = list(make_bills(count, seed=0, split=split))
        texts = Rows([row["text"] for row in rows], [row["summary"] for row in rows])
        examples = tokenize_rows(texts, tokenizer, limits)
        pairs = list(zip(examples.sources, examples.targets, strict=True))
        (folder / f"{split}.json").write_text(json.dumps(pairs))


def read(folder: Path, split: str, rows: int | None) -> Examples:
    pairs = json.loads((folder / f"{split}.json").read_text())[:rows]
    return Examples([source for source, _ in pairs], [target for _, target in pairs])


def validation_loss(model: Any, examples: Examples) -> float:
    """Mean cross-entropy of a label token, float32, without dropout: one measure for both sides."""
    import torch

    from compressor.training.losses import LabelLoss

    loss, total = LabelLoss(model.eval().float()), 0.0
    with torch.inference_mode():
        for row in range(len(examples)):
            total += loss(examples.batch([row], 0)).item()
    return total / sum(map(len, examples.targets))


def theirs(folder: Path, train: Examples, *, padding: str, epochs: int, steps: int) -> Any:
    """Seq2SeqTrainer as its documentation shows it; (model, laps)."""
    import transformers as hf

    model = hf.AutoModelForSeq2SeqLM.from_pretrained(folder)
    pairs = list(zip(train.sources, train.targets, strict=True))
    if padding == "max_length":
        features = [
            {
                "input_ids": source + [0] * (MAX_SOURCE - len(source)),
                "attention_mask": [1] * len(source) + [0] * (MAX_SOURCE - len(source)),
                "labels": target + [-100] * (MAX_TARGET - len(target)),
            }
            for source, target in pairs
        ]
        collator: Any = hf.default_data_collator
    else:
        features = [{"input_ids": source, "labels": target} for source, target in pairs]
        collator = hf.DataCollatorForSeq2Seq(hf.AutoTokenizer.from_pretrained(folder), model)
    laps = Laps()

    class Lap(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            laps.advance()

    with tempfile.TemporaryDirectory() as out:
        arguments = hf.Seq2SeqTrainingArguments(
            output_dir=out,
            num_train_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            use_cpu=True,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_steps=steps,
        )
        hf.Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=features,
            data_collator=collator,
            callbacks=[Lap()],
        ).train()
    return model, laps


def ours(folder: Path, train: Examples, *, precision: Any, epochs: int, steps: int) -> Any:
    """The package's own loop; (model, laps)."""
    from compressor.models.loading import load_pretrained
    from compressor.training.hyperparameters import Hyperparameters
    from compressor.training.loop import Training
    from compressor.training.losses import LabelLoss

    model = load_pretrained(folder, "seq2seq_lm")
    settings = Hyperparameters(
        epochs=epochs,
        max_steps=steps if steps > 0 else None,
        batch_size=BATCH,
        learning_rate=RATE,
        precision=precision,
        checkpoint_seconds=1e9,
    )
    laps = Laps()
    with tempfile.TemporaryDirectory() as resume:
        Training(
            loss=LabelLoss(model),
            model=model,
            train=train,
            validation=None,
            settings=settings,
            masks={},
            pad_id=0,
            seed=0,
            resume=Path(resume),
            progress=laps,
        ).run()
    return model, laps


def once(case: str, folder: Path, rows: int, steps: int) -> None:
    """One measurement, printed for the parent."""
    train = read(folder, "train", rows)
    side: Any = ours if case.startswith("ours") else theirs
    model, laps = side(folder, train, epochs=1, steps=steps, **CASES[case])
    result = {"samples_per_second": laps.samples_per_second()}
    if steps < 0:
        result["loss"] = validation_loss(model, read(folder, "validation", None))
    print("RESULT " + json.dumps(result))


def measured(case: str, folder: Path, **settings: Any) -> dict[str, float]:
    """One measurement in a process of its own."""
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.benchmarks.finetune",
            "--once",
            case,
            str(folder),
            *arguments,
        ],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    result: dict[str, float] = json.loads(done.stdout.split("RESULT ")[1])
    print(case, settings, result, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--once")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=-1)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.once:
        once(given.once, given.folder, given.rows, given.steps)
        return
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # for both sides alike
    found: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_inputs(folder)
        for _ in range(given.rounds):
            for case, results in found.items():
                steps = 7 if case == "theirs_max" else -1
                results.append(measured(case, folder, rows=given.rows, steps=steps))
    speeds = {case: [r["samples_per_second"] for r in results] for case, results in found.items()}
    losses = {case: [r["loss"] for r in found[case]] for case in ("theirs", "ours", "ours_bf16")}
    middle = {case: statistics.median(values) for case, values in speeds.items()}
    write(
        "finetune",
        {
            "ours": middle["ours"],
            "theirs": middle["theirs"],
            "ratio": middle["ours"] / middle["theirs"],
            "unit": "samples/s",
            "pairs": list(zip(speeds["ours"], speeds["theirs"], strict=True)),
            "ratios": {f"{a} / {b}": middle[a] / middle[b] for a, b, _ in ASKED},
            "asked": {f"{a} / {b}": asked for a, b, asked in ASKED},
            "samples_per_second": speeds,
            "validation_loss": losses,
            "model": "real T5, 77 M" if REAL.is_dir() else "T5-small's shape, fresh, 60.5 M",
        },
    )


if __name__ == "__main__":
    main()
