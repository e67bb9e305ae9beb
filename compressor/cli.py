"""The `compressor` command. Exit codes: 0 done, 1 a stage failed, 2 recipe or command is wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from compressor import __version__
from compressor import commands as do
from compressor.commands import DONE, FAILED, WRONG
from compressor.errors import RecipeError, StageError, Unreachable
from compressor.printed import brief, complain, printable
from compressor.processes import forget_launchers
from compressor.redaction import redacted_text
from compressor.shortage import told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Never lets a user's mistake, or a stage's failure, show a traceback."""
    # OpenMP's threads spin for milliseconds when they wait. Where another program has the other
    # core, that makes small models 4 times slower (measured: 6.6 against 29 rows/s); this is as
    # fast as the default where nothing else runs. Read when torch is imported, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    forget_launchers()
    _open_closed_outputs()
    parser = _parser()
    given, rest = parser.parse_known_args(arguments)
    # argparse gives back what stands behind an option: `plan RECIPE --json model=tiny`.
    unknown = [item for item in rest if item.startswith("-") or not hasattr(given, "overrides")]
    if unknown:
        settings = [item.lstrip("-") for item in unknown if "=" in item]
        hint = f"; a setting has no dashes: {' '.join(settings)}" if settings else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    if rest:
        given.overrides = [*given.overrides, *rest]
    if given.command is None:
        parser.print_help()
        return DONE
    try:
        code: int = given.command(given)
    except RecipeError as error:
        for problem in error.problems:
            complain("error", problem)
        if len(error.problems) > 1:
            print(f"{len(error.problems)} errors", file=sys.stderr)
        return WRONG
    except (StageError, Unreachable) as error:
        complain("error", error)
        return FAILED
    except KeyboardInterrupt:
        goes_on = given.command is do.run_command and not given.rehearse
        with suppress(KeyboardInterrupt, BrokenPipeError):
            hint = "; the same command goes on from here" if goes_on else ""
            print(f"\ninterrupted{hint}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output (`| head`) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (OSError, MemoryError) as error:
        complain("error", told(error) or error)
        return FAILED
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command, of which it repeats parts, as any other error is told."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(brief(redacted_text(message))))


def _open_closed_outputs() -> None:
    """Where there is no standard output (`>&-`, some services), what is printed goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # stays open


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="compressor", description="Compress transformer models from YAML recipes."
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"compressor {__version__}")
    commands = parser.add_subparsers(title="commands")

    def recipe_command(name: str, command: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("recipe", help="a checked-in recipe, such as homework/v3, or a .yaml file")
        # Without a default argparse says, where the recipe is missing, that these are as well.
        text = "Hydra overrides, such as stages.finetune.epochs=3"
        sub.add_argument("overrides", nargs="*", default=[], help=text)
        return sub

    run = recipe_command(
        "run", do.run_command, "Run a recipe; what the store has is not run again."
    )
    run.add_argument(
        "-m",
        "--multirun",
        action="store_true",
        help="sweep over overrides such as a=0.1,0.3, or search where the recipe has a `search`",
    )
    run.add_argument("-q", "--quiet", action="store_true", help="print the final table alone")
    run.add_argument(
        "--rehearse",
        action="store_true",
        help="run the whole chain on a tiny model and a few rows, and check it; keeps nothing",
    )
    plan = recipe_command("plan", do.plan_command, "Show what a run would do. Loads no weights.")
    plan.add_argument("--json", action="store_true", help="a list of stages, as JSON")
    plan.add_argument(
        "-m", "--multirun", action="store_true", help="what a sweep shares, and what it would take"
    )

    def past_command(
        name: str, command: Any, text: str, *, as_json: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        many = "+" if name == "compare" else None
        sub.add_argument(
            "run", nargs=many, help="a run's directory, or a recipe's name for its latest run"
        )
        sub.add_argument(
            "--outputs", type=Path, default=Path("outputs"), help="where a recipe's runs are"
        )
        if as_json:
            sub.add_argument("--json", action="store_true", help="all of it, as JSON")
        return sub

    show = past_command("show", do.show_command, "Show a run and its results, or a sweep's points.")
    show.add_argument(
        "--scores", action="store_true", help="precision, recall and F1 of every ROUGE as well"
    )
    compare = past_command("compare", do.compare_command, "Compare runs with the first of them.")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write a page with charts too")
    why = past_command(
        "why", do.why_command, "Say why a stage ran, or that it came from the store."
    )
    why.add_argument("stage", help="a stage of the run")
    again = past_command(
        "reproduce", do.reproduce_command, "Run a run's recipe again, and compare what comes out."
    )
    again.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="secrets: they are not recorded",
    )
    again.add_argument("--into", type=Path, metavar="DIR", help="the outputs of the new run")

    past_command("watch", do.watch_command, "Follow a run from another terminal.", as_json=False)

    _add_gc(commands)
    _add_doctor(commands)

    stages = commands.add_parser("stages", help="List the stages, or describe one.")
    stages.set_defaults(command=do.stages_command)
    stages.add_argument("stage", nargs="?")
    stages.add_argument("--json", action="store_true", help="with every setting, as JSON")

    recipes = commands.add_parser("recipes", help="List the checked-in recipes.")
    recipes.set_defaults(command=do.recipes_command)

    new = commands.add_parser("new", help="Begin a recipe of your own, from another one.")
    new.set_defaults(command=do.new_command)
    new.add_argument("file", type=Path, help="the new recipe's file, such as my.yaml")
    new.add_argument(
        "--from", dest="parent", default="demo", metavar="RECIPE", help="default: demo"
    )
    new.add_argument("--full", action="store_true", help="have all of it, instead of extending it")
    new.add_argument("--force", action="store_true", help="replace a file that is there")

    schema = commands.add_parser("schema", help="Print the JSON Schema of recipes, for editors.")
    schema.set_defaults(command=do.schema_command)
    which = schema.add_mutually_exclusive_group()
    which.add_argument(
        "--composed", action="store_true", help="of a whole recipe, such as a run's recipe.yaml"
    )
    which.add_argument(
        "--group", choices=("model", "data", "training"), help="of a file in this group"
    )
    schema.add_argument("--output", type=Path, metavar="FILE", help="write it there")

    for name, command, text in (
        ("summarize", do.summarize_command, "Summarize a text from the standard input."),
        (
            "classify",
            do.classify_command,
            "Print the labels' probabilities of a text from the input.",
        ),
    ):
        use = commands.add_parser(name, help=text, description=text)
        use.set_defaults(command=command)
        use.add_argument(
            "place",
            type=Path,
            help="a directory from `export`, a run's, or a recipe's name for its latest run",
        )
        use.add_argument("--lines", action="store_true", help="each line is a text of its own")
        if name == "summarize":
            use.add_argument("--max-length", type=int, help="limit of a summary, in tokens")
            use.add_argument("--num-beams", type=int, default=1, help="1 is greedy")

    score = commands.add_parser("score", help="Score a predictions.csv again.")
    score.set_defaults(command=do.score_command)
    score.add_argument(
        "file",
        type=Path,
        help="with columns `prediction` and `reference`; or a recipe's name, for its latest run's",
    )
    score.add_argument(
        "--rouge-tokenizer",
        choices=("english", "unicode"),
        help="ROUGE's words: stemmed ones of a-z and 0-9, or those of any script; default: by the "
        "references",
    )
    score.add_argument("--json", action="store_true", help="all measures, as JSON")
    return parser


def _add_gc(commands: Any) -> None:
    text = (
        "Remove from the store what no run or sweep under the outputs names, and what killed runs "
        "left. What a run names, or a process uses, stays: to free more, delete run folders first."
    )
    gc = commands.add_parser("gc", help="Remove what no run uses from the store.", description=text)
    gc.set_defaults(command=do.gc_command)
    gc.add_argument(
        "--older-than",
        metavar="AGE",
        help="only what was made, and last used by a run, longer ago: 90m, 12h, 30d, 8w",
    )
    gc.add_argument(
        "--max-size",
        metavar="SIZE",
        help="the longest unused first, until the store is at most so large: 500MB, 20GB, 1.5TB",
    )
    gc.add_argument("--dry-run", action="store_true", help="list what would go; remove nothing")
    gc.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the store is")
    gc.add_argument("--json", action="store_true", help="all of it, as JSON")


def _add_doctor(commands: Any) -> None:
    text = (
        "Check every artifact of the store against its checksums, what killed runs left, links of "
        "runs, disks, versions and devices. Exit code 1 where something is broken."
    )
    doctor = commands.add_parser(
        "doctor", help="Check the store, this machine and what is installed.", description=text
    )
    doctor.set_defaults(command=do.doctor_command)
    doctor.add_argument("--quick", action="store_true", help="sizes of files alone, not contents")
    doctor.add_argument(
        "--repair",
        action="store_true",
        help="set damaged artifacts aside, so that the next run makes them again",
    )
    doctor.add_argument("--outputs", type=Path, default=Path("outputs"), help="where the store is")
    doctor.add_argument("--json", action="store_true", help="all of it, as JSON")


if __name__ == "__main__":
    sys.exit(main())
