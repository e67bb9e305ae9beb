"""Define what a stage is: a frozen, typed piece of a recipe that can be planned and run.

A file `stages/shrink.py` with one subclass of `Stage` is the stage `shrink`; nothing else has to
know of it. Stage modules import torch inside `run`, so that planning stays quick.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, Field, PrivateAttr

from compressor.backends.base import WRITERS
from compressor.backends.generation_config import BackendName, explain_refusals
from compressor.compression.pruning import Grouping
from compressor.core.errors import Unreachable
from compressor.core.ranks import ALONE, Ranks
from compressor.core.settings import SETTINGS, Listed
from compressor.data.rows import Task
from compressor.data.source_base import keep_silent
from compressor.models.facts import Facts
from compressor.training.launch_config import Launch, Scheme

if TYPE_CHECKING:
    from compressor.backends.formats import Format
    from compressor.core.progress import Progress
    from compressor.data.examples import Examples
    from compressor.data.rows import Rows
    from compressor.data.source_base import Reads, Split
    from compressor.data.sources import Data
    from compressor.models.checkpoint import Checkpoint

_Settings = TypeVar("_Settings", bound=BaseModel)
_TAKES_MEMORY = (
    *("micro_batch_size", "batch_size", "batch_sizes", "num_beams", "input_lengths"),
    *("calibration_rows", "rows"),
)
"""Settings of stages that decide how much is computed at once."""
SMOKE_TEST: Mapping[str, int] = {
    "epochs": 1, "max_steps": 3, "warmup_steps": 1, "batch_size": 4,
    "texts": 1, "warm_up": 1, "batch_sizes": 4, "input_lengths": 512,
    "heads": 2, "head_size": 8, "feed_forward": 32, "depth": 1,
    "multiple_of": 8, "group_size": 32,
}  # fmt: skip
"""Settings of stages, by name → the most that they are in a smoke test."""
_OF_SUMMARIES: Mapping[str, int] = {"max_length": 16, "min_length": 16, "output_lengths": 16}
"""The same of settings that mean nothing where there are labels."""
TASKS: Mapping[str, tuple[Task, ...]] = {
    "seq2seq_lm": ("text2text", "summarization"),
    "causal_lm": ("language_modeling", "text2text", "summarization"),
    "sequence_classification": ("multi_label", "single_label"),
    "token_classification": ("token_classification",),
}
"""A model's head → the tasks that it can learn."""
SIZES = ("parameters", "nonzero", "nonzero_ratio", "bytes")
"""What a run's record says of the model that its stage gives, writes or looks at."""


@dataclass(frozen=True)
class Planning:
    """What a stage may look at while it is planned: the facts of its inputs, never their weights.

    `report(path, message)` reports an error at a key below the stage. Planning goes on, so that a
    person sees all errors at once. `report_unreached(path, message)` reports what only a network
    could tell: an error for `run`, a warning for `plan`; `warn(path, message)` what works, but
    hardly as it is meant.
    """

    facts: Facts | None
    data: Data
    report: Callable[[str, str], None]
    report_unreached: Callable[[str, str], None]
    backend: BackendName = "torch"
    """What runs the model."""
    artifacts: Collection[str] = ()
    """Roles of what the stage reads beside its model (`Stage.artifacts`), as far as it is there."""
    others: Mapping[str, Facts | None] = field(default_factory=dict)
    """Role → the facts of a model that the stage reads beside its own (`Stage.artifacts`)."""
    launch: Launch = field(default_factory=Launch)
    warn: Callable[[str, str], None] = keep_silent

    @property
    def has_labels(self) -> bool:
        """Whether the rows have labels."""
        return self.data.has_labels

    def require_float(self, verb: str) -> bool:
        """Tell whether the model is float; report that nothing can `verb` a quantized one."""
        quantized_kind = self.facts is not None and self.facts.quantized_kind
        if quantized_kind:
            self.report("", f"cannot {verb} {quantized_kind}; put `quantize` after it")
        return not quantized_kind

    def explain_missing_loss(self) -> str:
        """Say why training rows cannot show what matters to the model's loss; "" where they can."""
        if self.facts is None or self.data.task not in TASKS.get(self.facts.config["head"], ()):
            return "the model has no loss on the data's rows"
        problems: list[str] = []
        with suppress(Unreachable):  # which is reported where the rows are read
            self.data.check("train", lambda _, message: problems.append(message))
        if problems:
            return f"there are no rows to train on: {problems[0]}"
        return "the model is not trained yet" if self.facts.untrained else ""

    def choose_importance(
        self, calibrated: str, *, otherwise: str = "magnitude", missing: str = ""
    ) -> tuple[str, str]:
        """Choose by what is there the `calibrated` importance or the other, and say why.

        `missing`: what else it would need.
        """
        missing = missing or self.explain_missing_loss()
        return (otherwise, missing) if missing else (calibrated, "training rows have a loss")

    def check_settings(self, stage: Stage, *, of_summaries: set[str], of_labels: set[str]) -> None:
        """Report settings of a stage that have a meaning for the other task alone."""
        kind, unused = ("labels", of_summaries) if self.has_labels else ("texts", of_labels)
        for name in sorted(unused & stage.model_fields_set):
            self.report(name, f"means nothing for {kind}; data.task is {self.data.task}")

    def check_length(
        self, path: str, tokens: int, cure: str = "", *, facts: Facts, role: str = "model"
    ) -> None:
        """Report more tokens than a model has positions."""
        if facts.positions is not None and tokens > facts.positions:
            message = f"the {role} has {facts.positions} positions, too few for {tokens} tokens"
            self.report(path, message + cure)

    def check_rows(self, *, trains: bool, role: str = "model", facts: Facts | None = None) -> None:
        """Report rows of another task than the model's, or longer than it can read.

        `facts`: of another model than the stage's own. `trains`: it reads the targets too.
        """
        facts, data = facts or self.facts, self.data
        if facts is None:
            return
        head = facts.config["head"]
        if data.task not in (tasks := TASKS.get(head, ())):
            cure = f"; it takes data of the task {' or '.join(tasks)}" if tasks else ""
            message = f"is {data.task}, and the {role} has the head {head!r}{cure}"
            self.report("data.task", message)
            return
        lengths = {"data.max_source_length": data.max_source_length}
        if data.target is not None and (trains or head == "causal_lm"):
            lengths["data.max_target_length"] = data.max_target_length
        longest, joint = (sum, " + ") if head == "causal_lm" else (max, " and ")
        cure = f"; lower {joint.join(lengths)}"
        tokens = longest(lengths.values())
        self.check_length("data.max_source_length", tokens, cure, facts=facts, role=role)

    def check_decoding(
        self,
        limits: Mapping[str, int],
        *,
        num_beams: int = 1,
        backend: BackendName | None = None,
        prompt: tuple[str, int] | None = None,
    ) -> None:
        """Report limits of a decode (key → tokens) beyond the model's positions, which a decoder's
        `prompt` has too (key and tokens; None: the data's longest source), and settings of its
        generation config that its backend, or the one named, does not follow.
        """
        facts, backend, greedy = self.facts, backend or self.backend, num_beams == 1
        if facts is None or facts.config["head"] not in WRITERS:
            return
        key, longest = prompt or ("data.max_source_length", self.data.max_source_length)
        continues = facts.config["head"] == "causal_lm"
        before, cure = (longest, f"; lower it or {key}") if continues else (0, "")
        for path, limit in limits.items():
            self.check_length(path, before + limit, cure, facts=facts)
        for message in explain_refusals(facts.generation, backend, greedy=greedy):
            self.report("", message)


@dataclass(frozen=True)
class Artifact:
    """What an earlier stage has left, and another one reads beside its model."""

    stage: str
    """That stage's name in the recipe."""
    kind: str | None = None
    """The kind of stage that it must be; None: any that gives a model, which is what is read."""
    of_same_model: bool = False
    """Whether it must have looked at the very model that the reading stage takes."""
    is_optional: bool = False
    """Whether the reading stage does without it where the pipeline has no stage of that name."""


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
        from compressor.models.checkpoint import Checkpoint

        return Checkpoint.load(self.model_folder if role is None else self.artifacts[role])


@dataclass(frozen=True)
class Context:
    """What a running stage may use: a folder to write in, data, progress, and a place for metrics.

    `folder` becomes the artifact when the stage ends without an error. In `resume` a stage keeps
    what it needs to go on after it was killed; it may not exist yet.
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
        """Load the rows of a split."""
        rows = self.data.load(split)
        if rows.note and self.ranks.is_first:
            self.progress.say_once(rows.note)
        return rows


class Stage(BaseModel):
    """The base of every stage. Its fields can be set on any stage of a recipe.

    A stage needs fields, `run` and, where it changes what a plan knows of a model or can be asked
    for the impossible, `preview`. Everything else has a default that suits most stages.
    """

    model_config = SETTINGS

    model: str | None = Field(
        None, description="Name of the stage whose model this one takes; default: the one before."
    )
    label: str | None = Field(
        None, description="What tables call the model that comes out; default: the stage's name."
    )

    version: ClassVar[int] = 1
    """Raise it when the result for the same inputs changes: it is part of the key."""

    _choice: str = PrivateAttr("")

    def resolve(self, planning: Planning) -> Self:
        """Give this stage with what a recipe leaves open chosen by what is there.

        That is what is previewed, named by the key, and run.
        """
        return self

    def choose(self, reason: str, **settings: Any) -> Self:
        """Give this stage with settings that a recipe leaves open; a run tells them, and why."""
        chosen = self.model_copy(update=settings)
        shown = ", ".join(f"{name}: {str(value).lower()}" for name, value in settings.items())
        chosen._choice = f"{shown} (chosen: {reason})"
        return chosen

    @property
    def choice(self) -> str:
        """What `resolve` chose, and why; "" where it chose nothing."""
        return self._choice

    def run(self, inputs: Inputs, context: Context) -> Checkpoint | None:
        """Do the work. Annotate it with what it gives: Checkpoint, or None to only look at one."""
        raise NotImplementedError

    def preview(self, planning: Planning) -> Facts | None:
        """Give the facts of the model after this stage; report what cannot work."""
        return planning.facts

    # What decides the result beside the fields and the model: all of it is part of the key.

    def reads(self) -> Mapping[Split, Reads]:
        """Name the splits that are read, and what of them: texts, sources, or whole pairs."""
        return {}

    def artifacts(self) -> Mapping[str, Artifact]:
        """Name what earlier stages left and this one reads too, each under its field's name."""
        return {}

    def is_random(self) -> bool:
        """Tell whether the result, with these settings, depends on the recipe's seed."""
        return False

    def parameters(self) -> dict[str, Any]:
        """Dump the fields that decide the result."""
        names = {"model", "models", "label", "against", "backend"}
        return self.model_dump(mode="json", exclude=names)

    def identity(self, planning: Planning) -> Mapping[str, Any]:
        """Identify what else decides the result: a source's digest, say."""
        return {}

    # How it takes part in a plan and in a run.

    changes_model: ClassVar[bool] = True
    """Whether `run` gives a model to the stages after it: what its annotation says."""
    needs_model: ClassVar[bool] = True
    is_distributed: ClassVar[bool] = False
    """Whether it can run in several processes, for a model that torch runs."""
    section: ClassVar[str | None] = None
    """The top-level group of the recipe (`model`, `training`) that has this stage's defaults."""
    section_keys: ClassVar[frozenset[str] | None] = None
    """The keys that are taken from that group; None: all. Others have the stage's own defaults."""
    measures: ClassVar[tuple[str, ...]] = ()
    """The numbers among its metrics that a recipe's objective may be about."""

    def list_measures(self) -> tuple[str, ...]:
        """List these for its settings."""
        return self.measures

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "return" not in cls.run.__annotations__:
            raise TypeError(f"{cls.__name__}.run: annotate what it gives, Checkpoint or None")
        cls.changes_model = cls.run.__annotations__["return"] not in ("None", None)

    def count_trained(self, facts: Facts) -> int | None:
        """Count the parameters that are trained where these are not all of the model's."""
        return None

    @property
    def export_format(self) -> Format | None:
        """Name the format of the model that it writes for other programs, if it writes one."""
        return None

    def smoke_test_settings(self, planning: Planning) -> Self:
        """Lower what would take long, or not fit, on the few rows and the tiny model of `planning`.

        Most stages need not override this: settings are known by their names.
        """
        writes = not (planning.has_labels or planning.data.is_text_alone)
        return _lower(self, {**SMOKE_TEST, **(_OF_SUMMARIES if writes else {})})


def _lower(settings: _Settings, limits: Mapping[str, int]) -> _Settings:
    """Lower settings, and those inside them, to `limits`; nothing is tracked."""
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            changed[name] = _lower(value, limits)
        elif name == "trackers":
            changed[name] = ()
        elif name == "max_steps" and value is None:
            changed[name] = limits[name]
        elif name in limits and isinstance(value, list | tuple):
            changed[name] = type(value)(sorted({min(item, limits[name]) for item in value}))
        elif name in limits and value is not None:
            changed[name] = min(value, limits[name])
    changed = {name: value for name, value in changed.items() if value != getattr(settings, name)}
    return settings.model_copy(update=changed)


class Report(Stage):
    """The base of stages that look at models and change none; they can look at several."""

    together: ClassVar[bool] = False
    """Whether it looks at all of its models at once, in one node. It then finds each model's folder
    in `Inputs.artifacts` under the name of its node, and leaves `metrics["models"]`, by that name.
    """

    models: Listed[str] = Field(
        (), description="Names of stages whose models are looked at; default: the one before."
    )


class BackendReport(Report):
    """The base of reports that can also look at what an `export` wrote."""

    backend: BackendName | None = Field(
        None,
        description="What must run the models: torch, ctranslate2 or onnxruntime; default: what "
        "each is made for. Planning reports a model that is made for another.",
    )

    def preview(self, planning: Planning) -> Facts | None:
        """Report a model that the wanted backend does not run."""
        if self.backend not in (None, planning.backend):
            message = (
                f"{self.backend!r} runs what `export` wrote for it, and this model is for "
                f"{planning.backend!r}; name such an export in `models`"
            )
            planning.report("backend", message)
        return planning.facts


def oom_hint(stage: Stage) -> str:
    """Name the settings of a stage that need less memory, to follow "out of memory"."""
    names = [name for name in _TAKES_MEMORY if name in type(stage).model_fields]
    lower = ", ".join([*names, "data.max_source_length"])
    same = "; micro_batch_size leaves the result as it is" if "micro_batch_size" in names else ""
    return f"; lower {lower}{same}"


def load_calibration_rows(
    grouping: Grouping, checkpoint: Checkpoint, context: Context
) -> Examples | None:
    """Read the training rows that an importance looks at; None where it needs none."""
    if not grouping.needs_calibration:
        return None
    rows = context.rows("train").first(grouping.calibration_rows)
    return checkpoint.tokenize_rows(rows, context.data)


def stage_kinds() -> list[str]:
    """Name all stages: the modules of `compressor.stages`."""
    files = Path(__file__).parent.glob("[a-z]*.py")
    return sorted(path.stem for path in files if path.stem != "base")


@cache
def stage_class(kind: str) -> type[Stage]:
    """Import the stage that `stages/<kind>.py` defines. Raises KeyError without such a file."""
    if kind not in stage_kinds():
        raise KeyError(kind)
    module = importlib.import_module(f"compressor.stages.{kind}")
    (cls,) = (
        item
        for item in vars(module).values()
        if isinstance(item, type) and issubclass(item, Stage) and item.__module__ == module.__name__
    )
    return cls
