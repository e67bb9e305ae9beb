"""The `compressor` command's entry: which commands there are, and what their errors become."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from compressor import __version__
from compressor.cli import DONE, FAILED, WRONG, inspect, predict, recipes, run, store
from compressor.core.errors import RecipeError, StageError, Unreachable
from compressor.core.failures import explain_error
from compressor.core.printing import print_error, shorten
from compressor.core.processes import forget_launchers

COMMANDS: dict[str, Callable[..., int]] = {
    "run": run.run_recipe,
    "plan": run.plan_recipe,
    "show": inspect.show_run,
    "compare": inspect.compare_runs,
    "why": inspect.explain_stage,
    "reproduce": inspect.reproduce_run,
    "watch": inspect.watch_run,
    "gc": store.collect_garbage,
    "doctor": store.check_store,
    "stages": recipes.list_stages,
    "recipes": recipes.list_recipes,
    "new": recipes.write_recipe,
    "schema": recipes.print_schema,
    "write": predict.write_texts,
    "summarize": predict.write_texts,
    "classify": predict.classify_texts,
    "score": predict.score_predictions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. Each error is a line; none shows a traceback."""
    # OpenMP's threads spin for milliseconds when they wait. Where another program has the other
    # core, that makes small models 4 times slower (measured: 6.6 against 29 rows/s); this is as
    # fast as the default where nothing else runs. Read when torch is imported, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    forget_launchers()
    _open_closed_outputs()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _call_command(words or ["--help"])
    except typer.TyperException as error:
        print_error(shorten(_explain_usage_error(error, words)))
        return WRONG
    except RecipeError as error:
        for problem in error.problems:
            print_error(problem)
        if len(error.problems) > 1:
            print(f"{len(error.problems)} errors", file=sys.stderr)
        return WRONG
    except (StageError, Unreachable) as error:
        print_error(error)
        return FAILED
    except KeyboardInterrupt:
        goes_on = words[:1] == ["run"] and "--rehearse" not in words
        with suppress(KeyboardInterrupt, BrokenPipeError):
            hint = "; the same command goes on from here" if goes_on else ""
            print(f"\ninterrupted{hint}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader of our output (`| head`) has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (OSError, MemoryError) as error:
        print_error(explain_error(error) or error)
        return FAILED


def _call_command(words: list[str]) -> int:
    # Typer's own `main` would end the process itself, and turn Ctrl-C into an exit code of its own.
    try:
        with get_command(build_app()).make_context("compressor", words) as context:
            code: int = context.command.invoke(context)
            return code
    except typer.Exit as done:  # --help and --version
        return done.exit_code
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # a library broke as it cleaned up
            raise KeyboardInterrupt from error
        raise


def build_app() -> typer.Typer:
    """Build the parser of all commands."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,  # whose import is a third of the time that `--help` takes
        context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options_of_all)
    for name, command in COMMANDS.items():
        app.command(name)(command)
    return app


def _print_version(is_asked: bool) -> None:  # noqa: FBT001  # Typer passes it so
    if is_asked:
        print(f"compressor {__version__}")
        raise typer.Exit


def _options_of_all(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Compress transformer models from YAML recipes."""


def _explain_usage_error(error: typer.TyperException, words: Sequence[str]) -> str:
    """Say what is wrong with a line of arguments, and where its help is."""
    message = error.format_message().rstrip(".")
    option = getattr(error, "option_name", None)
    settings = [word.lstrip("-") for word in words if option and word.startswith(f"{option}=")]
    if settings:
        message += f"; a setting has no dashes: {' '.join(settings)}"
    context = getattr(error, "ctx", None)
    command = "compressor" if context is None else context.command_path
    options = {o for p in context.command.params for o in p.opts} if context is not None else set()
    written = [word for word in words if "=" in word and f"--{word.partition('=')[0]}" in options]
    if written:
        options_meant = " ".join(f"--{word.replace('=', ' ', 1)}" for word in written)
        message += f"; an option has dashes: {options_meant}"
    return f"{message[0].lower()}{message[1:]}; see {command} --help"


def _open_closed_outputs() -> None:
    """Print to nowhere where there is no standard output (`>&-`, some services)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115  # stays open


if __name__ == "__main__":
    sys.exit(main())
