"""What much of everything costs: artifacts, runs at once, points, rows, and bytes of data.

    make bench NAME=load
    LOAD=store,data make bench NAME=load       # parts of it: store, runs, sweep, evaluate, data

About half an hour on 2 cores, and 11 GB of disk below `outputs/` while it runs. Seconds are of the
command as a user gives it, CPU seconds with its children; memory is the most that was resident, all
processes of the command together, and how much of that is not a mapped file.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from compressor.core import machine
from compressor.core.files import MANIFEST, write_json
from compressor.engine.store.store import SELF, Store, manifest_digest
from tests.benchmarks.common import count_cpu_seconds, write

ARTIFACTS = 10_000
RUNS = 16
POINTS = 300
ROWS = (1_000, 10_000, 100_000)
GIGABYTES = 5.0
POLL_SECONDS = 0.1
_MODEL = """
defaults: [/base, /model: tiny, /data: %s, _self_]
pipeline: [load, %s, evaluate]
model:
  config:
    {vocab_size: 400, d_model: 16, d_kv: 8, d_ff: 32, num_heads: 2, num_layers: 1,
     num_decoder_layers: 1}
  tokenizer: {vocab_size: 400}
"""
RECIPE = (
    _MODEL % ("bills", "prune")
    + """
data: {rows: {train: 16, validation: 4, test: 4}, max_source_length: 128, max_target_length: 16}
stages: {load: {}, prune: {amounts: {lm_head: 0.3}}, evaluate: {max_length: [4]}}
"""
)
OF_FILES = _MODEL % ("files", "finetune") + """
data:
  files: {train: rows.jsonl, validation: rows.jsonl}
  rows: {train: 64, validation: 16, test: 16}
  max_source_length: 64
  max_target_length: 16
training: {batch_size: 8, warmup_steps: 2}
stages: {load: {}, finetune: {epochs: 1}, evaluate: {max_length: [4]}}
"""  # fmt: skip


def fill(store: Store, count: int) -> None:
    """Copies of a store's artifacts under `count` other keys; their files are links."""
    real = [path for path in store.folder.iterdir() if (path / MANIFEST).is_file()]
    manifests = {path: store.manifest(path.name) for path in real}
    for number in range(count):
        source = real[number % len(real)]
        key = hashlib.sha256(f"copy {number}".encode()).hexdigest()
        for path in (file for file in source.rglob("*") if file.is_file()):
            place = store.path(key) / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.name != MANIFEST:
                os.link(path, place)
        about = manifests[source] | {"key": key}
        write_json(store.path(key) / MANIFEST, about | {SELF: manifest_digest(about)})


def measured(*arguments: str, cwd: Path, code: str | None = None) -> dict[str, float]:
    """One command, or Python code, to its end: wall and CPU seconds, and the most memory."""
    command = ["-m", "compressor", *arguments] if code is None else ["-c", code, *arguments]
    before, started = count_cpu_seconds(), time.monotonic()
    with (cwd / "log.txt").open("wb") as log:
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, stdout=log, stderr=log)
    most = anonymous = 0
    while process.poll() is None:
        with suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            held = [one.memory_info() for one in (parent, *parent.children(recursive=True))]
            most = max(most, sum(one.rss for one in held))
            anonymous = max(anonymous, sum(one.rss - one.shared for one in held))
        time.sleep(POLL_SECONDS)
    if process.returncode != 0:
        raise RuntimeError((cwd / "log.txt").read_text()[-2000:])
    return {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(count_cpu_seconds() - before, 2),
        "resident_mb": round(most / 1e6),
        "anonymous_mb": round(anonymous / 1e6),
    }


def of_store(folder: Path) -> dict[str, Any]:
    """Commands on an empty store and on a full one."""
    measured("run", "mine.yaml", "-q", cwd=folder)
    times_of: dict[str, Any] = {}
    commands: dict[str, Sequence[str]] = {
        "plan": ("plan", "mine.yaml"),
        "run, all cached": ("run", "mine.yaml", "-q"),
        "show": ("show", "mine"),
        "doctor --quick": ("doctor", "--quick"),
        "doctor": ("doctor",),
        "gc --dry-run": ("gc", "--dry-run"),
    }
    for count in (0, ARTIFACTS):
        fill(Store(folder / "outputs" / "store"), count)
        # The first reads each new manifest; what comes after does not.
        first = {"plan, the first": measured("plan", "mine.yaml", cwd=folder)}
        times = {name: measured(*given, cwd=folder) for name, given in commands.items()}
        times_of[f"{count} artifacts"] = first | times
    times_of[f"{ARTIFACTS} artifacts"]["gc"] = measured("gc", cwd=folder)
    return times_of


def of_runs(folder: Path) -> dict[str, Any]:
    """Runs at once, four of each recipe, on one store."""
    started = time.monotonic()
    every = [f"stages.prune.amounts.lm_head=0.{1 + place // 4}" for place in range(RUNS)]
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "compressor", "run", "mine.yaml", "-q", override],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )
        for override in every
    ]
    codes = [run.wait() for run in runs]
    return {"failed": sum(code != 0 for code in codes), "seconds": time.monotonic() - started}


def of_sweep(folder: Path) -> dict[str, Any]:
    """Seconds a point, of the first fifty and the last; the size of the page."""
    values = ",".join(f"{number / 1000:.3f}" for number in range(1, POINTS + 1))
    swept = f"stages.prune.amounts.lm_head={values}"
    whole = measured("run", "mine.yaml", "-m", "-q", swept, cwd=folder)
    (sweep,) = (folder / "outputs" / "sweeps" / "mine").iterdir()
    ended = sorted(sweep.glob("*/point.json"), key=lambda path: path.stat().st_mtime)
    seconds = [json.loads(path.read_text())["seconds"] for path in ended]
    return whole | {
        "first_50_seconds_each": round(statistics.mean(seconds[:50]), 3),
        "last_50_seconds_each": round(statistics.mean(seconds[-50:]), 3),
        "page_bytes": (sweep / "sweep.html").stat().st_size,
    }


def of_evaluate(folder: Path) -> dict[str, Any]:
    """A run that evaluates on more and more rows, and the size of its report."""
    results = {}
    for rows in ROWS:
        run = measured("run", "mine.yaml", "-q", f"data.rows.test={rows}", cwd=folder)
        (newest,) = sorted((folder / "outputs" / "runs" / "mine").iterdir())[-1:]
        size = (newest / "report.html").stat().st_size
        results[f"{rows} rows"] = run | {"report_bytes": size}
    return results


READ = """
import sys
from pydantic import TypeAdapter
from compressor.data.sources import Data
given = {"source": "files", "files": {"train": "rows.jsonl"}}
rows = TypeAdapter(Data).validate_python(given).load("train")
print(len(rows), sum(len(text) for text in rows.texts))
"""
TOKENIZE = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from transformers import AutoTokenizer
from compressor.data.batching import global_batches
from compressor.data.examples import tokenize_rows
from compressor.data.sources import Data
given = {"source": "files", "files": {"train": "rows.jsonl"}, "rows": {"train": 300000}}
data = TypeAdapter(Data).validate_python(given)
folder = next(path.parent for path in Path("outputs/store").glob("*/tokenizer.json"))
examples = tokenize_rows(data.load("train"), AutoTokenizer.from_pretrained(folder), data)
lengths = examples.lengths(), [len(target) for target in examples.targets]
batches = global_batches(*lengths, batch_size=8, seed=0, epoch=0)
for batch in batches[:200]:
    examples.batch(batch, 0)
"""


def of_data(folder: Path) -> dict[str, Any]:
    """JSON lines: a plan, a run on a few rows, all of them read, some tokenized."""
    (folder / "mine.yaml").write_text(OF_FILES)
    size, number = 0, 0
    body = " ".join(f"section {n} of the act as it stands" for n in range(60))
    with (folder / "rows.jsonl").open("w") as stream:
        while size < GIGABYTES * 1e9:
            lines = "".join(
                json.dumps({"text": f"bill {n} {body}", "summary": f"about bill {n}"}) + "\n"
                for n in range(number, number + 2000)
            )
            size, number = size + stream.write(lines), number + 2000
    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    return {
        "bytes": size,
        "rows": number,
        "plan": measured("plan", "mine.yaml", cwd=folder),
        "run of 64 rows": measured("run", "mine.yaml", "-q", cwd=folder),
        "all rows read": measured(cwd=folder, code=READ),
        "300000 rows tokenized, 200 batches": measured(cwd=folder, code=TOKENIZE),
    }


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "store": of_store,
    "runs": of_runs,
    "sweep": of_sweep,
    "evaluate": of_evaluate,
    "data": of_data,
}


def main() -> None:
    """Measure the parts that `LOAD` names, or all, and write `outputs/bench/load.json`."""
    result: dict[str, Any] = {"machine": machine.describe_machine()}
    outputs = Path("outputs").absolute()
    outputs.mkdir(exist_ok=True)
    for name in os.environ.get("LOAD", ",".join(PARTS)).split(","):
        with tempfile.TemporaryDirectory(dir=outputs) as folder:
            Path(folder, "mine.yaml").write_text(RECIPE)
            result[name] = PARTS[name](Path(folder))
        print(name, json.dumps(result[name]), flush=True)
    write("load", **result)


if __name__ == "__main__":
    main()
