"""Measured amounts (`homework/auto`) against version 6's hand-made ones, at equal ratio and steps.

    make bench NAME=auto
    .venv/bin/python -m tests.benchmarks.auto --name auto_scitldr model.source=… data=files …

Both recipes run on one store, so the model before the first prune is the same; each prune of `auto`
has to reach the ratio that version 6's plan gives for the same model. Further overrides go to both.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.common import compare, run_command, run_recipe, write

DEMO = ["model=tiny", "data=bills", "training=quick", "stages.evaluate.max_length=64"]
VERSIONS = range(1, 7)


def run(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(records by stage, the evaluation's metrics) of a run."""
    _, records = run_recipe(Path(), name, *overrides)
    return {record["name"]: record for record in records}, records[-1]["metrics"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="auto")
    parser.add_argument("overrides", nargs="*", help="default: the demo's model and data")
    given = parser.parse_args()
    overrides = given.overrides or DEMO
    shared = [item for item in overrides if not item.startswith("stages.sensitivity")]
    planned = run_command("plan", "homework/v6", "--json", *shared)
    plan = {node["name"]: node for node in json.loads(planned)}
    targets = [
        f"stages.prune_{v}.target.nonzero_ratio={plan[f'prune_{v}']['nonzero_ratio']:.9f}"
        for v in VERSIONS
    ]
    hand, by_hand = run("homework/v6", *shared)
    auto, measured = run("homework/auto", *overrides, *targets)
    steps = {
        side: sum(r["metrics"]["steps"] for r in records.values() if r["stage"] == "finetune")
        for side, records in (("v6", hand), ("auto", auto))
    }
    rows = {
        side: {
            "nonzero_ratio": records["prune_6"]["nonzero_ratio"],
            "steps": steps[side],
            "validation_loss": records["recover_6"]["metrics"]["validation_loss"],
            **{name: scores[name] for name in ("rouge1", "rouge2", "rougeLsum")},
            "interval": scores["intervals"]["rougeLsum"],
            "left": {
                path: group["left"] / group["weights"]
                for path, group in records["prune_6"]["metrics"]["groups"].items()
            },
        }
        for side, records, scores in (("v6", hand, by_hand), ("auto", auto, measured))
    }
    scores = [[metrics["rougeLsum"]] for metrics in (measured, by_hand)]
    write(
        given.name,
        **compare(*scores, "rougeLsum") | {"ratio": scores[0][0] / scores[1][0]},
        base_validation_loss=hand["finetune"]["metrics"]["validation_loss"],
        overrides=overrides,
        **rows,
    )


if __name__ == "__main__":
    main()
