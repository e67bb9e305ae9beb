"""Turn a recipe into a plan: ordered, typed, keyed nodes with the facts of each model. No weights.

Everything that can be known to be wrong is reported here, all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.backends.generation_config import BackendName
from compressor.core.errors import Problem, RecipeError, StageError, Unreachable, nearest
from compressor.data.sources import Data
from compressor.engine.keys import digest, key_parts
from compressor.engine.plan_checks import Findings, Stages, check_recipe, is_skipped
from compressor.engine.store.store import Store
from compressor.models.facts import Facts
from compressor.recipe.compose import ComposedRecipe
from compressor.recipe.typed_stages import build_stages, locate_field
from compressor.stages.base import Artifact, BackendReport, Planning, Report, Stage
from compressor.training.launch_config import check_launch


@dataclass(frozen=True)
class Node:
    """One piece of work: a stage, what it reads, and the key under which the store holds it."""

    name: str
    kind: str
    stage: Stage
    model: str | None
    """The node whose model this one takes; None where it starts a chain."""
    artifacts: Mapping[str, str]
    """Other nodes whose artifacts it reads, by role."""
    key: str | None
    """None where something that decides it cannot be reached from here."""
    key_parts: Mapping[str, Any]
    facts: Facts | None
    cached: bool
    planning: Planning
    """What the stage looked at."""

    @property
    def backend(self) -> BackendName:
        """What runs the model that it gives or writes."""
        written = self.stage.export_format
        return "torch" if written is None else written.backend

    @property
    def label(self) -> str:
        return self.stage.label or self.name

    @property
    def trained_parameters(self) -> int | None:
        """The number of parameters that the stage trains, where it trains some of a model's."""
        return None if self.facts is None else self.stage.count_trained(self.facts)

    def summary(self) -> dict[str, Any]:
        """Summarize the node as `plan --json` prints it."""
        facts = self.facts
        return {
            "name": self.name,
            "stage": self.kind,
            "model": self.model,
            "artifacts": dict(self.artifacts),
            "key": self.key,
            "cached": self.cached,
            "parameters": facts.parameters if facts else None,
            "parameters_exact": facts.exact_size if facts else None,
            "nonzero_ratio": facts.nonzero_ratio if facts else None,
            "nonzero_exact": facts.exact if facts else None,
            "bytes": facts.bytes if facts else None,
            "trained_parameters": self.trained_parameters,
        }


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    composed: ComposedRecipe
    nodes: tuple[Node, ...]
    warnings: tuple[Problem, ...] = ()
    unreached: tuple[Problem, ...] = ()

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def data_for(self, node: Node) -> Data:
        """Give the recipe's data, pinned as it was planned where `node` reads any of it."""
        data = self.composed.recipe.data
        return data.pin_revision() if node.stage.reads() else data

    def require_unchanged(self, node: Node) -> None:
        """Raise StageError where what `node` reads is no longer what its key says."""
        for split, planned in (node.key_parts.get("data") or {}).items():
            if self.composed.recipe.data.content_key(split) != planned["content"]:
                raise StageError(f"the {split} rows have changed since this run was planned")
        identity = node.stage.identity(node.planning)
        planned_identity = node.key_parts["identity"].items()
        changed = [part for part, value in planned_identity if identity[part] != value]
        if changed:
            raise StageError(f"its {' and '.join(changed)} changed since this run was planned")

    def require_reachable(self) -> None:
        """Raise RecipeError where something the run needs cannot be reached from here."""
        if self.unreached:
            raise RecipeError(list(self.unreached))


def plan(composed: ComposedRecipe, store: Store) -> Plan:
    """Plan a recipe. Raises RecipeError with every problem that can be seen without running."""
    findings = Findings(composed)
    stages = build_stages(composed.recipe, findings.error)
    check_recipe(composed, stages, findings)
    state = _State(composed, store, stages, findings)
    for name in dict.fromkeys(composed.recipe.pipeline):
        if name in stages:
            _place(state, name)
    check_launch(composed.recipe.launch, findings.error)
    findings.raise_errors()
    return Plan(
        composed,
        tuple(state.nodes.values()),
        tuple(dict.fromkeys(findings.warnings)),
        tuple(dict.fromkeys(findings.unreached)),
    )


@dataclass
class _State:
    """What planning knows so far, on its way through the pipeline."""

    composed: ComposedRecipe
    store: Store
    stages: Stages
    findings: Findings
    nodes: dict[str, Node] = field(default_factory=dict)
    models: dict[str, str | None] = field(default_factory=dict)
    """Stage → the node with the model as it is after that stage. The last one is handed on."""

    @property
    def model(self) -> str | None:
        return next(reversed(self.models.values()), None)

    def stage(self, name: str) -> Stage:
        return self.stages[name][1]

    def is_skipped(self, name: str) -> bool:
        return is_skipped(self.composed.recipe, self.stages, name)

    def precedes(self, name: str, other: str) -> bool:
        """Return whether a valid stage comes, and runs, before another one."""
        pipeline = self.composed.recipe.pipeline
        before = pipeline[: pipeline.index(other)]
        return name in before and name in self.stages and not self.is_skipped(name)


def _place(state: _State, name: str) -> None:
    """Add a stage's node or, where it reports on several models, its nodes."""
    stage = state.stage(name)
    if state.is_skipped(name):
        if stage.changes_model:
            state.models[name] = state.model
    elif isinstance(stage, Report):
        _place_report(state, name, stage)
    else:
        _place_stage(state, name, stage)


def _place_stage(state: _State, name: str, stage: Stage) -> None:
    model = _model_of(state, name)
    if stage.needs_model and model is None:  # reported
        return
    artifacts = _artifacts_of(state, name, model)
    if artifacts is not None:
        _add(state, name, name, model, artifacts)
    if stage.changes_model:  # after a reported one, the rest is checked with the model before it
        state.models[name] = model if artifacts is None else name


def _model_of(state: _State, name: str) -> str | None:
    """Find the node whose model a stage takes; None where it takes none, or that is reported."""
    stage = state.stage(name)
    if not stage.needs_model:
        return None
    if stage.model is None:
        return state.model
    return _find_model(state, stage.model, name, "model")


def _find_model(state: _State, model: str, name: str, key: str) -> str | None:
    """Find the node with the model of stage `model`, which stage `name` names at `key`, or that of
    an export where `name` can look at one; None where that is reported.
    """
    exports = isinstance(state.stage(name), BackendReport)
    recipe, findings, path = state.composed.recipe, state.findings, f"stages.{name}.{key}"
    known = state.stages.get(model)
    is_export = exports and known is not None and known[1].export_format is not None
    if model in state.models:
        if state.models[model] is None:
            findings.error(path, f"{model!r} is skipped, and gives no model")
        return state.models[model]
    if is_export and model in state.nodes:
        return model
    valid = {*state.models}
    if exports:
        valid |= {node.name for node in state.nodes.values() if node.stage.export_format}
    if known is None and model in recipe.pipeline:
        pass  # that stage is wrong itself, and reported
    elif known is not None and not known[1].changes_model and not is_export:
        findings.error(path, f"{model!r} gives no model; {nearest(model, valid)}")
    elif is_export and state.is_skipped(model):
        report = findings.warn if key == "models" else findings.error
        report(path, f"{model!r} is skipped, and is not looked at")
    elif model not in recipe.pipeline:
        findings.error(path, f"no stage {model!r}; {nearest(model, valid)}")
    elif not state.precedes(model, name):  # one that does has been reported
        findings.error(path, f"{model!r} comes later in the pipeline; {name!r} cannot take it")
    return None


def _artifacts_of(state: _State, name: str, model: str | None) -> Mapping[str, str] | None:
    """Find role → node of what a stage reads beside its model; None where that is reported."""
    nodes = {
        role: _find_model(state, artifact.stage, name, role)
        if artifact.kind is None
        else _find_artifact(state, artifact, name, role, model)
        for role, artifact in state.stage(name).artifacts().items()
        if not artifact.is_optional or artifact.stage in state.composed.recipe.pipeline
    }
    known = {role: node for role, node in nodes.items() if node is not None}
    return known if known.keys() == nodes.keys() else None


def _find_artifact(
    state: _State, artifact: Artifact, name: str, role: str, model: str | None
) -> str | None:
    """Find the node of the artifact that stage `name`, which takes `model`, reads as `role`."""
    other, pipeline = artifact.stage, state.composed.recipe.pipeline
    suitable = [
        node
        for node in state.nodes.values()
        if node.kind == artifact.kind and (node.model == model or not artifact.of_same_model)
    ]
    namesakes = [n for n in state.nodes.values() if n.name.partition("@")[0] == other]
    for node in namesakes:
        if node in suitable:
            return node.name
    hint = nearest(other, {node.name.partition("@")[0] for node in suitable})
    if namesakes and namesakes[0].kind != artifact.kind:
        kind = namesakes[0].kind
        message = f"expected a {artifact.kind!r} stage, and {other!r} is a {kind!r}; {hint}"
    elif namesakes:
        message = f"{other!r} looks at the model of {namesakes[0].model!r}, not of {model!r}"
    elif state.precedes(other, name) or (other in pipeline and other not in state.stages):
        return None  # that stage is wrong itself, and reported
    elif other in pipeline:
        message = f"{other!r} comes later in the pipeline, or is skipped"
    elif suitable:
        message = f"no stage {other!r} before it; {hint}"
    else:
        message = f"it needs a {artifact.kind!r} stage before it in the pipeline"
    state.findings.error(f"stages.{name}.{role}", message)
    return None


def _place_report(state: _State, name: str, stage: Report) -> None:
    """Add a node for each model that is looked at, or one for all of them together."""
    default, models = _model_of(state, name), list(stage.models)
    against: str | None = getattr(stage, "against", None)
    if against is not None:
        models = [against, *(models or filter(None, [stage.model or default]))]
    nodes = {default: name} if default is not None and not models else {}
    for model in models:
        node = _find_model(state, model, name, "against" if model == against else "models")
        if node is not None:  # a skipped stage leaves the model as it was: its node once
            nodes.setdefault(node, f"{name}@{model}")
    if stage.together:
        for node in list(nodes)[1:]:  # each is checked as if it were the only one
            stage.preview(_planning(state, name, node, {}))
        if nodes:
            _add(state, name, name, next(iter(nodes)), {node: node for node in nodes})
        return
    reads: dict[str, str] = {}
    for node, report in nodes.items():
        _add(state, report, name, node, reads)
        if report == f"{name}@{against}":
            reads = {"against": report}


def _add(
    state: _State, node: str, name: str, model: str | None, artifacts: Mapping[str, str]
) -> None:
    """Add a node of stage `name`: preview it, and make its key."""
    kind, stage = state.stages[name]
    planning = _planning(state, name, model, artifacts)
    stage = stage.resolve(planning)
    facts = stage.preview(planning)
    parts = _key_parts(state, name, stage, planning, model, artifacts)
    key = digest(parts) if parts is not None else None
    known = key, parts or {}, facts, key is not None and state.store.has(key), planning
    state.nodes[node] = Node(node, kind, stage, model, artifacts, *known)


def _planning(
    state: _State, name: str, model: str | None, artifacts: Mapping[str, str]
) -> Planning:
    """Give stage `name` what it may look at; it reports to the full path in the recipe."""
    recipe, stage, findings = state.composed.recipe, state.stage(name), state.findings
    source = None if model is None else state.nodes[model]

    def full(path: str, data: str) -> str:
        return path if path.startswith(data) else locate_field(recipe, name, type(stage), path)

    return Planning(
        facts=None if source is None else source.facts,
        data=recipe.data,
        report=lambda path, message: findings.error(full(path, "data."), message),
        report_unreached=lambda path, message: findings.miss(full(path, "data"), message),
        backend="torch" if source is None else source.backend,
        artifacts=artifacts,
        others={
            role: state.nodes[artifacts[role]].facts
            for role, artifact in stage.artifacts().items()
            if artifact.kind is None
        },
        launch=recipe.launch,
        warn=lambda path, message: findings.warn(full(path, "data."), message),
    )


def _key_parts(
    state: _State,
    name: str,
    stage: Stage,
    planning: Planning,
    model: str | None,
    artifacts: Mapping[str, str],
) -> dict[str, Any] | None:
    """Collect the parts of a node's key; None where some of it cannot be reached from here."""
    kind, findings = state.stages[name][0], state.findings
    sources = {} if model is None else {"model": state.nodes[model]}
    sources |= {role: state.nodes[node] for role, node in artifacts.items()}
    inputs = {role: node.key for role, node in sources.items() if node.key is not None}
    if len(inputs) < len(sources):
        return None
    together = isinstance(stage, Report) and stage.together
    formats = [stage.export_format, *(node.stage.export_format for node in sources.values())]
    try:
        return key_parts(
            state.composed.recipe,
            kind,
            stage,
            planning,
            inputs=[[node, inputs[node]] for node in artifacts] if together else inputs,
            packages=[package for known in formats if known for package in known.packages],
        )
    except Unreachable as error:
        if not findings.unreached:  # a stage's own check names the key; this one only the stage
            findings.miss(f"stages.{name}", str(error))
    except (ValueError, OSError) as error:
        if not findings.errors:  # else a check above has reported it, most likely
            findings.error(f"stages.{name}", str(error).splitlines()[0])
    return None
