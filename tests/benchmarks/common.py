"""What benchmarks share: results, recipes, trainings, and measurements in their own processes."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.core.console import Console
from compressor.core.progress import Progress

SHARED = Path(__file__).parents[3] / "shared"
WARM_UP = 3
"""Steps that are not timed: memory still grows in them."""


def write(name: str, result: Mapping[str, Any]) -> None:
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


def run_recipe(folder: Path, name: str, *arguments: str) -> tuple[Path, list[dict[str, Any]]]:
    """Run a recipe in a folder; the run's folder and its records."""
    command = [sys.executable, "-m", "compressor", "run", name, *arguments]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("run: "))
    run = folder / line.removeprefix("run: ")
    return run, json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def measure_apart(module: str, *arguments: object) -> dict[str, float]:
    """One measurement: what `module --once …` gives to `tell`."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", "--once", *map(str, arguments)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    result: dict[str, float] = json.loads(done.stdout.split("RESULT ")[1])
    print(*arguments, result, flush=True)
    return result


def tell(result: Mapping[str, float]) -> None:
    print("RESULT " + json.dumps(result))


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


def train_ours(model: Any, train: Any, pad_id: int, **settings: Any) -> Laps:
    """Train with the package's own loop."""
    from compressor.training.hyperparameters import Hyperparameters
    from compressor.training.loop import Training
    from compressor.training.losses import LabelLoss

    laps = Laps(settings["batch_size"])
    with tempfile.TemporaryDirectory() as resume:
        Training(
            loss=LabelLoss(model), model=model, train=train, validation=None,
            settings=Hyperparameters(checkpoint_seconds=1e9, **settings), masks={}, pad_id=pad_id,
            seed=0, resume=Path(resume), progress=laps,
        ).run()  # fmt: skip
    return laps


def time_trainings(
    module: str,
    cases: Sequence[str],
    make_inputs: Callable[[Path, int], None],
    once: Callable[[str, Path], dict[str, float]],
    *,
    rows: int,
) -> tuple[int, dict[str, list[float]], dict[str, list[float]]]:
    """Rows, and case → samples a second, and losses, of each round; all read the same inputs.

    `once` is one measurement, in a process of its own: that ends here.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--once", nargs=2)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    if given.once:
        tell(once(given.once[0], Path(given.once[1])))
        sys.exit()
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # for both sides alike
    speeds: dict[str, list[float]] = {case: [] for case in cases}
    losses: dict[str, list[float]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder:
        make_inputs(Path(folder), given.rows)
        for _ in range(given.rounds):
            for case in cases:
                result = measure_apart(module, case, folder)
                speeds[case].append(result["samples_per_second"])
                losses[case].append(result["loss"])
    return given.rows, speeds, losses
