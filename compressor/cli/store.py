"""Commands about the store: `gc` and `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Annotated

from typer import Option

from compressor.cli import DONE, FAILED
from compressor.cli.shared import OUTPUTS, AsJson, Outputs, open_console, print_json
from compressor.core.processes import sigterm_as_keyboard_interrupt


def collect_garbage(
    *,
    older_than: Annotated[
        str | None,
        Option(
            metavar="AGE",
            help="only what was made, and last used by a run, longer ago: 90m, 12h, 30d, 8w",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="the longest unused first, until the store is at most so large: 500MB, 20GB",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="list what would go; remove nothing")
    ] = False,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Remove what no run uses from the store.

    That is what no run or sweep under the outputs names, and what killed runs left. What a run
    names, or a process uses, stays: to free more, delete run folders first. Exit code 1 where
    something could not be removed.
    """
    from compressor.cli import store_printing
    from compressor.core.files import expand_home
    from compressor.engine.store import gc
    from compressor.engine.store.store import Store

    folder = expand_home(outputs)
    store, limits = Store.of(str(folder)), gc.Limits.parse(older_than, max_size)
    say = open_console(stderr=True).print
    with sigterm_as_keyboard_interrupt():
        result = gc.collect_garbage(store, folder, limits, dry_run=dry_run, say=say)
    if as_json:
        print_json(store_printing.gc_as_json(result, dry_run=dry_run))
    else:
        store_printing.print_gc_result(result, store, limits, open_console(), dry_run=dry_run)
    return FAILED if result.failed else DONE


def check_store(
    *,
    quick: Annotated[bool, Option("--quick", help="sizes of files alone, not contents")] = False,
    repair: Annotated[
        bool,
        Option("--repair", help="set damaged artifacts aside; the next run makes them again"),
    ] = False,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Check the store, this machine and what is installed.

    That is every artifact against its checksums, what killed runs left, links of runs, disks,
    versions and devices. Exit code 1 where something is broken.
    """
    from rich.progress import Progress

    from compressor.cli import store_printing
    from compressor.core.files import expand_home
    from compressor.engine.store.integrity import examine
    from compressor.engine.store.store import Store

    folder, console = expand_home(outputs), open_console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with sigterm_as_keyboard_interrupt(), bar:
        move = partial(bar.update, bar.add_task("artifacts"))
        findings = examine(
            Store.of(str(folder)),
            folder,
            quick=quick,
            repair=repair,
            advance=lambda done, total: move(completed=done, total=total),
        )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        store_printing.print_findings(findings, open_console())
    return FAILED if any(finding.state == "error" for finding in findings) else DONE
