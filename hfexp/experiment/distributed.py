"""One run in several processes, started by the process that composes, or by torchrun or `accelerate launch`."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfexp.core import console
from hfexp.core.checkpoint import newest_whole, set_aside_newer
from hfexp.core.memory import keep_freed_memory
from hfexp.core.secrets import share_secrets
from hfexp.data.threads import use_threads
from hfexp.experiment.fit import Job, Outcome, work
from hfexp.experiment.preflight import Inputs, prepare
from hfexp.launch import forkserver, workers, world
from hfexp.launch import job as reports
from hfexp.tracking.tracker import MlflowTracker, NullTracker, Tracker
from hfexp.training import callbacks
from hfexp.training.callbacks import StopTogether

# Forwarding of rank 0's tracking and console calls to the process that started the workers.
#
# Only the starting process writes to the tracker and the console. So there is one writer whatever happens to the
# workers, and their output also appears where standard output is not a file (a notebook).


logger = logging.getLogger(__name__)

TRACKER_METHODS = ("log_params", "log_metrics", "set_tags", "log_artifacts", "record")
"""Methods of `Tracker` that a worker may call through the relay."""


CONSOLE_FUNCTIONS = ("say", "note", "move_bar", "end_bar")
"""Functions of `hfexp.core.console` that a worker may call through the relay."""


class Relay:
    """A `Tracker` for the training process; its calls are executed by the starting process, in order."""

    def __init__(self, sender: Connection, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id
        self._sender = sender
        self._lock = threading.Lock()

    def tell(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Send a call of `name` to the starting process; drop it if that is gone (this process is then stopped)."""
        with self._lock, contextlib.suppress(OSError):
            self._sender.send((name, args, kwargs))

    def log_params(self, params: dict[str, Any]) -> None:
        self.tell("log_params", {name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.tell("log_metrics", {name: float(value) for name, value in metrics.items()}, step)

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tell("set_tags", tags)

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        self.tell("log_artifacts", path, name)

    def record(self, kind: str, **content: Any) -> None:
        self.tell("record", kind, **content)


@contextlib.contextmanager
def relayed(receiver: Connection, sender: Connection, tracker: Tracker, **more: Callable[..., None]) -> Iterator[None]:
    """Execute the calls of the training process inside the block; on exit, drain what is still in the pipe.

    Args:
        receiver: this process's end of the pipe.
        sender: the training process's end, of which this process keeps a copy open until the block ends.
        tracker: executes the tracking calls of the `Relay`.
        more: further functions that the training process may call, by name.
    """
    functions = {name: getattr(tracker, name) for name in TRACKER_METHODS}
    functions |= {name: getattr(console, name) for name in CONSOLE_FUNCTIONS} | more
    thread = threading.Thread(target=_pass_on, args=(receiver, functions), name="hfexp-relay", daemon=True)
    thread.start()
    try:
        yield
    finally:
        sender.close()  # the last copy: the thread reads what is left, then EOF, even in the middle of a message
        thread.join()
        receiver.close()
        console.end_bar()  # the training process may have died with its progress bar on the screen


def _pass_on(receiver: Connection, functions: dict[str, Callable[..., None]]) -> None:
    while True:
        try:
            name, args, kwargs = receiver.recv()
        except (EOFError, OSError):
            return
        try:
            functions[name](*args, **kwargs)
        except Exception:  # keep reading: on a full pipe the training process would block forever
            logger.exception("could not execute %s for a training process", name)


def start_processes(job: Job, tracker: Tracker) -> Outcome:
    """Run `work` in processes of its own; the first of them tells this process what to record and to show."""
    receiver, sender = forkserver.context().Pipe(duplex=False)

    def restarted() -> None:
        console.note("a process died; restarting all from the newest checkpoint")
        if isinstance(tracker, MlflowTracker):
            tracker.continue_journal()

    with relayed(receiver, sender, tracker, restarted=restarted, pass_on=reports.pass_on):
        return workers.start(job.config.launch, job.directory.path, _started_process, job, sender, share_secrets())


def lead(job: Job, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `work` as the first of several processes that torchrun or `accelerate launch` started."""
    return _work_together(world.share(job), inputs, tracker)


def wait_for_first() -> Any:
    """Wait, as one of the others, for what the first process shares (its job or result); print nothing from now on."""
    console.speak_through(lambda name, *args: None)
    return world.share(None)


def follow(job: Job) -> tuple[Inputs, Outcome]:
    """Run `work` as one of the others, on the run that the first process has opened."""
    inputs = prepare(job.config)
    return inputs, _work_together(job, inputs, NullTracker())


def _work_together(job: Job, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `work` as one of several connected processes."""
    is_first = world.rank() == 0
    with StopTogether(job.directory.path, is_first) as signals:
        return work(job, inputs, tracker if is_first else NullTracker(), signals)


def _started_process(job: Job, sender: Connection, known_secrets: frozenset[str]) -> Outcome | None:
    """Run `work` in a process that the composing process has started; `sender` leads to that process."""
    share_secrets(known_secrets)
    rank, directory = world.rank(), job.directory
    console.quiet_libraries()
    use_threads(job.config.launch)
    keep_freed_memory()
    world.connect(job.config.launch, bool(job.config.trainer.args.get("use_cpu")))
    inputs = prepare(job.config)
    relay = Relay(sender, job.uri, job.run_id)
    if rank == 0:
        console.speak_through(relay.tell, job.terminal)
        reports.listen(lambda progress: relay.tell("pass_on", progress))
        if world.restarts():
            relay.tell("restarted")
            callbacks.forget(directory.path)
            directory.checkpoint = newest_whole(directory.checkpoints)
            directory.resumed = True
            set_aside_newer(directory.checkpoints, directory.checkpoint)
    directory.checkpoint, directory.resumed = world.share((directory.checkpoint, directory.resumed))
    log = directory.path / ("hfexp.log" if rank == 0 else f"{workers.LOGS}/rank{rank}.log")
    with console.log_to(log):
        outcome = _work_together(job, inputs, relay)
    world.disconnect()
    outcome.model = None
    return outcome if rank == 0 else None
