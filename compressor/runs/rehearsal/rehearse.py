"""A rehearsal from start to end: what is prepared, run, looked at, and told."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from compressor.core.console import complain
from compressor.core.errors import RecipeError, StageError, Unreachable
from compressor.core.failures import describe_error
from compressor.core.files import MANIFEST, expand_home, write_traceback
from compressor.core.progress import Progress
from compressor.data import hub
from compressor.data.sources import Data
from compressor.engine.engine import Engine
from compressor.engine.plan import Node, Plan, plan
from compressor.engine.provenance import Difference
from compressor.engine.run_folder import Run
from compressor.engine.store.store import Store
from compressor.models.facts import Facts
from compressor.recipe.compose import validate_values
from compressor.runs.rehearsal.derivation import TRAINED, Derived, Substitutes, derive
from compressor.runs.rehearsal.rows import Taken, empty_rows, small_data, take
from compressor.stages.load import Load, TrainTokenizer


@dataclass
class Rehearsal:
    """One rehearsal of a planned recipe, in a folder of its own."""

    real: Plan
    console: Console
    folder: Path
    quiet: bool = False
    notes: list[str] = field(default_factory=list)
    """Differences from the real run, beside those of the stages' settings."""
    lines: list[Line] = field(default_factory=list)
    derived: Derived | None = None
    plan: Plan | None = None

    def run(self) -> None:
        """Raises StageError at the first thing that is wrong; `lines` then ends with it."""
        tokenizers = self._tokenizers()
        data = self._step("(rows)", lambda line: self._rows(tokenizers, line))
        self.derived = derive(self.real, Substitutes(data, tokenizers, self.folder / "outputs"))
        self.plan = self._planned(self.derived)
        store = Store.of(str(self.folder / "outputs"))
        run = Run.create(self.folder / "run", self.plan, store)
        progress = Progress(self.console, run.folder / "events.jsonl", quiet=True, watch=self._hear)
        for node in self.plan.nodes:
            self.lines.append(Line(node.name, node.kind))
        Engine(self.plan, store, run, progress).execute()

    def _step(self, name: str, work: Any) -> Any:
        """Something that is done before the stages, with a line of its own."""
        line, started = Line(name, ""), time.monotonic()
        self.lines.append(line)
        line.passed = False
        found = work(line)
        line.passed, line.seconds = True, time.monotonic() - started
        self._say(line)
        return found

    def _tokenizers(self) -> dict[str, str | None]:
        """A directory for each `load`, where its tokenizer is here or can be fetched."""
        loads = {n.name: n.stage for n in self.real.nodes if isinstance(n.stage, Load)}
        found = {name: self._tokenizer(name, load) for name, load in loads.items()}
        trained = {n for n, load in loads.items() if isinstance(load.tokenizer, TrainTokenizer)}
        unreached = [n for n, own in found.items() if own == TRAINED and n not in trained]
        if unreached:  # a teacher and its student have one vocabulary, and so have these
            found = {name: None if own is None else TRAINED for name, own in found.items()}
            what = "out of reach; one is trained on the rows"
            self.notes.append(f"tokenizer of {', '.join(unreached)}: {what}")
        return found

    def _tokenizer(self, name: str, load: Load) -> str | None:
        if isinstance(load.tokenizer, TrainTokenizer):
            return TRAINED
        source = load.tokenizer or load.source
        if source is None:
            return None
        directory = expand_home(source)
        if directory.is_dir():
            from compressor.models.loading import has_tokenizer

            return str(directory.absolute()) if has_tokenizer(directory) else None
        revision = load.revision if load.tokenizer is None else "main"
        try:
            commit = hub.commit(source, revision, "model")
            from compressor.models.loading import load_tokenizer

            own = self.folder / "tokenizers" / name
            load_tokenizer(source, revision=commit).save_pretrained(own)
        except (Unreachable, OSError):  # of a commit that is cached, but not these files of it
            return TRAINED
        return str(own)

    def _rows(self, tokenizers: Mapping[str, str | None], line: Line) -> dict[str, Any]:
        """The rehearsal's `data`, of rows from which something can be learned."""
        data = self.real.composed.recipe.data
        splits = {split for node in self.real.nodes for split in node.stage.reads()}
        if TRAINED in tokenizers.values():
            splits.add("train")
        if not splits:
            return data.model_dump(mode="json")
        taken = take(data, splits)
        folder = self.folder / "rows"
        folder.mkdir()
        values = small_data(data, taken, folder)
        own_cache(self.folder / "datasets")
        counts = ", ".join(f"{len(rows)} of {split}" for split, rows in taken.rows.items())
        what = "generated rows in the place of the recipe's" if taken.generated else "rows"
        self.notes.append(f"{counts} {what}" + (f": {taken.generated}" if taken.generated else ""))
        self._look_for_empty(taken, tokenizers, line)
        return values

    def _look_for_empty(
        self, taken: Taken, tokenizers: Mapping[str, str | None], line: Line
    ) -> None:
        data = self.real.composed.recipe.data
        if not taken.looked_at:
            line.checks.append("generated: the recipe's own were not looked at")
            return
        for name, own in tokenizers.items():
            try:
                tokenizer = self._reader(own, taken)
            except (OSError, ValueError, StageError) as error:
                raise StageError(f"the tokenizer of {name!r} cannot be read: {error}") from error
            if tokenizer is None:
                continue
            for empty in empty_rows(data, taken.looked_at, tokenizer):
                if empty.hopeless:
                    raise StageError(f"data: {empty} (read with the tokenizer of {name!r})")
                line.checks.append(f"{empty}")
        looked = ", ".join(f"{len(rows)} of {split}" for split, rows in taken.looked_at.items())
        what = "texts and targets" if data.task == "summarization" else "texts"
        line.checks.insert(0, f"looked for empty {what}: {looked}")

    def _reader(self, own: str | None, taken: Taken) -> Any:
        if own is None:
            return None
        if own != TRAINED:
            from compressor.models.loading import load_tokenizer

            return load_tokenizer(own)
        from compressor.data.tokenizers import train_tokenizer

        rows = taken.rows["train"]
        return train_tokenizer([*rows.texts, *rows.summaries], vocab_size=300)

    def _planned(self, derived: Derived) -> Plan:
        composed = validate_values(derived.values, self.real.composed.recipe.name, (), ())
        try:
            planned = plan(composed, Store.of(composed.recipe.outputs))
            planned.require_reachable()
        except RecipeError as error:
            reason = "; ".join(str(problem) for problem in error.problems)
            message = f"this recipe cannot be rehearsed; of its small model: {reason}"
            raise StageError(message) from error
        return planned

    def _line(self, name: str) -> Line:
        return next(line for line in self.lines if line.name == name)

    def _hear(self, kind: str, values: Mapping[str, Any]) -> None:
        if kind == "stage_ended":
            line = self._line(values["name"])
            line.passed, line.seconds = True, values["seconds"]
            self._look_at(line)
            self._say(line)
        elif kind == "stage_failed":
            self._line(values["name"]).passed = False

    def _look_at(self, line: Line) -> None:
        """Look at what a stage left, before the next one runs."""
        assert self.plan is not None
        node, recipe = self.plan.node(line.name), self.plan.composed.recipe
        assert node.key is not None
        try:
            line.checks += look_at(node, Store.of(recipe.outputs).path(node.key), recipe.data)
        except StageError as error:
            line.passed = False
            raise StageError(f"stage {node.name!r}: {error}") from error

    def _say(self, line: Line) -> None:
        if not self.quiet:
            text = f"{line.name:<22} {line.seconds:>7.1f} s"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def own_cache(folder: Path) -> None:
    """Have `datasets` keep what it makes of the rehearsal's files in a folder that goes with it."""
    os.environ["HF_DATASETS_CACHE"] = str(folder)  # of processes that are started from here on
    if "datasets" in sys.modules:
        import datasets

        datasets.config.HF_DATASETS_CACHE = folder


def rehearse(real: Plan, console: Console, *, quiet: bool = False) -> bool:
    """Rehearse a planned recipe, and print what was checked. Whether all of it was right.

    Everything is written to a temporary folder, which stays where something failed.
    """
    for problem in (*real.warnings, *real.unreached):
        complain("warning", problem)
    folder, started = Path(mkdtemp(prefix="compressor-rehearsal-")), time.monotonic()
    rehearsal, failure = Rehearsal(real, console, folder, quiet), ""
    try:
        rehearsal.run()
    except (StageError, Unreachable) as error:
        failure = str(error)
    except Exception as error:  # noqa: BLE001  # what a library raises in a check; the cause is kept
        log = folder / "error.txt"
        write_traceback(log, error)
        failure = f"{describe_error(error)} (see {log})"
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    seconds = time.monotonic() - started
    print_result(rehearsal, console, seconds, failed=bool(failure))
    if failure:
        complain("error", f"{failure}\nwhat the rehearsal left: {folder}")
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True


_LOSSES = ("loss", "train_loss", "validation_loss", "validation_losses", "baseline_loss")

_TOKENS = 8


def look_at(node: Node, folder: Path, data: Data) -> Iterator[str]:
    """What was checked of a stage's artifact, in words. Raises StageError where it is wrong."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    metrics = manifest["metrics"]
    yield from _losses(metrics)
    yield from _masks(node, folder)
    yield from _reports(node, metrics)
    if node.kind == "quantize":
        yield _quantized(folder, data)
    if "parity" in metrics:
        yield _export(metrics)


def _losses(metrics: Mapping[str, Any]) -> Iterator[str]:
    found = {name: metrics[name] for name in _LOSSES if metrics.get(name) is not None}
    for name, values in found.items():
        for value in values if isinstance(values, list) else [values]:
            if not math.isfinite(value):
                raise StageError(f"{name} is {value}")
    if "steps" in metrics and metrics.get("train_loss") is not None:
        yield f"{metrics['steps']} steps, losses finite"
    elif found:
        yield "loss finite"


def _masks(node: Node, folder: Path) -> Iterator[str]:
    """Where a plan knows how many entries are pruned, so many are, and they are zero."""
    path = folder / "masks.safetensors"
    if not node.stage.changes_model or not path.is_file() or node.facts is None:
        return
    from safetensors.torch import load_file

    from compressor.models.checkpoint import Checkpoint

    masks, checkpoint = load_file(path), Checkpoint.load(folder)
    gone = sum(int((~mask).count_nonzero()) for mask in masks.values())
    alive = sum(
        int(checkpoint.parameter(name)[~mask].count_nonzero()) for name, mask in masks.items()
    )
    if alive:
        raise StageError(f"{alive} pruned entries are not zero")
    planned = sum(count for _, count in node.facts.masked)
    if node.facts.exact and gone != planned:
        raise StageError(f"{gone} entries are pruned, and the plan says {planned}")
    yield f"{gone:,} entries are zero" + (", as planned" if node.facts.exact else "")


def _reports(node: Node, metrics: Mapping[str, Any]) -> Iterator[str]:
    if node.kind == "evaluate" and "lengths" in metrics:
        yield f"decoded and scored at max_length {', '.join(metrics['lengths'])}"
    elif node.kind == "evaluate":
        yield "labels given and scored"
    elif node.kind == "benchmark":
        cases = {name: len(each["cases"]) for name, each in metrics["models"].items()}
        yield f"timed {', '.join(cases)}; {max(cases.values())} cases each"
    elif node.kind == "sensitivity":
        yield f"{len(metrics['groups'])} groups measured"


def _quantized(folder: Path, data: Data) -> str:
    """Load what was saved, and have it write, or give labels."""
    import torch

    from compressor.data.examples import source_ids
    from compressor.models.checkpoint import Checkpoint

    checkpoint = Checkpoint.load(folder)
    if checkpoint.tokenizer is None:
        return "saved and loaded again; it has no tokenizer, and read nothing"
    sources = source_ids(["The quick brown fox."], checkpoint.tokenizer, data)
    if checkpoint.head == "seq2seq_lm":
        from compressor.backends.torch.generation import decode

        written = decode(checkpoint.model, sources, max_length=_TOKENS, device="cpu").tokens[0]
        if not written:
            raise StageError("what was saved, once loaded again, writes no token")
        return f"saved, loaded again, wrote {len(written)} tokens"
    with torch.inference_mode():
        output = next(iter(checkpoint.model(input_ids=torch.tensor(sources)).values()))
    if not bool(output.isfinite().all()):
        raise StageError("what was saved, once loaded again, gives numbers that are not finite")
    return "saved, loaded again, read a text"


def _export(metrics: Mapping[str, Any]) -> str:
    parity = metrics["parity"]
    found = []
    if "equal_tokens" in parity:
        found.append(f"{parity['equal_tokens']:.0%} of tokens equal")
    if "equal_labels" in parity:
        found.append(f"{parity['equal_labels']:.0%} of labels equal")
    if "logits_difference" in parity:
        found.append(f"logits differ by {parity['logits_difference']:.1g}")
    rows = f"{parity['rows']} rows"
    return f"export {metrics['format']}: loaded in a fresh process, {rows}: {', '.join(found)}"


@dataclass
class Line:
    """A stage of the table."""

    name: str
    kind: str
    passed: bool | None = None
    """None: it was not reached."""
    seconds: float = 0.0
    checks: list[str] = field(default_factory=list)


MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("–", "dim")}


def print_result(rehearsal: Rehearsal, console: Console, seconds: float, *, failed: bool) -> None:
    """The table, what differs from the real run, and what was not reached."""
    table = Table("stage", "", "seconds", "checked", header_style="bold")
    table.columns[2].justify = "right"
    for line in rehearsal.lines:
        took = "" if line.passed is None else f"{line.seconds:.1f}"
        checks = "not reached" if line.passed is None else "\n".join(line.checks)
        table.add_row(Text(line.name), MARKS[line.passed], took, Text(checks))
    console.print(table)
    console.print(Text("The rehearsal differs from the run in:", "bold"))
    for text in _differences(rehearsal):
        console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)
    word = "failed" if failed else "passed"
    console.print(f"rehearsal {word}, {seconds:.0f} s", highlight=False, markup=False)


def _differences(rehearsal: Rehearsal) -> Iterator[str]:
    yield from rehearsal.notes
    derived = rehearsal.derived
    if derived is None:
        return
    for node in () if rehearsal.plan is None else rehearsal.plan.nodes:
        real = rehearsal.real.node(node.name).facts
        if isinstance(node.stage, Load) and real is not None and node.facts is not None:
            yield f"{node.name}: fresh, of {_size(node.facts)}; the recipe's has {_size(real)}"
    launch = rehearsal.real.composed.recipe.launch
    if launch.num_processes > 1 or launch.config_file is not None:
        yield "launch: one process"
    yield from _changes(derived.changes)


def _changes(changes: Iterable[Difference]) -> Iterator[str]:
    """A line for each change, with the names of all stages that have the same."""
    stages: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        what = f"{_short(change.before)} → {_short(change.after)}"
        group, _, rest = change.path.partition(".")
        name, _, key = rest.partition(".") if group == "stages" else ("", "", change.path)
        stages.setdefault((key, what), []).append(name)
    for (key, what), names in stages.items():
        whose = f" ({', '.join(names)})" if any(names) else ""
        yield f"{key}: {what}{whose}"


def _size(facts: Facts) -> str:
    layers = " + ".join(str(stack.layers) for stack in facts.stacks().values())
    return f"{layers} layers, {facts.parameters / 1e6:.2f} M parameters ({facts.model_type})"


def _short(value: Any) -> str:
    text = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
