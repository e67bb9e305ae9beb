"""Write what every run leaves for a reader, however it ends: `report.html` and a model card.

Both are made of what its folder has: nothing here measures, loads weights or asks a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.core.failures import describe_error, explain_error
from compressor.core.files import write_text, write_traceback
from compressor.core.printing import print_warning
from compressor.reports.run_page.results import Ended, Results

REPORT, CARD = "report.html", "README.md"
TRACEBACK = "report-error.txt"


def write_reports(folder: Path, ended: Ended, error: str | None = None) -> None:
    """Write a run's page and its model card from the files in its folder.

    Hours of work may stand behind these: a page that cannot be made is a warning with the reason
    and its traceback's file, and leaves the run what it is. An older page does not stay.
    """
    from compressor.reports.model_card.card import render_card
    from compressor.reports.run_page.page import render_page

    try:
        results = Results.read(folder, ended, error)
    except Exception as caught:  # noqa: BLE001  # see above
        _warn(folder, f"{REPORT} and {CARD}", [caught])
        return
    (folder / TRACEBACK).unlink(missing_ok=True)
    errors: list[Exception] = []
    for name, make in ((REPORT, render_page), (CARD, render_card)):
        try:
            write_text(folder / name, make(results))
        except Exception as caught:  # noqa: BLE001  # see above
            (folder / name).unlink(missing_ok=True)
            errors.append(caught)
            _warn(folder, name, errors)


def _warn(folder: Path, name: str, errors: Sequence[Exception]) -> None:
    """Say why a file is not there, the last error, and keep the tracebacks of all."""
    reason = describe_error(errors[-1], folder / name)
    known = explain_error(errors[-1], folder / name) is not None  # a full disk, say
    kept = not known and write_traceback(folder / TRACEBACK, *errors)
    see = f" (see {folder / TRACEBACK})" if kept else ""
    print_warning(f"{name} was not written: {reason}{see}")
