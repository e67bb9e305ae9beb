"""A rehearsal from start to end: what is prepared, run, looked at, and told."""

from __future__ import annotations

import os
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from rich.console import Console

from compressor import hub
from compressor.engine import Engine
from compressor.errors import RecipeError, StageError, Unreachable
from compressor.files import expand_home
from compressor.plan import Plan, plan
from compressor.printed import complain
from compressor.progress import Progress
from compressor.recipe import from_config
from compressor.redaction import redacted_text
from compressor.rehearsal.checks import look_at
from compressor.rehearsal.derivation import Derived, Substitutes, derive
from compressor.rehearsal.models import TRAINED
from compressor.rehearsal.rows import Taken, empty_rows, small_data, take
from compressor.rehearsal.told import Line, print_result
from compressor.run import Run
from compressor.stages.load import Load, TrainTokenizer
from compressor.store import Store


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
            from compressor.checkpoint import has_tokenizer

            return str(directory.absolute()) if has_tokenizer(directory) else None
        revision = load.revision if load.tokenizer is None else "main"
        try:
            commit = hub.commit(source, revision, "model")
            from compressor.checkpoint import load_tokenizer

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
            from compressor.checkpoint import load_tokenizer

            return load_tokenizer(own)
        from compressor.data.tokenizer import train_tokenizer

        rows = taken.rows["train"]
        return train_tokenizer([*rows.texts, *rows.summaries], vocab_size=300)

    def _planned(self, derived: Derived) -> Plan:
        composed = from_config(derived.values, self.real.composed.recipe.name, (), ())
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
        log.write_text(redacted_text("".join(traceback.format_exception(error))), "utf-8")
        failure = f"{type(error).__name__}: {error}".splitlines()[0] + f" (see {log})"
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
