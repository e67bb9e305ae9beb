"""One run on several machines that share the outputs: the first makes it, the others help.

A person starts the same command on each. The first machine plans, takes locks, commits and writes
the run's directory, as if it were alone. The others find the tasks that it writes, start their part
of the processes for each, and end when it ends. Nothing is sent but what torch's launcher sends.
"""

from __future__ import annotations

import json
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.core.errors import StageError
from compressor.core.files import write_json
from compressor.engine import launcher
from compressor.engine.launcher import Session
from compressor.engine.plan import Plan
from compressor.engine.store.store import MACHINE_LOCKS, Store
from compressor.engine.worker import FAILURE, TASK
from compressor.training.launch_config import Processes

POLL_SECONDS = 0.2
"""How often another machine looks for a task."""
LEADER_SECONDS = 1800.0
"""How long another machine waits for the first one's run to begin."""
GONE_SECONDS = 5.0
"""How long processes may take to end after the first machine's run has: all do at its end."""


def _name(processes: Processes) -> str:
    """What both sides know a run on several machines by: the address that its processes meet at."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", f"{MACHINE_LOCKS}{processes.address}-{processes.port}")


def _keys(plan: Plan) -> dict[str, str | None]:
    return {node.name: node.key for node in plan.nodes}


@contextmanager
def leading(
    plan: Plan, store: Store, processes: Processes, say: Callable[[str], None]
) -> Iterator[Session | None]:
    """On the first machine: its session while it runs the plan; None where there is no other."""
    if processes.machines == 1:
        yield None
        return
    name, session, ended = _name(processes), Session(), threading.Event()
    waiting = f"another run uses {processes.address}:{processes.port}; waiting for it"
    with store.lock(name, lambda: say(waiting)):
        about = {"session": session.name, "keys": _keys(plan)}
        write_json(store.folder / "locks" / f"{name}.json", about)
        others = [f"{name}.{machine}" for machine in range(1, processes.machines)]
        watch = threading.Thread(target=_watch, args=[store, others, session, ended], daemon=True)
        watch.start()
        try:
            yield session
        finally:
            ended.set()
            watch.join()


def _watch(store: Store, others: list[str], session: Session, ended: threading.Event) -> None:
    """Note which of the other machines, that hold these locks while they take part, are gone.

    Without that the processes here would wait for theirs.
    """
    come: set[int] = set()
    while not ended.wait(POLL_SECONDS):
        here = {number for number, lock in enumerate(others, 1) if store.is_locked(lock)}
        come |= here
        session.missing = set(range(1, len(others) + 1)) - come
        session.gone = come - here
        if session.gone:
            session.one_is_gone.set()
        else:
            session.one_is_gone.clear()


@dataclass
class Helper:
    """Another machine than the first one, which lends its processes to the first one's run."""

    plan: Plan
    store: Store
    processes: Processes
    say: Callable[[str], None]
    taken: set[str] = field(default_factory=set)
    """Tasks that this machine has taken part in."""
    doubtful: str | None = None
    """A session that had another plan when this machine last looked."""

    def follow(self) -> None:
        """Take part until the first machine's run has ended. Raises StageError where it failed."""
        name = f"{_name(self.processes)}.{self.processes.machine}"
        with self.store.lock(name, lambda: self._say_if_taken(name)):
            self._follow()

    def _say_if_taken(self, name: str) -> None:
        """The first machine looks at this lock, too, for a moment."""
        time.sleep(POLL_SECONDS)
        if self.store.is_locked(name):
            self.say(f"another run is machine {self.processes.machine}; waiting for it")

    def _follow(self) -> None:
        place = f"machine {self.processes.machine} of {self.processes.machines}"
        self.say(f"{place}: lends {self.processes.here} processes to machine 0's run")
        session: str | None = None
        latest = time.monotonic() + LEADER_SECONDS
        while True:
            leader = self._leader()
            if leader is not None and leader["session"] != session and self._same_plan(leader):
                session = leader["session"]
            elif leader is None and self._all_made():
                return
            elif leader is None and session is not None:
                raise StageError("machine 0 has ended without all that was planned; see there")
            elif session is None and time.monotonic() > latest:
                raise StageError(
                    f"machine 0 has not begun this run in {LEADER_SECONDS / 60:.0f} minutes; give "
                    "the same command there, with the same outputs"
                )
            if session is not None and (task := self._task(session)) is not None:
                self._take_part(session, *task)
            time.sleep(POLL_SECONDS)

    def _all_made(self) -> bool:
        return all(node.key is not None and self.store.has(node.key) for node in self.plan.nodes)

    def _leader(self) -> dict[str, Any] | None:
        """What the first machine says of its run, while that runs: while its lock is held."""
        name = _name(self.processes)
        if not self.store.is_locked(name):
            return None
        try:
            text = (self.store.folder / "locks" / f"{name}.json").read_text(encoding="utf-8")
        except FileNotFoundError:  # it has just begun
            return None
        about: dict[str, Any] = json.loads(text)
        return about

    def _same_plan(self, leader: dict[str, Any]) -> bool:
        """Whether the first machine runs our plan. Raises StageError where it still does not.

        A file of an earlier run is there for a moment after the first machine has begun.
        """
        other = [name for name, key in _keys(self.plan).items() if leader["keys"].get(name) != key]
        if other and leader["session"] == self.doubtful:
            raise StageError(
                f"machine 0 runs another plan: {other[0]!r} is not the same there; start the same "
                "recipe and overrides, with the same versions of torch and transformers"
            )
        self.doubtful = leader["session"] if other else None
        return not other

    def _task(self, session: str) -> tuple[Path, str] | None:
        """A task of this session, and its stage, that this machine has not taken part in."""
        for path in (self.store.folder / "partial").glob(f"*.task/{TASK}"):
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:  # done in the meantime
                continue
            if about["session"] == session and about["shared"] and about["id"] not in self.taken:
                self.taken.add(about["id"])
                return path, about["name"]
        return None

    def _take_part(self, session: str, task: Path, name: str) -> None:
        self.say(f"takes part in {name}")
        over, ended = threading.Event(), threading.Event()
        watch = threading.Thread(target=self._watch_leader, args=[session, over, ended])
        watch.start()
        try:
            with tempfile.TemporaryDirectory() as logs:
                code = launcher.run_processes(task, self.processes, Path(logs), self.say, over=over)
                if code != 0 and not over.is_set() and not (task.parent / FAILURE).is_file():
                    self.say(f"a worker process ended with code {code}:")
                    self.say(launcher.last_lines(Path(logs)))
        finally:
            ended.set()
            watch.join()

    def _watch_leader(self, session: str, over: threading.Event, ended: threading.Event) -> None:
        """Say that it is `over` when the first machine has ended and the processes here have not:
        they would wait for its processes, before they meet for a quarter of an hour.
        """
        seen = time.monotonic()
        while not ended.wait(POLL_SECONDS):
            leader = self._leader()
            if leader is not None and leader["session"] == session:
                seen = time.monotonic()
            elif time.monotonic() - seen > GONE_SECONDS:
                over.set()
                return
