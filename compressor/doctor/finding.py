"""What a check found. No check is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "error"]
"""`warning`: nothing is wrong with results, but there is something to do. `error`: it will fail, or
results that are there cannot be trusted."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    area: str
    state: State
    message: str
    place: str = ""
    """A file, a folder, a package, a key."""
    cure: str = ""
    """What to do; empty where there is nothing to do."""
