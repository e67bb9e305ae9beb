"""What every stage must have, so that adding one is adding one file."""

from __future__ import annotations

import inspect
import re

import pytest
import yaml

from compressor.recipe.describe import render_stage
from compressor.stages.base import Stage, stage_class, stage_kinds


@pytest.mark.parametrize("kind", stage_kinds())
def test_a_stage_explains_itself_with_an_example_that_is_valid(kind: str) -> None:
    """Docstring, example, version, and a description for each field."""
    cls = stage_class(kind)
    assert issubclass(cls, Stage)
    assert cls.version >= 1
    doc = inspect.getdoc(cls) or ""
    examples = re.findall(rf"`{kind}: (\\{{.*?\\}})`(?=\s|$|\.)".replace("\\\\", "\\"), doc)
    assert examples, f"{kind} has no example `{kind}: {{…}}` in its docstring"
    for example in examples:
        cls.model_validate(yaml.safe_load(example))
    for name, field in cls.model_fields.items():
        assert field.description, f"{kind}.{name} has no description"


def test_every_stage_is_listed(run) -> None:
    """`compressor stages` has a line for each, and describes each."""
    listed = run("stages").out
    for kind in stage_kinds():
        assert re.search(rf"^{kind} +\w", listed, re.MULTILINE)
        assert "Example:" in render_stage(kind, 100)
    assert "Example:" in run("stages", "prune").out
