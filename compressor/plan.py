"""From a recipe to a plan: ordered, typed, keyed nodes with the facts of each model. No weights.

Everything that can be known to be wrong is found here, and told all at once.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from typing import Any

from compressor import launching
from compressor.architectures import Facts
from compressor.backends import BackendName
from compressor.data.sources import Data, Split
from compressor.errors import Problem, RecipeError, StageError, Unreachable, nearest
from compressor.form import full_path, typed_stages
from compressor.formats import versions
from compressor.recipe import Composed
from compressor.stage import SIZES, Artifact, Planning, Report, Stage, stage_kinds
from compressor.store import Store


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
    def label(self) -> str:
        return self.stage.label or self.name

    def summary(self) -> dict[str, Any]:
        """What `plan --json` prints of a node."""
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
        }


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    composed: Composed
    nodes: tuple[Node, ...]
    warnings: tuple[Problem, ...] = ()
    unreached: tuple[Problem, ...] = ()

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def data_for(self, node: Node) -> Data:
        """The recipe's data, held as it was when planned where `node` reads any of it."""
        data = self.composed.recipe.data
        return data.pinned() if node.stage.data_splits() else data

    def require_unchanged(self, node: Node) -> None:
        """Raise StageError where what `node` reads is no longer what its key says."""
        for split, planned in (node.key_parts.get("data") or {}).items():
            if self.composed.recipe.data.content_key(split) != planned["content"]:
                raise StageError(f"the {split} rows have changed since this run was planned")
        identity = node.stage.identity(node.planning)
        changed = [
            part for part, is_ in node.key_parts["identity"].items() if identity[part] != is_
        ]
        if changed:
            raise StageError(f"its {' and '.join(changed)} changed since this run was planned")

    def require_reachable(self) -> None:
        """Raise RecipeError where something the run needs cannot be reached from here."""
        if self.unreached:
            raise RecipeError(list(self.unreached))


@cache
def framework_versions() -> dict[str, str]:
    """major.minor of the libraries that can change a result, without importing them."""
    return {
        name: ".".join(metadata.version(name).split("+")[0].split(".")[:2])
        for name in ("torch", "transformers")
    }


def digest(parts: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def plan(composed: Composed, store: Store) -> Plan:
    """Plan a recipe. Raises RecipeError with every problem that can be found without running."""
    planner = _Planner(composed, store)
    planner.run()
    launching.check(composed.recipe.launch, planner.report)
    if planner.problems:
        raise RecipeError(list(dict.fromkeys(planner.problems)))
    return Plan(
        composed,
        tuple(planner.nodes.values()),
        tuple(dict.fromkeys(planner.warnings)),
        tuple(dict.fromkeys(planner.unreached)),
    )


@dataclass
class _Planner:
    composed: Composed
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unreached: list[Problem] = field(default_factory=list)
    stages: dict[str, tuple[str, Stage]] = field(default_factory=dict)
    """Stage name → (kind, typed stage), for every valid stage, in the pipeline or not."""
    last_model: str | None = None
    gave_model: dict[str, str | None] = field(default_factory=dict)
    """Stage name → the node that has the model as it was after that stage."""
    placed: set[str] = field(default_factory=set)
    """Stages that are not skipped and have their nodes, or a problem that was reported."""
    lacks_model: bool = False
    """Whether a stage without a model was found: those after it lack the same."""
    skipped_exports: set[str] = field(default_factory=set)
    checked_splits: set[Split] = field(default_factory=set)

    def run(self) -> None:
        self.stages = typed_stages(self.composed.recipe, self.report)
        self._check_names()
        self._check_objective()
        for name in dict.fromkeys(self.composed.recipe.pipeline):
            if name in self.stages:
                self._place(name, *self.stages[name])

    def report(self, path: str, message: str) -> None:
        self.problems.append(self.composed.problem(path, message))

    def _check_names(self) -> None:
        recipe = self.composed.recipe
        for index, name in enumerate(recipe.pipeline):
            if name not in recipe.stages:
                if difflib.get_close_matches(name, recipe.stages.keys() - self.stages.keys()):
                    continue  # that stage's name is wrong, most likely, and reported
                hint = nearest(name, recipe.stages)
                if len(name.split()) > 1 and set(name.split()) <= recipe.stages.keys():
                    hint = "a ',' is missing between its names"
                self.report(f"pipeline.{index}", f"no stage {name!r} under `stages`; {hint}")
            elif name in recipe.pipeline[:index]:
                message = f"{name!r} stands twice; give the second a name of its own with `stage:`"
                self.report(f"pipeline.{index}", message)
        for name in recipe.stages:
            if name not in recipe.pipeline and name not in self.stages:
                continue  # reported
            if name not in recipe.pipeline and not self.composed.in_a_file(f"stages.{name}"):
                hint = nearest(name, recipe.pipeline)
                self.report(f"stages.{name}", f"no stage {name!r} in this recipe; {hint}")
            elif name not in recipe.pipeline:
                message = "is not in the pipeline and does nothing"
                self.warnings.append(self.composed.problem(f"stages.{name}", message))
        for index, name in enumerate(recipe.skip):
            if name not in recipe.stages and name not in stage_kinds():
                valid = {*recipe.stages, *stage_kinds()}
                self.report(f"skip.{index}", f"no stage {name!r}; {nearest(name, valid)}")

    def _check_objective(self) -> None:
        """Report a goal whose stage does not run, or does not leave such a number."""
        recipe = self.composed.recipe
        if recipe.search is not None and recipe.objective is None:
            example = "objective: {maximize: evaluate.rougeLsum}"
            self.report("search", f"needs an objective, to know what is better: `{example}`")
        for goal in recipe.objective.goals if recipe.objective is not None else ():
            path, stage = f"objective.{goal.direction}", goal.stage.partition("@")[0]
            if stage not in recipe.pipeline:
                hint = nearest(stage, recipe.pipeline)
                self.report(path, f"{goal.path}: no stage {stage!r} in the pipeline; {hint}")
            elif stage in self.stages and {stage, self.stages[stage][0]} & set(recipe.skip):
                message = f"{goal.path}: {stage!r} is skipped, and leaves nothing"
                self.warnings.append(self.composed.problem(path, message))
            elif stage in self.stages:
                valid = {*self.stages[stage][1].measures, *SIZES}
                if goal.metric not in valid:
                    hint = nearest(goal.metric, valid)
                    self.report(path, f"{stage!r} leaves no number {goal.metric!r}; {hint}")

    def _place(self, name: str, kind: str, stage: Stage) -> None:
        """Turn a stage into its node or, where it reports on several models, nodes."""
        if {name, kind} & set(self.composed.recipe.skip):
            if stage.exports:
                self.skipped_exports.add(name)
            else:
                self.gave_model[name] = self.last_model
            return
        if isinstance(stage, Report):
            self._place_report(name, kind, stage)
        else:
            self._place_stage(name, kind, stage)
        self.placed.add(name)

    def _place_stage(self, name: str, kind: str, stage: Stage) -> None:
        model = self._model_of(name, stage)
        if stage.needs_model and model is None:
            return
        artifacts = self._artifacts_of(name, stage, model)
        if artifacts is None:  # reported; what comes after is checked with the model before
            self.gave_model[name] = model
            return
        self._add(name, name, kind, stage, model, artifacts)
        if stage.changes_model:
            self.last_model = self.gave_model[name] = name

    def _artifacts_of(self, name: str, stage: Stage, model: str | None) -> Mapping[str, str] | None:
        """Role → node of what a stage reads beside its model; None where that is reported."""
        found = {}
        for role, other in stage.models_read().items():
            node = self._earlier(other, name, role)
            if node is not None:
                found[role] = node
            elif other in self.gave_model:  # skipped, with no model before it
                self.report(f"stages.{name}.{role}", f"{other!r} is skipped, and gives no model")
        for role, wanted in stage.artifacts().items():
            node = self._artifact(wanted, f"stages.{name}.{role}", model)
            if node is not None:
                found[role] = node
        roles = {*stage.models_read(), *stage.artifacts()}
        return found if found.keys() == roles else None

    def _artifact(self, wanted: Artifact, path: str, model: str | None) -> str | None:
        """The node whose artifact a stage, which takes `model`, wants at `path`."""
        other, nodes = wanted.stage, list(self.nodes.values())
        named = [node for node in nodes if node.name.partition("@")[0] == other]
        fitting = [
            node
            for node in nodes
            if node.kind == wanted.kind and (node.model == model or not wanted.of_same_model)
        ]
        for node in named:
            if node in fitting:
                return node.name
        hint = nearest(other, {node.name.partition("@")[0] for node in fitting})
        pipeline = self.composed.recipe.pipeline
        wrong_itself = other in self.placed if other in self.stages else other in pipeline
        if wrong_itself and not named:
            return None  # which has been reported
        if named and named[0].kind != wanted.kind:
            what = f"expected a {wanted.kind!r} stage, and {other!r} is a {named[0].kind!r}; {hint}"
        elif named:
            what = f"{other!r} looks at the model of {named[0].model!r}, not of {model!r}"
        elif other in pipeline:
            what = f"{other!r} comes later in the pipeline, or is skipped"
        else:
            what = f"no stage {other!r} before it; {hint}"
            if not fitting:
                what = f"it needs a {wanted.kind!r} stage before it in the pipeline"
        self.report(path, what)
        return None

    def _place_report(self, name: str, kind: str, stage: Report) -> None:
        against: str | None = getattr(stage, "against", None)
        own = self._model_of(name, stage)
        named = list(stage.models)
        if against is not None:
            named = [against, *(m for m in named or [stage.model or own or ""] if m != against)]
        if not named:
            if own is not None and stage.together:
                self._add_together(name, kind, stage, [own])
            elif own is not None:
                self._add(name, name, kind, stage, own, {})
            return
        if stage.together:
            nodes = [self._earlier(m, name, "models", exports=stage.runs_exports) for m in named]
            self._add_together(name, kind, stage, list(dict.fromkeys(filter(None, nodes))))
            return
        seen: dict[str, str] = {}  # node with a model → node that reports on it
        held_to: str | None = None
        for model in named:
            key = "against" if model == against else "models"
            node = self._earlier(model, name, key, exports=stage.runs_exports)
            if node is None or node in seen:  # a skipped stage left the model as it was before
                continue
            seen[node] = f"{name}@{model}"
            reads = {"against": held_to} if held_to is not None else {}
            held_to = seen[node] if model == against else held_to
            self._add(seen[node], name, kind, stage, node, reads)

    def _model_of(self, name: str, stage: Stage) -> str | None:
        if not stage.needs_model:
            return None
        if stage.model is not None:
            runs_exports = isinstance(stage, Report) and stage.runs_exports
            return self._earlier(stage.model, name, "model", exports=runs_exports)
        if self.last_model is None and not self.lacks_model:
            self.lacks_model = True
            message = (
                "needs a model, but no stage before it gives one; a pipeline begins with `load`"
            )
            if self._all_sound_before(name):
                self.report(f"stages.{name}", message)
        return self.last_model

    def _all_sound_before(self, name: str) -> bool:
        """Whether every stage before `name` in the pipeline is what it should be."""
        pipeline = self.composed.recipe.pipeline
        return all(each in self.stages for each in pipeline[: pipeline.index(name)])

    def _earlier(self, model: str, name: str, key: str, *, exports: bool = False) -> str | None:
        """The node with the model of stage `model`, which stage `name` refers to at `key`.

        `exports`: or the node of an export.
        """
        if model in self.gave_model:
            return self.gave_model[model]
        known = self.stages.get(model)
        is_export = exports and known is not None and known[1].exports
        if is_export and (model in self.nodes or model in self.placed):
            return model if model in self.nodes else None  # which has been reported
        recipe, path = self.composed.recipe, f"stages.{name}.{key}"
        valid = set(self.gave_model)
        if exports:
            valid |= {node.name for node in self.nodes.values() if node.stage.exports}
        if is_export and model in self.skipped_exports:
            message = f"{model!r} is skipped, and is not looked at"
            if key == "models":
                self.warnings.append(self.composed.problem(path, message))
            else:
                self.report(path, message)
        elif known is not None and not known[1].changes_model and not is_export:
            self.report(path, f"{model!r} gives no model; {nearest(model, valid)}")
        elif model in recipe.pipeline and model not in self.stages:
            pass  # that stage is wrong itself, and reported
        elif model in recipe.pipeline:
            self.report(path, f"{model!r} comes later in the pipeline; {name!r} cannot take it")
        else:
            self.report(path, f"no stage {model!r}; {nearest(model, valid)}")
        return None

    def _add_together(self, name: str, kind: str, stage: Report, models: list[str]) -> None:
        """One node that looks at all of `models`; each is checked as if it were the only one."""
        if not models:  # each is reported
            return
        for model in models[1:]:
            stage.preview(self._planning(name, stage, model, {}))
        self._add(name, name, kind, stage, models[0], {model: model for model in models})

    def _add(
        self,
        node: str,
        name: str,
        kind: str,
        stage: Stage,
        model: str | None,
        artifacts: Mapping[str, str],
    ) -> None:
        planning = self._planning(name, stage, model, artifacts)
        for split in stage.data_splits():
            self._check_split(split)
        facts = stage.preview(planning)
        parts = self._key_parts(name, kind, stage, planning, model, artifacts)
        key = digest(parts) if parts is not None else None
        cached = key is not None and self.store.has(key)
        self.nodes[node] = Node(
            node, kind, stage, model, artifacts, key, parts or {}, facts, cached, planning
        )

    def _planning(
        self, name: str, stage: Stage, model: str | None, artifacts: Mapping[str, str]
    ) -> Planning:
        """What stage `name` may look at; what it reports goes to the full path in the recipe."""
        recipe = self.composed.recipe

        def full(path: str, data: str) -> str:
            return path if path.startswith(data) else full_path(recipe, name, type(stage), path)

        return Planning(
            facts=self.nodes[model].facts if model is not None and model in self.nodes else None,
            data=recipe.data,
            launch=recipe.launch,
            outputs=self.store.folder.parent,
            problem=lambda path, message: self.report(full(path, "data."), message),
            unreached=lambda path, message: self.unreached.append(
                self.composed.problem(full(path, "data"), message)
            ),
            backend=self._backend(model),
            others={role: self.nodes[artifacts[role]].facts for role in stage.models_read()},
        )

    def _backend(self, model: str | None) -> BackendName:
        return self.nodes[model].stage.runs_in() if model in self.nodes else "torch"

    def _check_split(self, split: Split) -> None:
        if split not in self.checked_splits:
            self.checked_splits.add(split)
            data = self.composed.recipe.data
            try:
                data.check(
                    split,
                    lambda path, message: self.report(f"data.{path}", message),
                    lambda path, message: self.warnings.append(
                        self.composed.problem(f"data.{path}", message)
                    ),
                )
            except Unreachable as error:
                self.unreached.append(self.composed.problem("data", str(error)))

    def _key_parts(
        self,
        name: str,
        kind: str,
        stage: Stage,
        planning: Planning,
        model: str | None,
        artifacts: Mapping[str, str],
    ) -> dict[str, Any] | None:
        """What a node's key is made of; None where some of it cannot be reached from here.

        The rule: equal keys, equal results. Whatever decides a byte that a stage leaves is in its
        key by content, never by path or time, and is compared again before and after the stage runs
        (`Plan.require_unchanged`): settings, the keys of what it reads from the store, rows, and by
        `identity` files of the recipe's own, commits and the machine that a time is of. A mapping's
        order is not in a key (`digest` sorts), so a stage either sorts it or names it there. And
        what decides nothing is in no key: names, paths, labels, files that nobody reads.

        Left out on purpose, since they move a result by its last bits or are said elsewhere:
        threads, processes and the device (`computed_with`); variables of the environment, of which
        no stage reads any; releases of packages other than torch, transformers, what writes or runs
        an export (`packages`), trains a tokenizer, or scores (`identity`): `environment.json` has
        them. `tests/test_keys.py` walks the files that runs open.
        """
        recipe = self.composed.recipe
        reads = {**({"model": model} if model is not None else {}), **artifacts}
        inputs = {role: self.nodes[node].key for role, node in reads.items()}
        if None in inputs.values():
            return None
        together = isinstance(stage, Report) and stage.together
        in_order = [[node, self.nodes[node].key] for node in artifacts.values()]
        packages = {p for node in reads.values() for p in self.nodes[node].stage.packages()}
        try:
            data = {split: recipe.data.key(split, stage.reads) for split in stage.data_splits()}
            identity = dict(stage.identity(planning))
        except Unreachable as error:
            if not self.unreached:  # a stage's own check names the key; this one only the stage
                self.unreached.append(self.composed.problem(f"stages.{name}", str(error)))
            return None
        except (ValueError, OSError) as error:
            if not self.problems:  # else the checks above have told it, most likely
                self.report(f"stages.{name}", str(error).splitlines()[0])
            return None
        return {
            "stage": kind,
            "version": stage.version,
            "parameters": stage.parameters(),
            "inputs": in_order if together else inputs,
            "data": data,
            "identity": identity,
            "seed": recipe.seed if stage.draws() else None,
            "frameworks": framework_versions() | versions({*stage.packages(), *packages}),
        }
