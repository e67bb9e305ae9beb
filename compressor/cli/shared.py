"""Arguments, options and printing that commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

if TYPE_CHECKING:
    from compressor.core.console import Console

RecipeName = Annotated[
    str,
    Argument(metavar="RECIPE", help="a checked-in recipe, such as homework/v3, or a .yaml file"),
]


def take_many(metavar: str, text: str) -> Any:
    """Describe an argument of any number of words, such as overrides. `text`: of its help."""
    return Argument(metavar=metavar, default_factory=list, show_default=False, help=text)


Overrides = Annotated[
    list[str], take_many("OVERRIDES", "Hydra overrides, such as stages.finetune.epochs=3")
]
RunName = Annotated[
    str, Argument(metavar="RUN", help="a run's directory, or a recipe's name for its latest run")
]
ModelPlace = Annotated[
    Path,
    Argument(
        metavar="PLACE",
        help="a directory from `export`, a run's, or a recipe's name for its latest run",
    ),
]
Outputs = Annotated[Path, Option(metavar="DIR", help="where runs and the store are")]
OUTPUTS = Path("outputs")
AsJson = Annotated[bool, Option("--json", help="all of it, as JSON")]
Lines = Annotated[bool, Option("--lines", help="each line is a text of its own")]


def open_console(*, stderr: bool = False) -> Console:
    """Open a console on the standard output or error."""
    from compressor.core.console import Console

    # Not a terminal: lines are for files and pipes, which have no width.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 200
    return Console(stderr=stderr, width=width)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    from compressor.core.numbers import json_text

    print(json_text(value))
