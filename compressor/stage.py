"""What a stage is: a frozen, typed piece of a recipe that can be planned and run.

A file `stages/shrink.py` that defines one subclass of `Stage` is the stage `shrink`; nothing else
has to know of it. Stage modules import torch inside `run`, so that planning stays quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, Field

from compressor.architectures import Facts
from compressor.backends import BackendName
from compressor.field_types import SETTINGS, Listed
from compressor.generation_config import refusals
from compressor.launching import Launch, Scheme
from compressor.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.data.rows import Rows
    from compressor.data.sources import Data, Reads, Split
    from compressor.progress import Progress


_TAKES_MEMORY = (
    *("micro_batch_size", "batch_size", "batch_sizes", "num_beams", "input_lengths"),
    *("calibration_rows", "rows"),
)
"""Settings of stages that decide how much is computed at once."""
SIZES = ("parameters", "nonzero", "nonzero_ratio", "bytes")
"""What a run's record says of the model that its stage gives, writes or looks at."""


@dataclass(frozen=True)
class Planning:
    """What a stage may look at while it is planned: the facts of its inputs, never their weights.

    `problem(path, message)` reports what is wrong at a key below the stage, and planning goes on,
    so that a person sees every error at once. `unreached(path, message)` reports something that
    only a network could tell: an error for `run`, a warning for `plan`.
    """

    facts: Facts | None
    data: Data
    launch: Launch
    outputs: Path
    problem: Callable[[str, str], None]
    unreached: Callable[[str, str], None]
    backend: BackendName = "torch"
    """What runs the model."""
    others: Mapping[str, Facts | None] = field(default_factory=dict)
    """Role → the facts of a model that the stage reads beside its own (`Stage.models_read`)."""

    def check_rows(self, *, trains: bool, whose: str = "model", facts: Facts | None = None) -> None:
        """Report rows that a model cannot read, or learn from: of another task, or too long.

        `facts`: of another model than the stage's own. `trains`: it reads the targets too.
        """
        facts = facts or self.facts
        if facts is None:
            return
        head, task = facts.config["head"], self.data.task
        if head == "none" or (head == "sequence_classification") != (task != "summarization"):
            labelled = "with a task of labels, such as data=messages"
            fits = labelled if head == "sequence_classification" else "of texts and summaries"
            more = f"; take data {fits}" if head != "none" else ""
            self.problem("data.task", f"is {task}, and the {whose} has the head {head!r}{more}")
            return
        fields = ["max_source_length", "max_target_length"]
        if task != "summarization" or not (trains or head == "causal_lm"):
            fields = fields[:1]
        limits = [int(getattr(self.data, field)) for field in fields]
        longest, how = (sum(limits), " + ") if head == "causal_lm" else (max(limits), " and ")
        if facts.positions is not None and longest > facts.positions:
            names = how.join(f"data.{field}" for field in fields)
            message = f"the {whose} has {facts.positions} positions, and rows of up to {longest}"
            self.problem(f"data.{fields[0]}", f"{message} tokens; lower {names}")

    def check_decoding(
        self, limits: Mapping[str, int], *, num_beams: int = 1, backend: BackendName | None = None
    ) -> None:
        """Report limits of a decode (key → tokens) that are beyond the model's positions, and
        settings of its generation config that are not followed. `backend` runs it, or the model's.
        """
        facts = self.facts
        if facts is None or facts.config["head"] != "seq2seq_lm":
            return
        for path, limit in limits.items():
            if facts.positions is not None and limit > facts.positions:
                message = f"the model has {facts.positions} positions, and {limit} is more"
                self.problem(path, message)
        own = backend or self.backend
        for message in refusals(facts.generation, own, greedy=num_beams == 1):
            self.problem("", message)

    def check_backend(self, wanted: BackendName | None) -> None:
        """Report a model that is not made for the backend that a recipe asks for."""
        if wanted not in (None, self.backend):
            message = (
                f"{wanted!r} runs what `export` wrote for it, and this model is for "
                f"{self.backend!r}; name such an export in `models`"
            )
            self.problem("backend", message)


@dataclass(frozen=True)
class Artifact:
    """What an earlier stage that gives no model has written, and another stage reads."""

    stage: str
    """That stage's name in the recipe."""
    kind: str
    """The kind of stage that it must be."""
    of_same_model: bool
    """Whether it must have looked at the very model that the reading stage takes."""


@dataclass(frozen=True)
class Inputs:
    """What a running stage reads: a checkpoint, and artifacts by role. Read-only."""

    folder: Path | None
    """The folder of the model that this stage takes, or None for a stage that starts a chain."""
    artifacts: Mapping[str, Path] = field(default_factory=dict)
    """Other artifacts this stage asked for, by role (such as `against` or `teacher`)."""

    @property
    def model_folder(self) -> Path:
        assert self.folder is not None, "planning gives a model to every stage that needs one"
        return self.folder

    def checkpoint(self, role: str | None = None) -> Checkpoint:
        """Load the model that this stage takes, or the one it reads as `role`; change it freely."""
        from compressor.checkpoint import Checkpoint

        return Checkpoint.load(self.model_folder if role is None else self.artifacts[role])


@dataclass(frozen=True)
class Scale:
    """Beside what a stage of the recipe runs, and beside what it runs in a rehearsal of it."""

    real: Facts | None
    """The model that the stage takes in the recipe; None where it takes none, or none is known."""
    small: Facts | None
    """The one that it takes in the rehearsal, of the same kind."""
    others: Mapping[str, tuple[Facts | None, Facts | None]] = field(default_factory=dict)
    """Role → the same two of a model that it reads beside its own."""
    runs_like: Mapping[str, str] = field(default_factory=dict)
    """Role → what computes that model, and its kind of weights; equal where the same code does."""
    source_length: int = 1024
    """Tokens of the longest source there."""
    summaries: bool = True
    """Whether summaries are written; else labels are given."""

    def layers(self, stack: str) -> tuple[int, int]:
        """How many layers a stack has, in the recipe and in the rehearsal."""
        assert self.real is not None, "asked of models that are known"
        assert self.small is not None, "asked of models that are known"
        return self.real.stacks()[stack].layers, self.small.stacks()[stack].layers


@dataclass(frozen=True)
class Context:
    """What a running stage may use: a folder to write in, data, progress, and a place for metrics.

    `folder` becomes the artifact when the stage has ended without an error. `resume` is where a
    stage keeps what it needs to go on after it was killed; it may not exist yet.
    """

    folder: Path
    resume: Path
    data: Data
    seed: int
    launch: Launch
    progress: Progress
    run_folder: Path | None = None
    name: str = ""
    """The stage's name in the recipe."""
    metrics: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    """Of an export: what tables show of it instead of what they show of its source."""
    ranks: Ranks = ALONE
    """Which of the processes that run the stage this is; only the first one's files count."""
    scheme: Scheme = field(default_factory=Scheme)
    """How a training's weights lie over them."""

    def rows(self, split: Split) -> Rows:
        rows = self.data.load(split)
        if rows.note and self.ranks.first:
            self.progress.say_once(rows.note)
        return rows


class Stage(BaseModel):
    """The base of every stage. Fields of this class can be set on any stage in a recipe."""

    model_config = SETTINGS

    version: ClassVar[int] = 1
    """Raise it when the result for the same inputs changes: it is part of the key."""
    changes_model: ClassVar[bool] = True
    """Whether the stage gives a model to the stages after it, or only looks at one."""
    needs_model: ClassVar[bool] = True
    exports: ClassVar[bool] = False
    """Whether it writes a model that other programs run, and that some reports can look at."""
    section: ClassVar[str | None] = None
    """The top-level group of the recipe (`model`, `training`) that has this stage's defaults."""
    section_keys: ClassVar[frozenset[str] | None] = None
    """The keys that are taken from that group; None: all. Others have the stage's own defaults."""
    splits: ClassVar[tuple[Split, ...]] = ()
    """The splits of the data that the result depends on."""
    distributed: ClassVar[bool] = False
    """Whether it can run in several processes when `launch` asks for them."""
    measures: ClassVar[tuple[str, ...]] = ()
    """The numbers among its metrics that a recipe's objective may be about."""
    reads: ClassVar[Reads] = "pairs"
    """What it reads of its splits: the rows as text, token ids of sources, or of targets too."""

    model: str | None = Field(
        None, description="Name of the stage whose model this one takes; default: the one before."
    )
    label: str | None = Field(
        None, description="What tables call the model that comes out; default: the stage's name."
    )

    def data_splits(self) -> tuple[Split, ...]:
        """The splits that this stage, with its settings, reads."""
        return self.splits

    def draws(self) -> bool:
        """Whether the result, with these settings, depends on the recipe's seed."""
        return False

    def artifacts(self) -> Mapping[str, Artifact]:
        """Role → an earlier report's artifact that is read. A role is the field's name."""
        return {}

    def models_read(self) -> Mapping[str, str]:
        """Role → name of an earlier stage whose model is read too. A role is the field's name."""
        return {}

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """What else decides the result beyond fields, inputs and data: a source's digest, say."""
        return {}

    def preview(self, planning: Planning) -> Facts | None:
        """The facts of the model after this stage; reports what cannot work."""
        return planning.facts

    def packages(self) -> tuple[str, ...]:
        """Packages, beside torch and transformers, that decide what it writes or how that runs."""
        return ()

    def runs_in(self) -> BackendName:
        """What runs the model that this stage gives or writes."""
        return "torch"

    def in_parallel(self, backend: BackendName) -> bool:
        """Whether several processes run it together for a model that `backend` runs."""
        return self.distributed

    def rehearsed(self, scale: Scale) -> Self:
        """The same work with settings that fit a model of few layers and a few rows, in seconds.

        What has to change is told as a difference between the rehearsal and the recipe. A stage
        that counts layers, widths, rows or steps overrides this.
        """
        return self

    def less_memory(self) -> str:
        """What to say after "out of memory": the settings of this stage that need less of it."""
        own = [name for name in _TAKES_MEMORY if name in type(self).model_fields]
        lower = ", ".join([*own, "data.max_source_length"])
        same = "; micro_batch_size leaves the result as it is" if "micro_batch_size" in own else ""
        return f"; lower {lower}{same}"

    def run(self, inputs: Inputs, context: Context) -> Checkpoint | None:
        """Do the work. A stage that `changes_model` returns the new checkpoint."""
        raise NotImplementedError

    def parameters(self) -> dict[str, Any]:
        """The fields that are part of the key."""
        return self.model_dump(mode="json", exclude={"model", "models", "label", "against"})


class Report(Stage):
    """The base of stages that look at models and change none; they can look at several."""

    changes_model: ClassVar[bool] = False
    runs_exports: ClassVar[bool] = False
    """Whether it can look at what an `export` wrote, too."""

    together: ClassVar[bool] = False
    """Whether it looks at all of its models at once, in one node. It then finds each model's folder
    in `Inputs.artifacts` under the name of its node, and leaves `metrics["models"]`, by that name.
    """

    models: Listed[str] = Field(
        (), description="Names of stages whose models are looked at; default: the one before."
    )


def stage_kinds() -> list[str]:
    """The names of all stages: the modules of `compressor.stages`."""
    files = (Path(__file__).parent / "stages").glob("[a-z]*.py")
    return sorted(path.stem for path in files)


@cache
def stage_class(kind: str) -> type[Stage]:
    """The stage that `stages/<kind>.py` defines. Raises KeyError where there is no such file."""
    if kind not in stage_kinds():
        raise KeyError(kind)
    module = importlib.import_module(f"compressor.stages.{kind}")
    (found,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Stage) and item.__module__ == module.__name__
    )
    return found
