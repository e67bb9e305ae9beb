"""The errors that a user can act on. Nothing is detected here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a recipe: where, what was expected, and the nearest valid name."""

    path: str
    message: str
    file: Path | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = ""
        if self.file is not None:
            place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: "
        return f"{place}{self.path}: {self.message}" if self.path else f"{place}{self.message}"


class RecipeError(Exception):
    """The recipe or the command is wrong (exit code 2). Carries every problem that was found."""

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem("", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class StageError(Exception):
    """A stage could not do its work (exit code 1), for a reason that the user can act on."""


class EarlyStop(Exception):
    """A run was ended early on purpose: it is not worth going on with. Not a failure."""


class Unreachable(Exception):
    """Something that a recipe names lies on a hub that cannot be reached from here."""


class DamagedArtifact(Exception):
    """An artifact's files are not what its manifest says. The engine sets it aside and rebuilds."""

    def __init__(self, key: str, reason: str) -> None:
        self.key, self.reason = key, reason
        super().__init__(f"artifact {key[:12]}: {reason}")


def first_line(error: BaseException) -> str:
    """Take the first line of an error's message, or its type's name if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Suggest the nearest valid name for an unknown one, or list all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(names)}" if names else "there is none to choose from"
