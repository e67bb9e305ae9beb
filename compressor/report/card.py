"""`README.md` of a run: a model card."""

from __future__ import annotations

from compressor.report.results import Results


def card(results: Results) -> str:
    return results.name
