"""One run in several processes, started by the process that composes, or by torchrun or `accelerate launch`."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hfexp.core import console
from hfexp.core.checkpoint import newest_whole, set_aside_newer
from hfexp.core.errors import EvaluationOutOfMemory, OutOfMemory
from hfexp.core.machine import keep_freed_memory
from hfexp.core.secrets import share_secrets
from hfexp.data.threads import use_threads
from hfexp.experiment.context import Inputs, Outcome, RunContext
from hfexp.experiment.preflight import load_inputs
from hfexp.launch import forkserver, job, workers, world
from hfexp.tracking.run_directory import RunDirectory
from hfexp.tracking.tracker import MlflowTracker, NullTracker, Tracker
from hfexp.training import callbacks
from hfexp.training.callbacks import StopOnSignal, StopTogether

logger = logging.getLogger(__name__)

Fit = Callable[[RunContext, Inputs, Tracker, StopOnSignal], Outcome]
"""`hfexp.experiment.fit.fit`, which each process of a run calls."""

# Forwarding of rank 0's tracking and console calls to the process that started the workers.
#
# Only the starting process writes to the tracker and the console. So there is one writer whatever happens to the
# workers, and their output also appears where standard output is not a file (a notebook).


TRACKER_METHODS = ("log_params", "log_metrics", "set_tags", "log_artifacts", "record")
"""Methods of `Tracker` that a worker may call through the relay."""


CONSOLE_FUNCTIONS = ("say", "note", "status", "move_bar", "end_bar")
"""Functions of `hfexp.core.console` that a worker may call through the relay."""


class Relay:
    """A `Tracker` for the training process; its calls are executed by the starting process, in order."""

    def __init__(self, sender: Connection, uri: str | None, run_id: str | None) -> None:
        self.uri = uri
        self.run_id = run_id
        self._sender = sender
        self._lock = threading.Lock()

    def send(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Send a call of `name` to the starting process; drop it if that is gone (this process is then stopped)."""
        with self._lock, contextlib.suppress(OSError):
            self._sender.send((name, args, kwargs))

    def log_params(self, params: dict[str, Any]) -> None:
        self.send("log_params", {name: str(value) for name, value in params.items()})

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.send("log_metrics", {name: float(value) for name, value in metrics.items()}, step)

    def set_tags(self, tags: dict[str, str]) -> None:
        self.send("set_tags", tags)

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        self.send("log_artifacts", path, name)

    def record(self, kind: str, **content: Any) -> None:
        self.send("record", kind, **content)


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


def start_processes(fit: Fit, context: RunContext, tracker: Tracker) -> Outcome:
    """Run `fit` in processes of its own; start them again with fewer rows at once when one is out of memory."""
    while True:
        try:
            return _start_once(fit, context, tracker)
        except OutOfMemory as error:
            context = _with_fewer_rows(context, tracker, error)
            if isinstance(tracker, MlflowTracker):
                tracker.continue_journal()


def _start_once(fit: Fit, context: RunContext, tracker: Tracker) -> Outcome:
    """Run `fit` in several processes; the first of them tells this process what to record and to show."""
    receiver, sender = forkserver.context().Pipe(duplex=False)

    def restarted() -> None:
        console.note("a process died; restarting all from the newest checkpoint")
        if isinstance(tracker, MlflowTracker):
            tracker.continue_journal()

    with relayed(receiver, sender, tracker, restarted=restarted, pass_on=job.pass_on):
        return workers.start(
            context.config.launch, context.directory.path, _started_process, fit, context, sender, share_secrets()
        )


def _with_fewer_rows(context: RunContext, tracker: Tracker, error: OutOfMemory) -> RunContext:
    """Return a run that goes on from its newest checkpoint with half the rows at once in each process.

    The others wait for the gradients of a process that is out of memory, so none of them can go on.
    """
    config, directory = context.config, context.directory
    evaluates = isinstance(error, EvaluationOutOfMemory)
    key = "per_device_eval_batch_size" if evaluates else "per_device_train_batch_size"
    asked = int(config.trainer.args.get(key, 8))  # the default of TrainingArguments
    limits = [] if evaluates else [rows for _, rows in directory.state.rows_at_once]
    rows = max(min([asked, *limits]) // 2, 1)
    if evaluates:
        config = replace(config, trainer=replace(config.trainer, args={**config.trainer.args, key: rows}))
    else:
        directory.state.rows_at_once = [*directory.state.rows_at_once, [0, rows]]
        directory.save_state()
    callbacks.forget(directory.path)
    _find_checkpoint(directory)
    start = directory.checkpoint.name if directory.checkpoint else "the start"
    parts = str(rows) if evaluates else f"{-(-asked // rows)} x {rows}"
    logger.warning("%s. All processes go on from %s with %s", str(error).partition(";")[0], start, parts)
    tracker.set_tags({f"hfexp.{'eval_' if evaluates else ''}rows_at_once": str(rows)})
    return replace(context, config=config)


def _find_checkpoint(directory: RunDirectory) -> None:
    """Let a run that was started again resume from its newest checkpoint."""
    directory.checkpoint, directory.resumed = newest_whole(directory.checkpoints), True
    set_aside_newer(directory.checkpoints, directory.checkpoint)


def lead(fit: Fit, context: RunContext, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `fit` as the first of several processes that torchrun or `accelerate launch` started."""
    return _fit_together(fit, world.share(context), inputs, tracker)


def wait_for_first() -> Any:
    """Wait, as one of the others, for what the first process shares (context or result); print nothing from now on."""
    console.redirect(lambda name, *args: None)
    return world.share(None)


def follow(fit: Fit, context: RunContext) -> tuple[Inputs, Outcome]:
    """Run `fit` as one of the others, on the run that the first process has opened."""
    inputs = load_inputs(context.config)
    return inputs, _fit_together(fit, context, inputs, NullTracker())


def _fit_together(fit: Fit, context: RunContext, inputs: Inputs, tracker: Tracker) -> Outcome:
    """Run `fit` as one of several connected processes."""
    is_first = world.rank() == 0
    with StopTogether(context.directory.path, is_first) as signals:
        return fit(context, inputs, tracker if is_first else NullTracker(), signals)


def _started_process(
    fit: Fit, context: RunContext, sender: Connection, known_secrets: frozenset[str]
) -> Outcome | None:
    """Run `fit` in a process that the composing process has started; `sender` leads to that process."""
    share_secrets(known_secrets)
    rank, directory = world.rank(), context.directory
    console.quiet_libraries()
    use_threads(context.config.launch)
    keep_freed_memory()
    world.connect(context.config.launch, bool(context.config.trainer.args.get("use_cpu")))
    inputs = load_inputs(context.config)
    relay = Relay(sender, context.uri, context.run_id)
    if rank == 0:
        console.redirect(relay.send, context.terminal)
        job.listen(lambda progress: relay.send("pass_on", progress))
        if world.restarts():
            relay.send("restarted")
            callbacks.forget(directory.path)
            _find_checkpoint(directory)
    directory.checkpoint, directory.resumed = world.share((directory.checkpoint, directory.resumed))
    log = directory.path / ("hfexp.log" if rank == 0 else f"{workers.LOGS}/rank{rank}.log")
    with console.log_to(log):
        outcome = _fit_together(fit, context, inputs, relay)
    world.disconnect()
    outcome.model = None
    return outcome if rank == 0 else None
