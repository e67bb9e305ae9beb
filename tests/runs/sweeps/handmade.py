"""Sweeps made by hand: points that are done, failed, under way and waiting."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime

from compressor.runs.sweeps.state import Direction, PointStatus, Sweep

HEAD, FEED = "stages.prune.amounts.lm_head", "stages.prune.amounts.feed_forward"
AIMS: list[tuple[str, Direction]] = [("rougeLsum", "maximize"), ("bytes", "minimize")]


def done_point(number: int, head: float, feed: float, quality: float, size: float) -> PointStatus:
    metrics = {
        "parameters": 76961152,
        "nonzero_ratio": size / 307.87e6,
        "bytes": size,
        "rouge1": quality + 0.06,
        "rougeLsum": quality,
        "gen_len": 36.5,
        "retention": quality / 0.43,
        "latency_p50_ms": size / 5e6,
        "latency_p95_ms": size / 4e6,
        "texts_per_second": 3e10 / size,
    }
    differs = {HEAD: str(head), FEED: str(feed)}
    return PointStatus(str(number), differs, "done", None, None, 4, 9, 75.5, metrics)


def make_sweep() -> Sweep:
    """12 points over two keys: 9 done, 1 failed, 1 running, 1 waiting."""
    random_ = random.Random(3)
    points = []
    for number in range(12):
        head, feed = (0.1, 0.3, 0.5, 0.7)[number % 4], (0.1, 0.3, 0.5)[number // 4]
        size = round(307.87e6 * (1 - 0.4 * head - 0.25 * feed))
        quality = 0.42 - 0.16 * head**2 - 0.12 * feed**2 + random_.gauss(0, 0.02)
        points.append(done_point(number, head, feed, quality, size))
    error = "stage recover: the loss is NaN at step 312. " + "A long explanation follows. " * 40
    points[7] = replace(points[7], state="failed", error=error, metrics={})
    points[10] = replace(points[10], state="running", stage="recover", metrics={})
    points[11] = PointStatus("11", points[11].differs)
    return Sweep(
        recipe="homework/v3",
        points=points,
        objectives=AIMS,
        description="T5 pruned to several ratios, then repaired.",
        command=f"compressor run homework/v3 -m {HEAD}=0.1,0.3,0.5,0.7 {FEED}=0.1,0.3,0.5",
        started=datetime(2026, 3, 1, 12, tzinfo=UTC),
        counts=(41, 66),
    )


def make_search(count: int) -> Sweep:
    """Random trials, as a search makes them: one in 17 was stopped early."""
    random_ = random.Random(5)
    points = []
    for number in range(count):
        head, feed = round(random_.uniform(0.05, 0.9), 4), round(random_.uniform(0.05, 0.9), 4)
        size = round(307.87e6 * (1 - 0.4 * head - 0.25 * feed))
        quality = 0.42 - 0.16 * head**2 - 0.12 * feed**2 + random_.gauss(0, 0.02)
        point = done_point(number, head, feed, quality, size)
        points.append(replace(point, state="pruned") if number % 17 == 3 else point)
    return Sweep("homework/v3", points, AIMS)
