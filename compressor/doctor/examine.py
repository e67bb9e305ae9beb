"""All checks, in the order in which a person wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.doctor.artifacts import artifacts, left_behind, links
from compressor.doctor.finding import Finding
from compressor.doctor.locks import locks
from compressor.doctor.surroundings import devices, folders, versions
from compressor.store import Store

if TYPE_CHECKING:
    from rich.console import Console


def examine(
    store: Store, outputs: Path, console: Console, *, quick: bool, repair: bool
) -> list[Finding]:
    """Everything that was looked at. `console`: where a terminal sees how far it is.

    Writes nothing but a folder in `outputs` that is removed, and with `repair` sets damaged
    artifacts aside.
    """
    found = [*versions(), *devices(), *folders(outputs)]
    with _bar(console) as advance:
        found += artifacts(store, quick=quick, repair=repair, advance=advance)
    return [*found, *left_behind(store), *links(outputs), *locks(store)]


@contextmanager
def _bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    if not console.is_terminal:
        yield lambda _done, _of: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("artifacts")
        yield lambda done, of: progress.update(task, completed=done, total=of)
