"""One run in several processes, started by the process that composes, on several machines, or by torchrun."""

import contextlib
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import uuid4

from hfexp.core import __version__, console
from hfexp.core.checkpoint import newest_whole, set_aside_newer
from hfexp.core.config import Config, flatten, to_dict
from hfexp.core.errors import ConfigError, EvaluationOutOfMemory, OutOfMemory, one_of
from hfexp.core.machine import keep_freed_memory
from hfexp.core.provenance import Origin
from hfexp.core.secrets import share_secrets, without_secrets
from hfexp.data.threads import use_threads
from hfexp.experiment.context import Inputs, Outcome, RunContext
from hfexp.experiment.preflight import load_inputs
from hfexp.experiment.result import Result
from hfexp.launch import forkserver, job, lost, workers, world
from hfexp.tracking.lineage import split_digests
from hfexp.tracking.run_directory import RunDirectory
from hfexp.tracking.tracker import MlflowTracker, NullTracker, Tracker
from hfexp.training import callbacks
from hfexp.training.callbacks import StopFiles, StopKeys, StopOnSignal, StopTogether

logger = logging.getLogger(__name__)

Fit = Callable[[RunContext, Inputs, Tracker, StopOnSignal], Outcome]
"""`hfexp.experiment.fit.fit`, which each process of a run calls."""

Record = Callable[[Config, Origin], Result]
"""`hfexp.experiment.run.record`, which each process calls that joins others."""
OWN_KEYS = ("launch.num_processes", "launch.num_threads")
"""Keys that may differ between the machines of a run."""

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


def start_among_machines(record: Record, config: Config, origin: Origin) -> tuple[Result, bool]:
    """Run this machine's part of a run on several machines: processes that join those of the others as torchrun's do.

    Returns:
        The result, and whether this is the first machine, which shows it.
    """
    from hfexp.launch import machines

    inputs = load_inputs(config)  # what this machine lacks is said before it waits for the others
    facts = common_facts(config, inputs)
    receiver, sender = forkserver.context().Pipe(duplex=False)
    arguments = (record, config, origin, sender, console.is_terminal(), share_secrets())
    with relayed(receiver, sender, NullTracker(), pass_on=job.pass_on):
        result, is_first = machines.start(config.launch, facts, _machine_process, *arguments)
    return replace(result, processor=inputs.processor), is_first


def common_facts(config: Config, inputs: Inputs) -> dict[str, str]:
    """Return what must be the same on all machines of a run: versions, settings and rows."""
    versions = {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
    settings = flatten(without_secrets(to_dict(config)))
    rows = {
        f"the {split} split": f"{facts['rows']} rows with digest {facts['digest'][:8]}"
        for split, facts in split_digests(inputs.dataset).items()
        if facts["rows"] is not None
    }
    own = {"hfexp": __version__, "python": ".".join(platform.python_version_tuple()[:2])} | versions
    return own | {key: str(value) for key, value in settings.items() if key not in OWN_KEYS} | rows


def _machine_process(
    record: Record, config: Config, origin: Origin, sender: Connection, terminal: bool, known_secrets: frozenset[str]
) -> Result:
    """Join the processes of the other machines; `sender` leads to the process that has started this one."""
    share_secrets(known_secrets)
    console.quiet_libraries()
    config.launch.num_processes = world.size()
    use_threads(config.launch)
    keep_freed_memory()
    if world.rank() == 0:
        relay = Relay(sender, None, None)
        console.redirect(relay.send, terminal)
        job.listen(lambda progress: relay.send("pass_on", progress))
    result = record(config, origin)
    return replace(result, processor=None, _model=None)


@contextlib.contextmanager
def joined_processes(config: Config) -> Iterator[bool]:
    """Connect to the other processes if this is one of several that were started, here or on other machines.

    Yields:
        True in the first process, whose config holds for all, and which opens and records the run.
    """
    if not world.is_together():
        yield True
        return
    world.connect(config.launch, bool(config.trainer.args.get("use_cpu")))
    with lost.explained():
        if world.spans_machines():
            check_output_shared(Path(config.output_dir))
        yield world.rank() == 0
    world.disconnect()  # not after an error: the other processes may be waiting in a collective call


def check_output_shared(output_dir: Path) -> None:
    """Check that all machines see the first one's output directory: each reads and writes its part of a checkpoint.

    Raises:
        ConfigError: names the machines that do not see it.
    """
    mark = output_dir.absolute() / f".shared-{uuid4().hex}"
    if world.rank() == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    mark = world.share(mark)
    seen = world.gather(mark.exists())
    if world.rank() == 0:
        mark.unlink()
    blind = {world.machine_of(rank) for rank, sees in enumerate(seen) if not sees}
    if blind:
        raise ConfigError(
            f"output_dir={output_dir}: {one_of(blind)} can't see the folder {mark.parent} of {world.machine_of(0)}; "
            "all machines of a run write and read its checkpoints: give output_dir=FOLDER in a file system that all "
            "of them share under the same path"
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
    is_first, run_dir = world.rank() == 0, context.directory.path
    if os.environ.get(world.ATTEMPT):
        (run_dir / workers.LOGS).mkdir(exist_ok=True)
        workers.write_log_to(run_dir / workers.LOGS, world.rank())
    agreement = StopKeys(world.store()) if world.spans_machines() else StopFiles(run_dir)
    with lost.explained(), StopTogether(agreement, is_first) as signals:
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
