"""Paths that begin with `~`, in recipes and commands."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with the home folder for its `~`.

    Where there is no such home (`~nobody/x`) it stays as it is written, and is then a path that is
    not there: pathlib's own raises RuntimeError.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111  # see above
