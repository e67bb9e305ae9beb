"""A sweep on the store against the same runs without it, and against what its stages cost alone.

    make bench NAME=sweep

Six prune ratios of the demo. In turn: half of the runs with a store each, the sweep, the other
half. The ideal is what those runs measured: the shared stages once, their mean, and six tails.
`--alone 3` runs three of the six, and takes their mean tail for each. Not asked: quality, and how
long planning or imports take by themselves.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.common import run_command, time_call, write

KEY = "stages.prune.amounts.lm_head"
VALUES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def stages(folder: Path) -> dict[str, float]:
    """Key → seconds of each stage that a run, or any point of a sweep, made.

    A report on several models at once has a record for each, and its time in the first.
    """
    seconds: dict[str, float] = {}
    for path in folder.rglob("metrics.json"):
        for record in json.loads(path.read_text(encoding="utf-8")):
            if not record["cached"]:
                key = record["key"]
                seconds[key] = seconds.get(key, 0.0) + record["made_in_seconds"]
    return seconds


def main() -> None:
    """Run both, compare, write `outputs/bench/sweep.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alone", type=int, default=len(VALUES), help="runs without the store")
    asked = VALUES[: parser.parse_args().alone]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        alone: list[dict[str, Any]] = []

        def timed(*arguments: str) -> float:
            return time_call(lambda: run_command("run", "demo", *arguments, cwd=folder))[0]

        def run_alone(value: float) -> None:
            seconds = timed(f"{KEY}={value}", f"outputs=alone-{value}")
            alone.append({"seconds": seconds, "stages": stages(folder / f"alone-{value}" / "runs")})

        sweep = ("-m", f"{KEY}={','.join(map(str, VALUES))}", "outputs=swept")
        half = (len(asked) + 1) // 2
        for value in asked[:half]:
            run_alone(value)
        swept = timed(*sweep)
        made = stages(folder / "swept" / "sweeps")
        again = timed(*sweep)
        for value in asked[half:]:
            run_alone(value)

    everywhere = set.intersection(*(set(run["stages"]) for run in alone))
    shared = statistics.mean(sum(run["stages"][k] for k in everywhere) for run in alone)
    tails = [sum(s for k, s in run["stages"].items() if k not in everywhere) for run in alone]
    ideal = shared + len(VALUES) * statistics.mean(tails)
    without = len(VALUES) * statistics.mean(run["seconds"] for run in alone)
    write(
        "sweep",
        points=len(VALUES),
        runs_without_the_store=len(alone),
        seconds=round(swept, 1),
        seconds_of_the_same_command_again=round(again, 2),
        seconds_without_the_store=round(without, 1),
        shared_stages_seconds=round(shared, 1),
        tails_seconds=[round(tail, 1) for tail in tails],
        over_shared_once_and_tails=round(swept / ideal, 3),
        over_its_own_stages=round(swept / sum(made.values()), 3),
        times_faster_than_without=round(without / swept, 2),
        distinct_stages=len(made),
        stages_of_a_run_without_the_store=max(len(run["stages"]) for run in alone),
    )


if __name__ == "__main__":
    main()
