"""The commands `gc` and `doctor`, which clean and check the store."""

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
            help="only what was made, and last used by a run, before that: 90m, 12h, 30d, 8w",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="only until the store is this small, the longest unused first: 500MB, 20GB",
        ),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="list what would be removed, and remove nothing")
    ] = False,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Remove from the store what no run uses.

    That is whatever no run or sweep under the outputs refers to, and what killed runs left behind.
    To free more, delete run folders first. Exit code 1 if something could not be removed.
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
    quick: Annotated[
        bool, Option("--quick", help="check only the sizes of files, not their contents")
    ] = False,
    repair: Annotated[
        bool,
        Option("--repair", help="set damaged artifacts aside, for the next run to make again"),
    ] = False,
    outputs: Outputs = OUTPUTS,
    as_json: AsJson = False,
) -> int:
    """Check the store, this machine and the installed packages.

    It checks every artifact against its checksums, and looks at what killed runs left behind, the
    links in run folders, disks, versions and devices. Exit code 1 if something is broken.
    """
    from rich.progress import Progress

    from compressor.cli import store_printing
    from compressor.core.files import expand_home
    from compressor.engine.store.integrity import examine
    from compressor.engine.store.store import Store

    folder, console = expand_home(outputs), open_console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    with sigterm_as_keyboard_interrupt(), bar:
        update = partial(bar.update, bar.add_task("artifacts"))
        findings = examine(
            Store.of(str(folder)),
            folder,
            quick=quick,
            repair=repair,
            advance=lambda done, total: update(completed=done, total=total),
        )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        store_printing.print_findings(findings, open_console())
    return FAILED if any(finding.state == "error" for finding in findings) else DONE
