"""The worker processes of one run: torch's elastic agent watches them, and their notes tell which one failed first."""

import contextlib
import json
import logging
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import synchronize
from pathlib import Path
from typing import Any
from uuid import uuid4

from hfexp.core import console, errors
from hfexp.core.config import LaunchConfig
from hfexp.core.errors import STOP_EXIT_CODES, RunError, Terminated
from hfexp.core.files import replace_file
from hfexp.core.process import count_once, handled, how_it_ended
from hfexp.launch import forkserver, world
from hfexp.launch.job import ProcessEnv, stop_when_orphaned

# Find out which of several processes ended the run, and why: the others fail as well, and may seem to end first.
#
# Torch's elastic agent reports only the first process whose end it saw, so each process leaves a note of its own.


INTERVAL = 0.2
"""Seconds between two looks for new processes."""
NEIGHBOUR_GONE = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "remote process exited")
"""Parts of the messages with which torch's backends report the end of another process."""


class WorkerError(RunError):
    """A process of the run failed; the cause shows the traceback of that process."""


class WorkerKilledError(WorkerError):
    """A process of the run was killed from outside; the run itself did nothing wrong."""


class _RemoteTraceback(Exception):
    """The traceback of another process, shown as the cause of an error in this one."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}"


@dataclass(frozen=True)
class FailureNote:
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
        return self.code in STOP_EXIT_CODES or any(text in self.message for text in NEIGHBOUR_GONE)


def begin(directory: Path, rank: int) -> None:
    """Record the process id of this rank, and remove the note that an earlier attempt has left."""
    _note_path(directory, rank).unlink(missing_ok=True)
    replace_file(directory / f"{rank}.pid", str(os.getpid()))


def note(directory: Path, rank: int, error: BaseException) -> None:
    """Leave a note on the exception that ends this process."""
    code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else None
    text = "".join(traceback.format_exception(error))
    facts = (time.time(), type(error).__name__, str(error), code, text)
    replace_file(_note_path(directory, rank), json.dumps(facts))


class WorkerMonitor:
    """Monitor that remembers the processes of a run, to know how each has ended."""

    def __init__(self, directory: Path, processes: int) -> None:
        self.directory = directory
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
        return {int(path.stem): int(path.read_text()) for path in self.directory.glob("*.pid")}

    def explain(self, reported: dict[int, int]) -> BaseException:
        """Return the error that ended the run.

        Args:
            reported: exit codes by rank, as far as the elastic agent reports them.
        """
        notes = sorted(self._notes(), key=lambda failure: failure.time)
        unexplained = self._without_note({failure.rank for failure in notes}, reported)
        if unexplained is not None and (not notes or notes[0].is_consequence):
            rank, code = unexplained
            kind = WorkerKilledError if code == -signal.SIGKILL else WorkerError
            return kind(f"process {rank} of {self.processes} {how_it_ended(code)}")
        if not notes:
            return WorkerError(f"one of {self.processes} processes exited without an error message")
        first = next((failure for failure in notes if not failure.is_consequence), notes[0])
        return self._error(first)

    def _notes(self) -> list[FailureNote]:
        paths = self.directory.glob("*.json")
        return [FailureNote(int(path.stem), *json.loads(path.read_text())) for path in paths]

    def _without_note(self, noted_ranks: set[int], reported: dict[int, int]) -> tuple[int, int] | None:
        """Return rank and exit code of a process that failed without a note, not by the agent's SIGTERM."""
        codes = {rank: self._known[pid].exitcode for rank, pid in self._pids().items() if pid in self._known}
        ends = {**codes, **reported}
        bad = [(rank, code) for rank, code in sorted(ends.items()) if code not in (0, None, -signal.SIGTERM)]
        return next(((rank, code) for rank, code in bad if rank not in noted_ranks), None)

    def _error(self, failure: FailureNote) -> BaseException:
        if failure.code in STOP_EXIT_CODES:
            return Terminated.with_code(failure.code)
        own = {kind.__name__: kind for kind in (WorkerError, WorkerKilledError)}
        kind = own.get(failure.type) or getattr(errors, failure.type, None)
        if isinstance(kind, type) and issubclass(kind, errors.ConfigError | RunError):
            error: Exception = kind(failure.message)
        elif failure.code is not None:
            error = WorkerError(f"process {failure.rank} of {self.processes} {how_it_ended(failure.code)}")
        else:
            error = WorkerError(f"process {failure.rank} of {self.processes}: {failure.type}: {failure.message}")
        error.__cause__ = _RemoteTraceback(failure.traceback)
        return error


def _note_path(directory: Path, rank: int) -> Path:
    return directory / f"{rank}.json"


LOGS = "logs"
RESULT = "result.pickle"
"""File in the notes' directory for the return value of this machine's first process.

The agent would take it from a pipe, and wait forever for the rest of what a killed worker has half written.
"""


def start(launch: LaunchConfig, run_dir: Path, entry: Callable[..., Any], *args: Any) -> Any:
    """Call `entry(*args)` in `launch.num_processes` workers of one process group on this machine, and wait for them.

    Args:
        launch: resolved by `hfexp.launch.world.resolve`.
        run_dir: the workers write their output to `logs/rank<i>.log` in it.
        entry: a module-level function.
        args: picklable.

    Returns:
        The return value of rank 0.

    Raises:
        See `run_agent`.
    """
    from hfexp.launch import rendezvous

    rendezvous.register()
    (run_dir / LOGS).mkdir(exist_ok=True)
    alone = {"min_nodes": 1, "max_nodes": 1, "run_id": uuid4().hex, "rdzv_backend": rendezvous.BACKEND}
    with tempfile.TemporaryDirectory(prefix="hfexp-") as temporary:
        monitor = WorkerMonitor(Path(temporary), int(launch.num_processes))
        return run_agent(launch, alone, monitor, run_dir / LOGS, None, entry, args)


def run_agent(
    launch: LaunchConfig,
    settings: dict[str, Any],
    monitor: WorkerMonitor,
    log_dir: Path,
    interface: str | None,
    entry: Callable[..., Any],
    args: tuple[Any, ...],
) -> Any:
    """Let torch's elastic agent call `entry(*args)` in this machine's workers, and wait for them.

    Args:
        settings: those of torch's `LaunchConfig` that say how agents meet.
        monitor: its directory, which no other user can enter, takes the workers' notes.
        log_dir: takes the workers' output.
        interface: network interface to the other machines; None: the workers stay on this machine.

    Returns:
        The return value of this machine's first worker.

    Raises:
        KeyboardInterrupt, Terminated: this process was asked to stop; the workers got SIGTERM, and up to
            `launch.grace_seconds` to write a checkpoint, and have ended.
        WorkerError: a worker failed and `max_restarts` is used up; hfexp's own errors keep their type.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as Elastic
    from torch.distributed.launcher.api import elastic_launch

    forkserver.start()
    with _stop_on_signals() as signals, forkserver.hidden_main():
        elastic = Elastic(
            **settings,
            nproc_per_node=int(launch.num_processes),
            max_restarts=launch.max_restarts,
            monitor_interval=0.1,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=str(monitor.directory / "agent")),
            signals_to_handle="",  # `_stop_on_signals` handles them
            shutdown_timeout=launch.grace_seconds,
        )
        own = (ProcessEnv.capture(), os.getpgrp(), log_dir, monitor.directory, launch.grace_seconds, interface)
        try:
            with monitor.watching():
                elastic_launch(elastic, _worker)(*own, entry, args)
        except SignalException:
            raise (KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(signals[0])) from None
        except ChildFailedError as error:
            cause = monitor.explain({rank: failure.exitcode for rank, failure in error.failures.items()})
            raise cause from cause.__cause__
    # Written by this machine's first worker, in a private directory.
    return pickle.loads((monitor.directory / RESULT).read_bytes())  # noqa: S301


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Have the agent send SIGTERM to the workers on Ctrl-C, SIGTERM, SIGUSR1 or SIGHUP; leave no worker behind.

    Yields:
        The list of signals that this process has received so far.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    arrived: list[int] = []

    def stop(number: int, frame: Any) -> None:
        count_once(number)
        if number == signal.SIGHUP and arrived:  # it accompanies other signals, and must not cut the waiting short
            return
        arrived.append(number)
        raise SignalException(signal.Signals(number).name, sigval=signal.SIGTERM)

    children = set(multiprocessing.active_children())
    loggers = [logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing")]
    levels = [logger.level for logger in loggers]
    if os.environ.get("HFEXP_VERBOSE") != "1":
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)  # torch would print its own tracebacks beside ours
    try:
        with handled(stop, signal.SIGINT):
            yield arrived
    finally:
        for child in set(multiprocessing.active_children()) - children:  # left when a second signal cut the wait short
            child.kill()
            child.join()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _worker(
    env: ProcessEnv,
    group: int,
    log_dir: Path,
    notes_dir: Path,
    grace: float,
    interface: str | None,
    entry: Callable[..., Any],
    args: tuple,
) -> None:
    """Set this worker up as if a user had started it in the launcher's directory, and call `entry`."""
    rank = int(os.environ["RANK"])
    own = {k: v for k, v in os.environ.items() if k.startswith(("TORCHELASTIC_", "MASTER_")) or "RANK" in k}
    own |= {k: v for k, v in os.environ.items() if k.endswith("WORLD_SIZE")}
    env.enter()
    os.environ.update(own)
    if interface is None:
        world.stay_on_this_machine(notes_dir)
    else:
        world.reach_other_machines(os.environ["TORCHELASTIC_RUN_ID"], interface)
    with contextlib.suppress(OSError):
        os.setpgid(0, group)  # join the starting process's group, so that killing that group kills this worker
    # Terminals and queues send these to all processes; the agent passes them on as SIGTERM.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    write_log_to(log_dir, rank)
    console.redirect(lambda name, *args: None)
    stop_when_orphaned(grace)
    begin(notes_dir, rank)
    try:
        result = entry(*args)
        if os.environ["LOCAL_RANK"] == "0":
            replace_file(notes_dir / RESULT, pickle.dumps(result))
    except BaseException as error:
        note(notes_dir, rank, error)
        raise
    _end_without_waiting()


def write_log_to(directory: Path, rank: int) -> None:
    """Let this process write what it prints to `rank<i>.log` in a directory from now on."""
    log = os.open(directory / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)


def _end_without_waiting() -> None:
    """Let this worker exit as soon as it is done; torch has it wait for an event until all workers are.

    `Event.set` of the agent blocks forever if a worker is killed in that wait (torch 2.14,
    distributed/elastic/multiprocessing/api.py, says so of `_worker_finished_event`). Nothing needs the wait: it keeps
    a worker until its return value has been read, and workers return None, which fits into the pipe.
    """
    synchronize.Event.wait = lambda self, timeout=None: True
