"""What benchmarks share: results, commands, trainings, and measurements in their own processes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from compressor.core.console import Console
from compressor.core.processes import child_environment
from compressor.core.progress import Progress
from compressor.data.examples import Examples
from compressor.evaluation.resources import Peak

Result = TypeVar("Result")
SHARED = Path(__file__).parents[3] / "shared"
MIB = 2**20
WARM_UP = 3
"""Steps that are not timed: memory still grows in them."""


def write(name: str, **result: Any) -> None:
    """Print a result and keep it in `outputs/bench/<name>.json`."""
    folder = Path("outputs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=2)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def compare(ours: Sequence[float], theirs: Sequence[float], unit: str) -> dict[str, Any]:
    """Medians of measurements in turn, and the median of the pairs' ratios where less is better."""
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "ours": statistics.median(ours),
        "theirs": statistics.median(theirs),
        "ratio": statistics.median(other / mine for mine, other in pairs),
        "unit": unit,
        "pairs": pairs,
    }


def run_command(*arguments: str, cwd: Path | None = None) -> str:
    """Run `compressor …` to its end; what it prints."""
    command = [sys.executable, "-m", "compressor", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=child_environment(), check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def run_recipe(folder: Path, name: str, *arguments: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run a recipe in a folder; the run's folder and its records."""
    lines = run_command("run", name, *arguments, cwd=folder).splitlines()
    line = next(line for line in lines if line.startswith("run: "))
    run = folder / line.removeprefix("run: ")
    return run, json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def time_call(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds of a call, and what it gives."""
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def measure_rise(work: Callable[[], Result]) -> tuple[float, Result]:
    """MiB at the peak of a call over what the process held before, and what it gives."""
    peak = Peak()
    before, result, most = peak.bytes(), work(), peak.bytes()
    assert before is not None and most is not None, "needs a system that can reset its peak"
    return (most - before) / MIB, result


def count_cpu_seconds() -> float:
    """CPU seconds of this process's children that have ended, and of theirs."""
    used = os.times()
    return used.children_user + used.children_system


def measure_apart(measure: Callable[..., Result], *arguments: object) -> Result:
    """Call a function of the benchmark in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(measure, *arguments).result()
    print(*arguments, result, flush=True)
    return result


class Laps(Progress):
    """Records when each optimizer step ended; shows nothing."""

    def __init__(self, batch_size: int) -> None:
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


def train_theirs(
    trainer: Any, arguments: Any, model: Any, rows: Any, collator: Any, **settings: Any
) -> Laps:
    """Train as transformers' documentation shows it."""
    import torch
    from transformers import TrainerCallback

    laps = Laps(settings["per_device_train_batch_size"])

    class Lap(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            laps.advance()

    quiet = dict.fromkeys(("save_strategy", "eval_strategy", "logging_strategy"), "no")
    with tempfile.TemporaryDirectory() as out:
        arguments = arguments(
            output_dir=out, num_train_epochs=1, use_cpu=not torch.cuda.is_available(),
            report_to="none", disable_tqdm=True, **quiet, **settings,
        )  # fmt: skip
        trainer(
            model=model, args=arguments, train_dataset=rows, data_collator=collator,
            callbacks=[Lap()],
        ).train()  # fmt: skip
    return laps


def train_ours(
    model: Any,
    train: Any,
    pad_id: int,
    *,
    masks: Any = (),
    laps: Laps | None = None,
    **settings: Any,
) -> Laps:
    """Train with the package's own loop."""
    from tests.harness.training import make_training

    laps = laps or Laps(settings["batch_size"])
    settings["checkpoint_seconds"] = 1e9
    parts = {"pad_id": pad_id, "masks": dict(masks), "progress": laps}
    with tempfile.TemporaryDirectory() as resume:
        make_training(model, train, Path(resume), settings, **parts).run()
    return laps


def write_examples(folder: Path, split: str, examples: Examples) -> None:
    text = json.dumps([examples.sources[:], examples.targets[:]])
    (folder / f"{split}.json").write_text(text)


def read_examples(folder: Path, split: str, layout: Any = "pairs") -> Examples:
    return Examples(*json.loads((folder / f"{split}.json").read_text()), layout)


Train = Callable[[str, Path], tuple[Any, Laps]]
"""Trains a case's model on the inputs in a folder."""


def measure_training(train: Train, layout: str, case: str, folder: Path) -> tuple[float, float]:
    """Samples a second, and the mean loss of held-out labels: one measure for all sides."""
    import torch

    from compressor.training.losses import LabelLoss, mean_loss

    model, laps = train(case, folder)
    rows, pad = read_examples(folder, "validation", layout), model.config.pad_token_id or 0
    loss = mean_loss(LabelLoss(model.cpu().eval().float()), rows, pad, torch.device("cpu"))
    return laps.samples_per_second(), loss


def time_trainings(
    cases: Sequence[str],
    make_inputs: Callable[[Path, int], None],
    train: Train,
    *,
    rows: int,
    layout: str = "pairs",
) -> tuple[int, dict[str, float], dict[str, Any]]:
    """Rows, case → its median of samples a second, and what was measured in each round.

    All read the same inputs, in turn, each in a process of its own.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # for both sides alike
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_inputs(folder, given.rows)
        once = partial(measure_training, train, layout)
        rounds = [
            {case: measure_apart(once, case, folder) for case in cases} for _ in range(given.rounds)
        ]
    speeds, losses = ({case: [turn[case][i] for turn in rounds] for case in cases} for i in (0, 1))
    middle = {case: statistics.median(values) for case, values in speeds.items()}
    return given.rows, middle, {"samples_per_second": speeds, "validation_loss": losses}
