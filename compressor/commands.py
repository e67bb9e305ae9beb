"""What each command does: asks the package, and prints its answer. How it is given is in `cli`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import Problem, RecipeError
from compressor.finite import json_text

if TYPE_CHECKING:
    from rich.console import Console

    from compressor.plan import Plan
    from compressor.recipe import Composed
    from compressor.store import Store

from compressor.files import expand_home
from compressor.printed import complain, printable
from compressor.processes import sigterm_as_keyboard_interrupt

DONE, FAILED, WRONG = 0, 1, 2
"""Exit codes."""


def _console(*, stderr: bool = False) -> Console:
    from compressor.console import PlainConsole

    # Not a terminal: lines are for files and pipes, which have no width.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 200
    return PlainConsole(stderr=stderr, width=width)


def _planned(recipe: str, overrides: Sequence[str]) -> tuple[Composed, Store, Plan]:
    from compressor.plan import plan
    from compressor.recipe import compose
    from compressor.store import Store

    composed = compose(recipe, overrides)
    store = Store.of(composed.recipe.outputs)
    return composed, store, plan(composed, store)


def run_command(given: argparse.Namespace) -> int:
    """`compressor run`."""
    from compressor.processes import UNDER_LAUNCHER
    from compressor.runner import execute

    if UNDER_LAUNCHER in os.environ:
        raise RecipeError(
            "started by torchrun or `accelerate launch`, which would start every stage several "
            "times; start `compressor run …` by itself and set launch.num_processes=N (or "
            f"launch.config_file); if nobody started it so, unset {UNDER_LAUNCHER}"
        )
    with sigterm_as_keyboard_interrupt():
        if given.rehearse:
            return _rehearse(given)
        if given.multirun:
            return _run_sweep(given)
        _refuse_several(given.overrides)
        _, store, plan = _planned(given.recipe, given.overrides)
        execute(plan, store, None, _console(), quiet=given.quiet)
    return DONE


def _rehearse(given: argparse.Namespace) -> int:
    """`compressor run --rehearse`."""
    from compressor.rehearsal.rehearse import rehearse

    if given.multirun:
        raise RecipeError("--rehearse is of one run: leave out -m, and give one value of each key")
    _refuse_several(given.overrides)
    _, _, plan = _planned(given.recipe, given.overrides)
    return DONE if rehearse(plan, _console(), quiet=given.quiet) else FAILED


def _run_sweep(given: argparse.Namespace) -> int:
    """`compressor run -m`: a search where the recipe has one, else a grid."""
    from compressor.sweeps.launch import is_search
    from compressor.sweeps.search import search
    from compressor.sweeps.sweep import multirun

    sweep = search if is_search(given.recipe, given.overrides) else multirun
    return sweep(given.recipe, given.overrides, _console(), quiet=given.quiet)


def _refuse_several(overrides: Sequence[str]) -> None:
    from compressor.sweeps.points import is_sweep

    if swept := [item for item in overrides if is_sweep(item)]:
        raise RecipeError(f"{swept[0]!r} gives several values: add -m for a sweep over them")


def _plan_sweep(given: argparse.Namespace) -> int:
    """`compressor plan -m`."""
    from compressor.sweeps.launch import is_search
    from compressor.sweeps.search_plan import print_search_plan
    from compressor.sweeps.sweep import print_plan

    if given.json:
        raise RecipeError("--json is of one run's stages; a sweep's plan is a tree")
    show = print_search_plan if is_search(given.recipe, given.overrides) else print_plan
    for problem in show(given.recipe, given.overrides, _console()):
        complain("warning", problem)
    return DONE


def plan_command(given: argparse.Namespace) -> int:
    """`compressor plan`."""
    from compressor.plan_tree import print_plan
    from compressor.recorded import StageTimings

    if given.multirun:
        return _plan_sweep(given)
    _refuse_several(given.overrides)
    _, store, plan = _planned(given.recipe, given.overrides)
    for problem in (*plan.warnings, *plan.unreached):
        complain("warning", problem)
    timings = StageTimings.read(store)
    if given.json:
        print(
            json.dumps(
                [node.summary() | {"seconds": timings.seconds(node)} for node in plan.nodes],
                indent=2,
            )
        )
    else:
        print_plan(plan, timings, _console())
    return DONE


def show_command(given: argparse.Namespace) -> int:
    """`compressor show`."""
    from compressor.explain import show
    from compressor.explain.past import PastRun, find

    folder = find(given.run, given.outputs)
    if show.is_sweep(folder):
        if given.json:
            raise RecipeError(f"--json is of one run; {folder} is a sweep's: it has a sweep.csv")
        show.print_sweep(folder, _console())
        return DONE
    run = PastRun.read(folder)
    if given.json:
        print(json_text(show.about(run)))
        return DONE
    show.print_run(run, _console(), scores=given.scores)
    return DONE


def watch_command(given: argparse.Namespace) -> int:
    """`compressor watch`."""
    from compressor.explain.past import find
    from compressor.watch import watch

    try:
        with sigterm_as_keyboard_interrupt():
            return DONE if watch(find(given.run, given.outputs), _console()) else FAILED
    except KeyboardInterrupt:
        print("\nnot watching any more; the run goes on", file=sys.stderr)
        return DONE


def compare_command(given: argparse.Namespace) -> int:
    """`compressor compare`."""
    from compressor.explain.compare import compare
    from compressor.explain.compare_tables import print_comparison
    from compressor.explain.past import PastRun, find

    if len(given.run) < 2:
        raise RecipeError("compare: expected at least two runs, the baseline first")
    found = compare([PastRun.read(find(name, given.outputs)) for name in given.run])
    if given.html is not None:
        from compressor.explain.page import write_page

        write_page(given.html, found)
    if given.json:
        print(json_text(found.as_json()))
        return DONE
    print_comparison(found, _console())
    if given.html is not None:
        print(f"page: {given.html}")
    return DONE


def why_command(given: argparse.Namespace) -> int:
    """`compressor why`."""
    from compressor.explain.past import PastRun, find
    from compressor.explain.why import explain, print_explanation

    found = explain(PastRun.read(find(given.run, given.outputs)), given.stage)
    if given.json:
        print(json_text([each.as_json() for each in found]))
        return DONE
    for each in found:
        print_explanation(each, _console())
    return DONE


def reproduce_command(given: argparse.Namespace) -> int:
    """`compressor reproduce`: 0 where all is equal that should be, else 1."""
    from compressor.explain.past import PastRun, find
    from compressor.explain.reproduce import into, kept_if_filled, recipe_values, reproduce
    from compressor.explain.reproduction import print_reproduction

    run = PastRun.read(find(given.run, given.outputs))
    run.require_records()
    values = recipe_values(run, given.overrides)
    folder = into(run, given.into, given.outputs)
    with kept_if_filled(folder), sigterm_as_keyboard_interrupt():
        found = reproduce(run, folder, values, _console(stderr=given.json))
    if given.json:
        print(json_text(found.as_json()))
    else:
        print_reproduction(found, _console())
    return DONE if found.equal else FAILED


def stages_command(given: argparse.Namespace) -> int:
    """`compressor stages`."""
    import inspect
    import shutil

    from compressor.errors import nearest
    from compressor.stage import stage_class, stage_kinds

    if given.stage not in (None, *stage_kinds()):
        raise RecipeError(f"no stage {given.stage!r}; {nearest(given.stage, stage_kinds())}")
    if given.json:
        from compressor.fields import describe_stages

        kinds = [given.stage] if given.stage else stage_kinds()
        print(json.dumps(describe_stages(kinds), indent=2))
        return DONE
    if given.stage is None:
        for kind in stage_kinds():
            first = (inspect.getdoc(stage_class(kind)) or "").splitlines()[0]
            print(f"{kind:<16} {first}")
        return DONE
    from compressor.fields import render_stage

    print(render_stage(given.stage, min(100, max(40, shutil.get_terminal_size().columns))))
    if given.stage == "export":
        _print_formats()
    return DONE


def _print_formats() -> None:
    """What can be exported to what."""
    from rich.table import Table

    from compressor.formats import FORMATS, matrix

    print()
    shown = Table("head", "model", *FORMATS, header_style="bold")
    for head, model_type, taken in matrix():
        shown.add_row(head, model_type, *("yes" if each else "" for each in taken))
    shown.add_section()
    shown.add_row("weights", "", *("\n".join(each.weights) for each in FORMATS.values()))
    _console().print(shown)


def recipes_command(_: argparse.Namespace) -> int:
    """`compressor recipes`."""
    from compressor.recipe_files import recipe_names

    print("\n".join(recipe_names()))
    return DONE


def new_command(given: argparse.Namespace) -> int:
    """`compressor new`."""
    from compressor.new import new

    new(given.file, given.parent, full=given.full, force=given.force)
    print(f"wrote {given.file}\nedit it, then: compressor plan {shlex.quote(str(given.file))}")
    return DONE


def schema_command(given: argparse.Namespace) -> int:
    """`compressor schema`."""
    from compressor import schema
    from compressor.files import write_text

    if given.group is not None:
        made = schema.group_schema(given.group)
    else:
        made = schema.composed_schema() if given.composed else schema.file_schema()
    if given.output is None:
        print(schema.to_text(made), end="")
    else:
        write_text(given.output, schema.to_text(made))
    return DONE


def _texts(given: argparse.Namespace) -> list[str]:
    """What came in on the standard input."""
    text = sys.stdin.read().removesuffix("\n")  # which `echo` puts there
    texts = text.split("\n") if given.lines else [text]
    if not any(each.strip() for each in texts):
        raise RecipeError("there is no text on the standard input: compressor … < text")
    return texts


def _place(given: Path) -> Path:
    """What a person named: what lies there, or else the latest run of a recipe of that name."""
    from compressor.explain.past import find

    is_file = given.exists() or given.suffix == ".csv"
    return given if is_file else find(str(given), Path("outputs"))


def gc_command(given: argparse.Namespace) -> int:
    """`compressor gc`: 1 where something could not be removed."""
    from compressor.garbage.gc import Limits, collect_garbage
    from compressor.garbage.printing import gc_as_json, print_gc_result
    from compressor.store import Store

    outputs = expand_home(given.outputs)
    store, limits = Store.of(str(outputs)), Limits.parse(given.older_than, given.max_size)
    say = _console(stderr=True).print
    with sigterm_as_keyboard_interrupt():
        result = collect_garbage(store, outputs, limits, dry_run=given.dry_run, say=say)
    if given.json:
        print(json.dumps(gc_as_json(result, dry_run=given.dry_run), indent=2))
    else:
        print_gc_result(result, store, limits, _console(), dry_run=given.dry_run)
    return FAILED if result.failed else DONE


def doctor_command(given: argparse.Namespace) -> int:
    """`compressor doctor`: 1 where something is broken."""
    from compressor.doctor.integrity import examine
    from compressor.garbage.printing import findings_as_json, print_findings, show_progress
    from compressor.store import Store

    outputs = expand_home(given.outputs)
    store = Store.of(str(outputs))
    with sigterm_as_keyboard_interrupt(), show_progress(_console(stderr=True)) as advance:
        findings = examine(store, outputs, quick=given.quick, repair=given.repair, advance=advance)
    if given.json:
        print(json.dumps(findings_as_json(findings), indent=2))
    else:
        print_findings(findings, _console())
    return FAILED if any(finding.state == "error" for finding in findings) else DONE


def summarize_command(given: argparse.Namespace) -> int:
    """`compressor summarize`."""
    import compressor

    if given.max_length is not None and given.max_length < 2:
        raise RecipeError(f"--max-length: expected at least 2, got {given.max_length}")
    if given.num_beams < 1:
        raise RecipeError(f"--num-beams: expected at least 1, got {given.num_beams}")
    texts, loaded = _texts(given), compressor.load(_place(given.place))
    for summary in loaded.summarize(texts, max_length=given.max_length, num_beams=given.num_beams):
        print(printable(" ".join(summary.split("\n"))))
    return DONE


def classify_command(given: argparse.Namespace) -> int:
    """`compressor classify`."""
    import compressor

    texts, loaded = _texts(given), compressor.load(_place(given.place))
    for labels in loaded.classify(texts):
        ordered = sorted(labels.items(), key=lambda item: -item[1])
        print(printable("  ".join(f"{name} {share:.4f}" for name, share in ordered)))
    return DONE


def score_command(given: argparse.Namespace) -> int:
    """`compressor score`."""
    from rich.table import Table

    from compressor.metrics.label_predictions import is_labelled, score
    from compressor.metrics.predictions import score_predictions
    from compressor.metrics.rouge import warn_of_wordless

    file = _place(given.file)
    file = file / "predictions.csv" if file.is_dir() else file
    try:
        if file.is_file() and is_labelled(file):
            return _print_label_scores(score(file), as_json=given.json)
        scores = score_predictions(file, tokenizer=given.rouge_tokenizer)
    except ValueError as error:
        raise RecipeError([Problem("", str(error))]) from error
    if warning := warn_of_wordless(next(reversed(scores.values()))):
        print(f"warning: {warning}", file=sys.stderr)
    if given.json:
        print(json_text({str(limit): values for limit, values in scores.items()}))
        return DONE
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum", "gen_len", "cut_off")
    shown = Table("max_length", *names, "rougeLsum 95 %", header_style="bold")
    for limit, values in scores.items():
        low, high = values["intervals"]["rougeLsum"]
        cells = (f"{values[name]:.4f}" if name in values else "" for name in names)
        shown.add_row("" if limit is None else str(limit), *cells, f"{low:.4f} … {high:.4f}")
    _console().print(shown)
    print(f"ROUGE's tokenizer: {values['rouge_tokenizer']}")
    return DONE


def _print_label_scores(scores: Mapping[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json_text(scores))
        return DONE
    from rich.markup import escape
    from rich.table import Table

    names = ("positives", "given", "f1", "roc_auc", "average_precision")
    shown = Table("label", *names, header_style="bold")
    for name, values in scores["labels"].items():
        shown.add_row(escape(name), *(_number(values[key]) for key in names))
    shown.add_section()
    means = (scores[key] for key in ("macro_f1", "roc_auc", "average_precision"))
    shown.add_row("mean", "", "", *map(_number, means))
    _console().print(shown)
    print(f"micro F1 {scores['micro_f1']:.4f}, rows without a mistake {scores['accuracy']:.4f}")
    return DONE


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
