"""Check a recipe as a whole, before any of its stages is planned."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from compressor.core.errors import Problem, RecipeError, Unreachable, nearest
from compressor.data.source_base import Split
from compressor.recipe.compose import ComposedRecipe, Recipe
from compressor.stages.base import SIZES, Stage, stage_kinds

Stages = Mapping[str, tuple[str, Stage]]
"""Name → (kind, typed stage) of every valid stage of a recipe, in its pipeline or not."""


@dataclass
class Findings:
    """Collect everything that is wrong with a recipe, each with its place in the files."""

    composed: ComposedRecipe
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    unreached: list[Problem] = field(default_factory=list)
    """What only a network could tell."""

    def error(self, path: str, message: str) -> None:
        self.errors.append(self.composed.locate_problem(path, message))

    def warn(self, path: str, message: str) -> None:
        self.warnings.append(self.composed.locate_problem(path, message))

    def miss(self, path: str, message: str) -> None:
        self.unreached.append(self.composed.locate_problem(path, message))

    def raise_errors(self) -> None:
        """Raise RecipeError with all errors, if there are any."""
        if self.errors:
            raise RecipeError(list(dict.fromkeys(self.errors)))


def check_recipe(composed: ComposedRecipe, stages: Stages, findings: Findings) -> None:
    """Report names, goals and rows that cannot be right."""
    _check_pipeline(composed.recipe, stages, findings)
    _check_unused(composed, stages, findings)
    _check_skip(composed.recipe, findings)
    _check_start(composed.recipe, stages, findings)
    _check_objective(composed.recipe, stages, findings)
    _check_data(composed.recipe, stages, findings)


def is_skipped(recipe: Recipe, stages: Stages, name: str) -> bool:
    """Return whether `skip` names a stage, or its kind."""
    return not {name, stages[name][0]}.isdisjoint(recipe.skip)


def _check_pipeline(recipe: Recipe, stages: Stages, findings: Findings) -> None:
    for index, name in enumerate(recipe.pipeline):
        path = f"pipeline.{index}"
        if name in recipe.stages:
            if name in recipe.pipeline[:index]:
                message = "stands twice; give the second a name of its own with `stage:`"
                findings.error(path, f"{name!r} {message}")
            continue
        if difflib.get_close_matches(name, recipe.stages.keys() - stages.keys()):
            continue  # that stage's name is wrong, most likely, and reported
        hint = nearest(name, recipe.stages)
        if len(name.split()) > 1 and set(name.split()) <= recipe.stages.keys():
            hint = "a ',' is missing between its names"
        findings.error(path, f"no stage {name!r} under `stages`; {hint}")


def _check_unused(composed: ComposedRecipe, stages: Stages, findings: Findings) -> None:
    """Report stages that are not in the pipeline; a file may have them for its children."""
    pipeline = composed.recipe.pipeline
    for name in composed.recipe.stages:
        if name in pipeline or name not in stages:
            continue
        if composed.is_in_file(f"stages.{name}"):
            findings.warn(f"stages.{name}", "is not in the pipeline and does nothing")
        else:
            hint = nearest(name, pipeline)
            findings.error(f"stages.{name}", f"no stage {name!r} in this recipe; {hint}")


def _check_skip(recipe: Recipe, findings: Findings) -> None:
    valid = {*recipe.stages, *stage_kinds()}
    for index, name in enumerate(recipe.skip):
        if name not in valid:
            findings.error(f"skip.{index}", f"no stage {name!r}; {nearest(name, valid)}")


def _check_start(recipe: Recipe, stages: Stages, findings: Findings) -> None:
    """Report the first stage that takes the model of the one before it, where there is none."""
    for name in recipe.pipeline:
        if name not in stages:  # reported, and might have given one
            return
        stage = stages[name][1]
        if is_skipped(recipe, stages, name):
            continue
        if stage.needs_model and stage.model is None:
            message = "needs a model, but no stage before it gives one"
            findings.error(f"stages.{name}", f"{message}; a pipeline begins with `load`")
            return
        if stage.changes_model:
            return


def _check_objective(recipe: Recipe, stages: Stages, findings: Findings) -> None:
    """Report a goal whose stage does not run, or does not leave such a number."""
    if recipe.search is not None and recipe.objective is None:
        example = "objective: {maximize: evaluate.rougeLsum}"
        findings.error("search", f"needs an objective, to know what is better: `{example}`")
    for goal in recipe.objective.goals if recipe.objective is not None else ():
        path, name = f"objective.{goal.direction}", goal.stage.partition("@")[0]
        if name not in recipe.pipeline:
            hint = nearest(name, recipe.pipeline)
            findings.error(path, f"{goal.path}: no stage {name!r} in the pipeline; {hint}")
        elif name not in stages:
            continue  # reported
        elif is_skipped(recipe, stages, name):
            findings.warn(path, f"{goal.path}: {name!r} is skipped, and leaves nothing")
        elif goal.metric not in (valid := {*stages[name][1].list_measures(), *SIZES}):
            hint = nearest(goal.metric, valid)
            findings.error(path, f"{name!r} leaves no number {goal.metric!r}; {hint}")


def _check_data(recipe: Recipe, stages: Stages, findings: Findings) -> None:
    """Check each split that a stage of the pipeline reads."""
    names = [n for n in recipe.pipeline if n in stages and not is_skipped(recipe, stages, n)]
    splits: dict[Split, None] = dict.fromkeys(
        split for name in names for split in stages[name][1].reads()
    )
    for split in splits:
        try:
            recipe.data.check(
                split,
                lambda path, message: findings.error(f"data.{path}", message),
                lambda path, message: findings.warn(f"data.{path}", message),
            )
        except Unreachable as error:
            findings.miss("data", str(error))
