"""The campaign of faults: what is done to runs, stores and recipes, and what has to come of it.

`make test` tries each kind a few times; `make test-faults` (FAULTS=1) as often as `trials` says.
"""

from __future__ import annotations

import os

import pytest

LONG = os.environ.get("FAULTS") == "1"
long_form = pytest.mark.skipif(not LONG, reason="takes long: make test-faults")


def trials(long: int, short: int) -> int:
    """How often something random is tried."""
    return long if LONG else short
