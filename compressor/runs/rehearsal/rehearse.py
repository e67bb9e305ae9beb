"""Rehearse a recipe: run its whole chain on tiny models, check each stage, and keep nothing.

`derivation` says what the small recipe is, `rows` where its rows come from.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.table import Table
from rich.text import Text

from compressor.core.console import Console
from compressor.core.differences import Difference
from compressor.core.errors import RecipeError, StageError, Unreachable
from compressor.core.failures import describe_error
from compressor.core.files import MANIFEST, expand_home, write_traceback
from compressor.core.printing import print_error, print_warning
from compressor.core.progress import Progress
from compressor.data import hub
from compressor.data.rows import Rows
from compressor.data.source_base import Split
from compressor.engine.engine import Engine
from compressor.engine.plan import Node, Plan, plan
from compressor.engine.run_folder import Run
from compressor.engine.store.store import Store
from compressor.models.facts import Facts
from compressor.models.tokenizer_source import TrainTokenizer
from compressor.recipe.compose import validate_values
from compressor.runs.rehearsal.derivation import TRAINED, SmallRecipe, derive
from compressor.runs.rehearsal.rows import MOST, find_empty_rows, sample_rows, write_rows
from compressor.stages.load import Load

_MARKS = {True: Text("✓", "green"), False: Text("✗", "bold red"), None: Text("–", "dim")}


def rehearse(real: Plan, console: Console, *, quiet: bool = False) -> bool:
    """Rehearse a planned recipe, print what was checked, and return whether all of it was right.

    Writes to a temporary folder alone, which stays where something failed.
    """
    for problem in (*real.warnings, *real.unreached):
        print_warning(problem)
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
    rehearsal.print_result()
    console.say(
        f"rehearsal {'failed' if failure else 'passed'}, {time.monotonic() - started:.0f} s"
    )
    if failure:
        print_error(f"{failure}\nwhat the rehearsal left: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return not failure


@dataclass
class Line:
    """A stage of the table."""

    name: str
    passed: bool | None = None
    """None: it was not reached."""
    seconds: float = 0.0
    checks: list[str] = field(default_factory=list)


@dataclass
class Rehearsal:
    """One rehearsal of a planned recipe, in a folder of its own."""

    real: Plan
    console: Console
    folder: Path
    quiet: bool = False
    notes: list[str] = field(default_factory=list)
    """Differences from the real run, beside those of the stages' settings."""
    lines: dict[str, Line] = field(default_factory=dict)
    recipe: SmallRecipe | None = None
    plan: Plan | None = None

    def run(self) -> None:
        """Run all of it. Raises StageError at the first thing that is wrong."""
        tokenizers = self._find_tokenizers()
        started = time.monotonic()
        line = self.lines["(rows)"] = Line("(rows)", passed=False)
        data = self._prepare_data(tokenizers, line)
        self._pass(line, time.monotonic() - started)
        self.recipe = derive(self.real, data, tokenizers, self.folder / "outputs")
        self.plan = _plan_small(self.recipe, self.real)
        self.lines |= {node.name: Line(node.name) for node in self.plan.nodes}
        store = Store.of(str(self.folder / "outputs"))
        run = Run.create(self.folder / "run", self.plan, store)
        events = run.folder / "events.jsonl"
        progress = Progress(self.console, events, quiet=True, watch=self._hear)
        Engine(self.plan, store, run, progress).execute()

    def _find_tokenizers(self) -> dict[str, str | None]:
        """Find a directory for the tokenizer of each `load`, if it is here or can be fetched."""
        loads = {n.name: n.stage for n in self.real.nodes if isinstance(n.stage, Load)}
        tokenizers = {name: self._find_tokenizer(name, load) for name, load in loads.items()}
        if TRAINED in tokenizers.values():  # a teacher and its student have one vocabulary
            tokenizers = {name: path and TRAINED for name, path in tokenizers.items()}
            self.notes.append("tokenizers: trained on these rows")
        return tokenizers

    def _find_tokenizer(self, name: str, load: Load) -> str | None:
        from compressor.models.loading import has_tokenizer, load_tokenizer

        if isinstance(load.tokenizer, TrainTokenizer):
            return TRAINED
        source = load.tokenizer or load.source
        if source is None:
            return None
        directory = expand_home(source)
        if directory.is_dir():
            return str(directory.absolute()) if has_tokenizer(directory) else None
        folder = self.folder / "tokenizers" / name
        try:
            revision = load.revision if load.tokenizer is None else "main"
            commit = hub.resolve_commit(source, revision, "model")
            load_tokenizer(source, revision=commit).save_pretrained(folder)
        except (Unreachable, OSError):  # of a commit that is cached, but not these files of it
            return TRAINED
        return str(folder)

    def _prepare_data(self, tokenizers: Mapping[str, str | None], line: Line) -> dict[str, Any]:
        """Make the small recipe's `data`, of rows from which something can be learned."""
        data = self.real.composed.recipe.data
        splits = {split for node in self.real.nodes for split in node.stage.reads()}
        splits |= {"train"} if TRAINED in tokenizers.values() else set()
        if not splits:
            return data.model_dump(mode="json")
        sample = sample_rows(data, splits)
        kind = f"generated rows instead of the recipe's: {sample.reason}"
        self.notes.append(f"{_count(sample.rows)} {kind if sample.reason else 'rows'}")
        if sample.inspected:
            line.checks.append(f"searched for empty rows: {_count(sample.inspected)}")
            line.checks += self._find_empty_rows(sample.inspected, tokenizers)
        return write_rows(data, sample.rows, self.folder)

    def _find_empty_rows(
        self, rows: Mapping[Split, Rows], tokenizers: Mapping[str, str | None]
    ) -> Iterator[str]:
        """Describe the columns that have empty rows. Raises StageError where most are."""
        from compressor.models.loading import load_tokenizer

        for name, path in tokenizers.items():
            try:
                tokenizer = load_tokenizer(path) if path else None
            except (OSError, ValueError, StageError) as error:
                raise StageError(f"the tokenizer of {name!r} cannot be read: {error}") from error
            for message, share in find_empty_rows(self.real.composed.recipe.data, rows, tokenizer):
                if share > MOST:
                    raise StageError(f"data: {message} (read with the tokenizer of {name!r})")
                yield message

    def _hear(self, kind: str, values: Mapping[str, Any]) -> None:
        """Check what a stage left, before the next one runs."""
        if kind not in ("stage_ended", "stage_failed"):
            return
        assert self.plan is not None
        line, node = self.lines[values["name"]], self.plan.node(values["name"])
        line.passed = False
        if kind == "stage_ended":
            try:
                line.checks += check_artifact(node, self.folder / f"outputs/store/{node.key}")
            except StageError as error:
                raise StageError(f"stage {node.name!r}: {error}") from error
            self._pass(line, values["seconds"])

    def _pass(self, line: Line, seconds: float) -> None:
        line.passed, line.seconds = True, seconds
        if not self.quiet:
            self.console.say(f"{line.name:<22} {line.seconds:>7.1f} s")

    def print_result(self) -> None:
        """Print a table of the stages, and how the rehearsal differs from the run."""
        table = Table("stage", "", "seconds", "checked", header_style="bold")
        table.columns[2].justify = "right"
        for line in self.lines.values():
            checks = "not reached" if line.passed is None else "\n".join(line.checks)
            seconds = f"{line.seconds:.1f}" if line.passed else ""
            table.add_row(Text(line.name), _MARKS[line.passed], seconds, Text(checks))
        self.console.print(table)
        self.console.print(Text("The rehearsal differs from the run in:", "bold"))
        for text in self._describe_differences():
            self.console.say(f"  {text}")

    def _describe_differences(self) -> Iterator[str]:
        yield from self.notes
        for node in self.plan.nodes if self.plan else ():
            real = self.real.node(node.name).facts
            if isinstance(node.stage, Load) and real is not None and node.facts is not None:
                yield f"{node.name}: fresh, of {_size(node.facts)}; the recipe's has {_size(real)}"
        launch = self.real.composed.recipe.launch
        if launch.num_processes > 1 or launch.config_file is not None:
            yield "launch: one process"
        yield from _describe_changes(self.recipe.changes if self.recipe else ())


def _plan_small(recipe: SmallRecipe, real: Plan) -> Plan:
    composed = validate_values(recipe.values, real.composed.recipe.name, (), ())
    try:
        small = plan(composed, Store.of(composed.recipe.outputs))
        small.require_reachable()
    except RecipeError as error:
        reason = "; ".join(map(str, error.problems))
        raise StageError(f"this recipe cannot be rehearsed as a small model: {reason}") from error
    return small


def _count(rows: Mapping[Split, Rows]) -> str:
    return ", ".join(f"{len(rows)} of {split}" for split, rows in rows.items())


def _size(facts: Facts) -> str:
    layers = " + ".join(str(stack.layers) for stack in facts.list_stacks().values())
    return f"{layers} layers, {facts.parameters / 1e6:.2f} M parameters ({facts.model_type})"


def _describe_changes(changes: Sequence[Difference]) -> Iterator[str]:
    """Describe each change, with the names of all stages that have the same."""
    stages: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        values = f"{_shorten(change.before)} → {_shorten(change.after)}"
        group, _, rest = change.path.partition(".")
        name, _, key = rest.partition(".") if group == "stages" else ("", "", change.path)
        stages.setdefault((key, values), []).append(name)
    for (key, values), names in stages.items():
        yield f"{key}: {values}" + (f" ({', '.join(names)})" if any(names) else "")


def _shorten(value: Any) -> str:
    text = "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def check_artifact(node: Node, folder: Path) -> Iterator[str]:
    """Check what a stage left, beyond that it did not fail, and say what was checked.

    Raises StageError where it is wrong.
    """
    metrics = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["metrics"]
    if node.stage.changes_model:
        yield _read_text(folder)
    if "parity" in metrics:
        rows = metrics["parity"]["rows"]
        yield f"export {metrics['format']}: a fresh process gives the same for {rows} rows"


def _read_text(folder: Path) -> str:
    """Load a model that was saved, and have it read a text."""
    import torch

    from compressor.models.checkpoint import Checkpoint

    checkpoint, ids = Checkpoint.load(folder), torch.tensor([[5, 6, 7, 8]])
    decoder = {"decoder_input_ids": ids} if checkpoint.head == "seq2seq_lm" else {}
    with torch.inference_mode():
        output = next(iter(checkpoint.model(input_ids=ids, **decoder).values()))
    if not bool(output.isfinite().all()):
        raise StageError("what was saved, once loaded again, gives numbers that are not finite")
    return "loaded again, read a text"
