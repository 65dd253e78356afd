"""The worker processes of one run, started and watched by torch's elastic agent in the process that composed it."""

import contextlib
import logging
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from hfexp.core import console
from hfexp.core.config import LaunchConfig
from hfexp.core.errors import Terminated, exit_code
from hfexp.core.signals import count_once, handled
from hfexp.launch import failures, forkserver, world
from hfexp.launch.failures import Witness
from hfexp.launch.place import Place
from hfexp.launch.watch import stop_when_orphaned

LOGS = "logs"


def start(launch: LaunchConfig, run_dir: Path, entry: Callable[..., Any], *args: Any) -> Any:
    """Call `entry(*args)` in `launch.num_processes` workers of one process group, and wait for them.

    Args:
        launch: resolved by `hfexp.launch.world.settle`.
        run_dir: the workers write their output to `logs/rank<i>.log` in it.
        entry: a module-level function.
        args: picklable.

    Returns:
        The return value of rank 0.

    Raises:
        KeyboardInterrupt, Terminated: this process was asked to stop; the workers got SIGTERM, and up to
            `launch.grace_seconds` to write a checkpoint, and have ended.
        WorkerError: a worker failed and `max_restarts` is used up; hfexp's own errors keep their type.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig as Elastic
    from torch.distributed.launcher.api import elastic_launch

    from hfexp.launch import rendezvous

    rendezvous.register()
    forkserver.context()
    (run_dir / LOGS).mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="hfexp-") as temporary,
        _watched() as signals,
        forkserver.hidden_main(),
    ):
        notes = Path(temporary)
        witness = Witness(notes, int(launch.num_processes))
        elastic = Elastic(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=int(launch.num_processes),
            run_id=uuid4().hex,
            rdzv_backend=rendezvous.BACKEND,
            max_restarts=launch.max_restarts,
            monitor_interval=0.1,
            start_method="forkserver",
            logs_specs=DefaultLogsSpecs(log_dir=str(notes / "agent")),
            signals_to_handle="",  # `_watched` handles them
            shutdown_timeout=launch.grace_seconds,
        )
        try:
            with witness.watching():
                surroundings = (Place.here(), os.getpgrp(), run_dir, notes, launch.grace_seconds)
                results = elastic_launch(elastic, _worker)(*surroundings, entry, args)
        except SignalException:
            raise (KeyboardInterrupt if signals[0] == signal.SIGINT else Terminated(exit_code(signals[0]))) from None
        except ChildFailedError as error:
            cause = witness.explain({rank: failure.exitcode for rank, failure in error.failures.items()})
            raise cause from cause.__cause__
    return results[0]


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """Have the agent send SIGTERM to the workers on Ctrl-C, SIGTERM or SIGHUP; leave no worker behind.

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
    place: Place, group: int, run_dir: Path, notes: Path, grace: float, entry: Callable[..., Any], args: tuple
) -> Any:
    """Set this worker up as if a user had started it in the launcher's directory, and call `entry`."""
    rank = int(os.environ["RANK"])
    own = {k: v for k, v in os.environ.items() if k.startswith(("TORCHELASTIC_", "MASTER_")) or "RANK" in k}
    own |= {k: v for k, v in os.environ.items() if k.endswith("WORLD_SIZE")}
    place.enter()
    os.environ.update(own)
    world.stay_on_this_machine(notes)
    with contextlib.suppress(OSError):
        os.setpgid(0, group)  # join the starting process's group, so that killing that group kills this worker
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal sends these to all; the agent passes them on as SIGTERM
        signal.signal(number, signal.SIG_IGN)
    log = os.open(run_dir / LOGS / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    console.speak_through(lambda name, *args: None)
    stop_when_orphaned(grace)
    failures.begin(notes, rank)
    try:
        return entry(*args)
    except BaseException as error:
        failures.note(notes, rank, error)
        raise
