"""An Optuna study in a sweep's folder: it draws points and hears results. Runs none.

Each draw's sampler is seeded by how many were drawn before: after a restart a study draws what it
would have drawn without it, as long as one trial runs at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.trial import FrozenTrial, TrialState

from compressor.core.errors import StageError
from compressor.recipe.objective import Goal, Search
from compressor.runs.search.space import Space

NAME, JOURNAL = "trials", "search.jsonl"


@dataclass(frozen=True)
class Trial:
    """A point that was drawn."""

    number: int
    values: Mapping[str, Any]
    has_ended: bool


class Study:
    """All trials of a search, over all times that it was continued."""

    def __init__(self, journal: Path, search: Search, goals: Sequence[Goal], space: Space) -> None:
        self.search, self.space = search, space
        self._study = optuna.create_study(
            study_name=NAME,
            storage=open_journal(journal),
            directions=[goal.direction for goal in goals],
            load_if_exists=True,
        )
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._is_drawn(trial):  # killed while it was drawn: it is drawn again
                self._study.tell(trial.number, state=TrialState.FAIL)

    def _is_drawn(self, trial: FrozenTrial) -> bool:
        return len(trial.params) == len(self.space.dimensions)

    @property
    def trials(self) -> list[Trial]:
        """Every point that was drawn, in that order."""
        trials = self._study.get_trials(deepcopy=False)
        return [
            Trial(t.number, t.params, t.state.is_finished()) for t in trials if self._is_drawn(t)
        ]

    def draw(self) -> list[Trial]:
        """Draw the trials to run now; what was running when the study was killed goes first."""
        trials = self.trials
        unfinished = [trial for trial in trials if not trial.has_ended]
        if unfinished:
            return unfinished[: self.search.at_once]
        distributions = {d.key: d.make_distribution() for d in self.space.dimensions}
        new: list[Trial] = []
        for drawn in range(len(trials), min(self.search.trials, len(trials) + self.search.at_once)):
            self._study.sampler = _make_sampler(self.search, drawn)
            trial = self._study.ask(fixed_distributions=distributions)
            new.append(Trial(trial.number, trial.params, has_ended=False))
        return new

    def tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """Take the end of a trial, and its goals' `values` where it is complete."""
        self._study.tell(number, values, state)

    @property
    def best(self) -> set[int]:
        """Numbers of the best trials: no other is better in one goal and as good in all."""
        return {trial.number for trial in self._study.best_trials}


def _make_sampler(search: Search, drawn: int) -> optuna.samplers.BaseSampler:
    """Make the sampler of the draw after `drawn` others."""
    seed = int.from_bytes(hashlib.sha256(f"{search.seed}/{drawn}".encode()).digest()[:4])
    samplers = optuna.samplers
    match search.sampler:
        case "random":
            return samplers.RandomSampler(seed)
        case "nsga2":
            return samplers.NSGAIISampler(population_size=search.random_trials, seed=seed)
        case "gp":
            return samplers.GPSampler(n_startup_trials=search.random_trials, seed=seed)
    return samplers.TPESampler(n_startup_trials=search.random_trials, seed=seed)


class SystemLock(BaseJournalFileLock):
    """The operating system's lock, which ends with the process that holds it, however that ends.

    Optuna's own are files that a killed process leaves behind: the next one waits 30 seconds.
    """

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def open_journal(path: Path) -> JournalStorage:
    """Open the journal, without the half of a line that a killed process may have left.

    Many processes may append to it: JSON lines, and no pickle, which only the sampler `cmaes` would
    store. Raises StageError where it is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = SystemLock(path)
    lock.acquire()
    try:
        if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
            with path.open("r+b") as stream:
                stream.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        reason = f"{path} is damaged ({type(error).__name__}: {error})"
        advice = "move its folder away, and the search begins anew on the same store"
        raise StageError(f"{reason}; {advice}") from error
