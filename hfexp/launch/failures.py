"""Find out which of several processes ended the run, and why: the others fail as well, and may seem to end first.

Torch's elastic agent reports only the first process whose end it saw, so each process leaves a note of its own.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfexp.core import errors
from hfexp.core.errors import EXITS_ASKED_FOR, RunError, Terminated
from hfexp.core.process import how_it_ended

INTERVAL = 0.2
"""Seconds between two looks for new processes."""
NEIGHBOUR_GONE = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "remote process exited")
"""Parts of the messages with which torch's backends report the end of another process."""


class WorkerError(RunError):
    """A process of the run failed; the cause shows the traceback of that process."""


class WorkerKilledError(WorkerError):
    """A process of the run was killed from outside; the run itself did nothing wrong."""


class _Remote(Exception):
    """The traceback of another process, shown as the cause of an error in this one."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


@dataclass(frozen=True)
class Note:
    """The note that a process leaves when an exception ends it."""

    rank: int
    time: float
    type: str
    message: str
    code: int | None
    """Exit code given to `sys.exit`; None for other exceptions."""
    traceback: str

    @property
    def is_consequence(self) -> bool:
        """Return True if the exception may only mean that another process was gone, or this one had to stop."""
        return self.code in EXITS_ASKED_FOR or any(text in self.message for text in NEIGHBOUR_GONE)


def begin(place: Path, rank: int) -> None:
    """Record the process id of this rank, and remove the note that an earlier attempt has left."""
    _path(place, rank).unlink(missing_ok=True)
    _write(place / f"{rank}.pid", str(os.getpid()))


def note(place: Path, rank: int, error: BaseException) -> None:
    """Leave a note on the exception that ends this process."""
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else None
    text = "".join(traceback.format_exception(error))
    facts = (time.time(), type(error).__name__, str(error), code, text)
    _write(_path(place, rank), json.dumps(facts))


class Witness:
    """Monitor that remembers the processes of a run, to know how each has ended."""

    def __init__(self, place: Path, processes: int) -> None:
        self.place = place
        self.processes = processes
        self._known: dict[int, Any] = {}
        self._stop = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look for new processes while the block runs."""
        thread = threading.Thread(target=self._watch, name="hfexp-witness", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL):
            if set(self._pids().values()) - self._known.keys():
                self._known.update({process.pid or 0: process for process in multiprocessing.active_children()})

    def _pids(self) -> dict[int, int]:
        return {int(path.stem): int(path.read_text()) for path in self.place.glob("*.pid")}

    def explain(self, reported: dict[int, int]) -> BaseException:
        """Return the error that ended the run.

        Args:
            reported: exit codes by rank, as far as the elastic agent reports them.
        """
        notes = sorted(self._notes(), key=lambda found: found.time)
        silent = self._silent({found.rank for found in notes}, reported)
        if silent is not None and (not notes or notes[0].is_consequence):
            rank, code = silent
            kind = WorkerKilledError if code == -signal.SIGKILL else WorkerError
            return kind(f"process {rank} of {self.processes} {how_it_ended(code)}")
        if not notes:
            return WorkerError(f"one of {self.processes} processes ended without a word")
        first = next((found for found in notes if not found.is_consequence), notes[0])
        return self._error(first)

    def _notes(self) -> list[Note]:
        paths = self.place.glob("*.json")
        return [Note(int(path.stem), *json.loads(path.read_text())) for path in paths]

    def _silent(self, spoken: set[int], reported: dict[int, int]) -> tuple[int, int] | None:
        """Return rank and exit code of a process that failed without a note, not by the agent's SIGTERM."""
        codes = {rank: self._known[pid].exitcode for rank, pid in self._pids().items() if pid in self._known}
        ends = {**codes, **reported}
        bad = [(rank, code) for rank, code in sorted(ends.items()) if code not in (0, None, -signal.SIGTERM)]
        return next(((rank, code) for rank, code in bad if rank not in spoken), None)

    def _error(self, found: Note) -> BaseException:
        if found.code in EXITS_ASKED_FOR:
            return Terminated(found.code)
        kind = getattr(errors, found.type, None)
        if isinstance(kind, type) and issubclass(kind, errors.ConfigError | RunError):
            error: Exception = kind(found.message)
        elif found.code is not None:
            error = WorkerError(f"process {found.rank} of {self.processes} {how_it_ended(found.code)}")
        else:
            error = WorkerError(f"process {found.rank} of {self.processes}: {found.type}: {found.message}")
        error.__cause__ = _Remote(found.traceback)
        return error


def _path(place: Path, rank: int) -> Path:
    return place / f"{rank}.json"


def _write(path: Path, text: str) -> None:
    """Write a file atomically."""
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.rename(path)
