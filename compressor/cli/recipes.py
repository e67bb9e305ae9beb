"""Commands about what recipes are made of: `stages`, `recipes`, `new` and `schema`."""

from __future__ import annotations

import inspect
import shlex
import shutil
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from compressor.cli import DONE
from compressor.cli.shared import open_console, print_json
from compressor.core.errors import RecipeError, nearest


def list_stages(
    stage: Annotated[str | None, Argument(metavar="STAGE", help="describe this one")] = None,
    *,
    as_json: Annotated[bool, Option("--json", help="with every setting, as JSON")] = False,
) -> int:
    """List the stages, or describe one."""
    from compressor.stages.base import stage_class, stage_kinds

    if stage is not None and stage not in stage_kinds():
        raise RecipeError(f"no stage {stage!r}; {nearest(stage, stage_kinds())}")
    if as_json:
        from compressor.recipe.describe import describe_stages

        print_json(describe_stages([stage] if stage else stage_kinds()))
    elif stage is not None:
        _describe_stage(stage)
    else:
        for kind in stage_kinds():
            summary = (inspect.getdoc(stage_class(kind)) or "").splitlines()[0]
            print(f"{kind:<16} {summary}")
    return DONE


def _describe_stage(kind: str) -> None:
    from compressor.recipe.describe import render_stage

    print(render_stage(kind, min(100, max(40, shutil.get_terminal_size().columns))))
    if kind == "export":
        _print_formats()


def _print_formats() -> None:
    """Print which models can be exported to which formats, and the weights that each can store."""
    from rich.table import Table

    from compressor.backends.formats import FORMATS, list_support

    print()
    table = Table("head", "model", *FORMATS, header_style="bold")
    for head, model_type, supported in list_support():
        table.add_row(head, model_type, *("yes" if taken else "" for taken in supported))
    table.add_section()
    table.add_row("weights", "", *("\n".join(about.weights) for about in FORMATS.values()))
    open_console().print(table)


def list_recipes() -> int:
    """List the checked-in recipes."""
    from compressor.recipe.files import list_recipes

    print("\n".join(list_recipes()))
    return DONE


def write_recipe(
    file: Annotated[Path, Argument(metavar="FILE", help="the new recipe's, such as my.yaml")],
    *,
    parent: Annotated[str, Option("--from", metavar="RECIPE", help="what it extends")] = "demo",
    full: Annotated[bool, Option("--full", help="have all of it, instead of extending it")] = False,
    force: Annotated[bool, Option("--force", help="replace a file that is there")] = False,
) -> int:
    """Begin a recipe of your own, from another one."""
    from compressor.cli.new_recipe import write_new_recipe

    write_new_recipe(file, parent, full=full, force=force)
    print(f"wrote {file}\nedit it, then: compressor plan {shlex.quote(str(file))}")
    return DONE


def print_schema(
    *,
    composed: Annotated[
        bool, Option("--composed", help="of a whole recipe, such as a run's recipe.yaml")
    ] = False,
    group: Annotated[
        Literal["model", "data", "training"] | None, Option(help="of a file in this group")
    ] = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="write it there")] = None,
) -> int:
    """Print the JSON Schema of recipes, for editors."""
    if composed and group is not None:
        raise RecipeError("--composed and --group are of two schemas: give one of them")
    from compressor.core.files import write_text
    from compressor.recipe import schema

    if group is not None:
        built = schema.build_group_schema(group)
    else:
        built = schema.build_composed_schema() if composed else schema.build_file_schema()
    text = schema.to_text(built)
    if output is None:
        print(text, end="")
    else:
        write_text(output, text)
    return DONE
