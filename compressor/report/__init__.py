"""What every run leaves for a reader: `report.html` and a model card, of measured results alone.

`asked` is written when a run starts; `write_reports` when it ends, however it ends. Both files are
made of what the run's folder has, so nothing here measures, loads weights or asks a network.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from compressor.files import write_text
from compressor.printed import complain
from compressor.redaction import redacted_text
from compressor.report.asked import ASKED as ASKED
from compressor.report.asked import asked as asked
from compressor.report.results import Ended as Ended
from compressor.report.results import Results
from compressor.shortage import told

REPORT, CARD = "report.html", "README.md"
TRACEBACK = "report-error.txt"


def write_reports(folder: Path, ended: Ended, error: str | None = None) -> None:
    """Write a run's page and its model card from the files in its folder.

    The results are in `metrics.json` already, and hours of work may stand behind them: a page that
    cannot be made is told on the standard error, with the reason and its traceback's file, and
    leaves the run what it is. An older page, of another result, does not stay.
    """
    from compressor.report.card import card
    from compressor.report.page import page

    try:
        results = Results.read(folder, ended, error)
    except Exception as caught:  # noqa: BLE001  # see above
        _tell(folder, f"{REPORT} and {CARD}", caught)
        return
    (folder / TRACEBACK).unlink(missing_ok=True)
    for name, make in ((REPORT, page), (CARD, card)):
        try:
            write_text(folder / name, make(results))
        except Exception as caught:  # noqa: BLE001  # see above
            (folder / name).unlink(missing_ok=True)
            _tell(folder, name, caught)


def _tell(folder: Path, name: str, error: Exception) -> None:
    """Say on the standard error that a file is not there, and keep the traceback."""
    if (short := told(error, folder / name)) is not None:  # a full disk, say
        complain("warning", f"{name} was not written: {short}")
        return
    text = redacted_text("".join(traceback.format_exception(error)))
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    try:
        with (folder / TRACEBACK).open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(text)
        see = f" (see {folder / TRACEBACK})"
    except OSError:  # then the reason is all there is
        see = ""
    complain("warning", f"{name} was not written: {reason}{see}")
