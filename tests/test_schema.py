"""The schemas of recipes: they accept what a plan accepts, and the checked-in files are theirs."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.validators import extend

from compressor.form import form_problems
from compressor.recipe import compose
from compressor.recipe_files import recipe_names
from compressor.schema import composed_schema
from compressor.stage import stage_kinds
from tests.recipe_values import as_json, changed, fitting

OFFLINE = ("model=tiny", "data=bills")
EXAMPLES = int(os.environ.get("SCHEMA_EXAMPLES", "300"))
"""Of each fuzz test; `SCHEMA_EXAMPLES=10000` draws other ones each time."""


def _ecma_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Any:
    """In JSON Schema `$` is the end of the text; Python's is also before a last line break."""
    if pattern.endswith("$"):
        pattern = pattern[:-1] + r"\Z"
    return Draft7Validator.VALIDATORS["pattern"](validator, pattern, instance, schema)


Validator = extend(Draft7Validator, {"pattern": _ecma_pattern})
SCHEMA = composed_schema()
COMPOSED = Validator(SCHEMA)
RECIPES = {
    f"{name} {' '.join(overrides)}": as_json(compose(name, overrides).values)
    for name in recipe_names()
    for overrides in ((), OFFLINE)
}
UNSAID = (
    "expected start < end",
    "expected unstructured or N:M with N < M",
    "stands twice",
)
"""What a schema cannot say, being about two values of one recipe: whether a gradual prune starts
before it ends, N < M of a pattern, and the same number under `maximize` and `minimize`."""

PARTS = {
    name: fitting(SCHEMA["definitions"][name], SCHEMA["definitions"])
    for name in (*stage_kinds(), "model", "training", "Bills", "Messages", "Files", "Hub")
} | {"objective": fitting(SCHEMA["properties"]["objective"], SCHEMA["definitions"])}
PARTS |= {"search": fitting(SCHEMA["properties"]["search"], SCHEMA["definitions"])}

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SCHEMA_EXAMPLES" not in os.environ,
    database=None,
    phases=[Phase.generate] if "SCHEMA_EXAMPLES" not in os.environ else tuple(Phase),
    suppress_health_check=list(HealthCheck),
)


def agree(values: dict[str, Any]) -> None:
    """Assert that schema and form say the same of composed values."""
    problems = form_problems(values)
    said = [
        each
        for each in problems
        if not each[1].startswith(UNSAID) and "stands twice" not in each[1]
    ]
    if problems and not said:
        return
    errors = [
        f"{list(each.absolute_path)}: {each.message}" for each in COMPOSED.iter_errors(values)
    ]
    event("accepted" if not problems else "refused")
    assert bool(problems) == bool(errors), f"form: {problems}\nschema: {errors}\nvalues: {values}"


@fuzz
@given(st.sampled_from(sorted(RECIPES)).flatmap(lambda name: changed(RECIPES[name])))
def test_a_changed_recipe_is_accepted_by_the_schema_if_and_only_if_by_planning(values: Any) -> None:
    """Keys dropped, renamed and added, other types, numbers out of range: one verdict."""
    agree(as_json(values))


@fuzz
@given(st.data())
def test_settings_of_a_stage_are_accepted_by_the_schema_if_and_only_if_by_planning(
    data: Any,
) -> None:
    """Any stage, with fields drawn from its schema; the rules between fields decide."""
    kind = data.draw(st.sampled_from(sorted(PARTS)))
    settings = data.draw(PARTS[kind])
    values = dict(RECIPES["demo model=tiny data=bills"])
    if kind in values or kind[0].isupper():
        values["data" if kind[0].isupper() else kind] = settings
    else:
        stage = settings | {"stage": kind} if isinstance(settings, dict) else settings
        values["stages"] = {"one": stage, kind: settings}
    agree(as_json(values))
