"""Trackers, through which a run records params, metrics, tags, files and system metrics, from opening to closing."""

import contextlib
import logging
import re
import threading
import time
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from hfexp.core.config import Config, TrackingConfig, flatten, recorded_values
from hfexp.core.console import note, status
from hfexp.core.errors import ConfigError, RunError, SweepError, Terminated, first_line
from hfexp.core.process import uninterrupted
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_secrets
from hfexp.launch.workers import WorkerKilledError
from hfexp.tracking.delivery import Delivery, Writer
from hfexp.tracking.environment import Environment
from hfexp.tracking.journal import Journal, mask_tags, now
from hfexp.tracking.membership import child_tags, is_shared
from hfexp.tracking.mirrors import Mirrors, Place
from hfexp.tracking.names import experiment_name
from hfexp.tracking.recovery import append_closing, close_gone_runs
from hfexp.tracking.run_directory import COMMAND, RunDirectory
from hfexp.tracking.store import flush_wal, is_temporary, tracking_uri, why_unreachable

logger = logging.getLogger(__name__)

MAX_TAG_LENGTH = 5000
MAX_NAME_LENGTH = 250
_FORBIDDEN = re.compile(r"[^\w.\- /:]")


class Tracker(Protocol):
    """Interface that a run records through; every call returns at once."""

    uri: str | None

    @property
    def run_id(self) -> str | None:
        """Return the id of the run in the store; None if it has none (yet)."""
        ...

    def log_params(self, params: dict[str, Any]) -> None:
        """Record values that hold for the whole run."""
        ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics at a training step; NaN and infinities are recorded as such."""
        ...

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        """Copy a file or the contents of a directory, inside the run directory, into the record below `name`."""
        ...

    def record(self, kind: str, **content: Any) -> None:
        """Record anything else that `hfexp.tracking.delivery` can deliver."""
        ...


class NullTracker:
    """A tracker that records nothing (`tracking=none`), except in the trackers of `tracking.also`."""

    uri: str | None = None

    def __init__(self) -> None:
        self.mirrors = Mirrors()

    @property
    def run_id(self) -> str | None:
        return None

    def log_params(self, params: dict[str, Any]) -> None:
        self.mirrors.log_params(valid(params))

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.mirrors.log_metrics({name: float(value) for name, value in valid(metrics).items()}, step)

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None: ...

    def record(self, kind: str, **content: Any) -> None: ...


class MlflowTracker:
    """A tracker that writes to the run's journal, which a thread delivers to one MLflow run.

    It uses the MLflow client only: there is no global active run that another job could write to by mistake.
    """

    def __init__(self, directory: RunDirectory, uri: str, output_dir: Path) -> None:
        self.directory = directory
        self.uri: str | None = uri
        self.journal = Journal(directory.path)
        self.delivery = Delivery(directory.path, self.journal, uri, output_dir)
        self.delivery.save_state()
        self.journal.reserve_space()
        self.writer: Writer | None = None
        self.mirrors = Mirrors()
        self.continue_journal()

    @property
    def run_id(self) -> str | None:
        """Return the id of the run in the store; None until the store has been reached."""
        return self.delivery.state.run_id

    def log_params(self, params: dict[str, Any]) -> None:
        new = {k: str(v) for k, v in valid(params).items() if k not in self._recorded_params}
        if new:
            self.journal.append("params", params=new)
            self.mirrors.log_params(new)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        new = {k: float(v) for k, v in valid(metrics).items() if step > self._recorded_until.get(k, -1)}
        # The Trainer logs the epoch with the loss, and again with the evaluation at the same step.
        new = {k: v for k, v in new.items() if self._last_logged.get(k) != (step, v)}
        self._last_logged |= {k: (step, v) for k, v in new.items()}
        if new:
            self.journal.append("metrics", metrics=new, step=step, time=now())
            self.mirrors.log_metrics(new, step)

    def set_tags(self, tags: dict[str, str]) -> None:
        self.journal.append("tags", tags=masked(tags))

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        self.journal.append("artifacts", path=str(path.relative_to(self.directory.path)), name=name)

    def record(self, kind: str, **content: Any) -> None:
        self.journal.append(kind, **content)

    def finish(self, status: str, reason: str) -> None:
        """Record how the run ended; `flush` delivers it."""
        self.journal.release_space()
        append_closing(self.directory.path, self.journal)
        self.journal.append("end", status=status, reason=masked({"": reason})[""], time=now())

    def continue_journal(self) -> None:
        """Read what is recorded already, since a resumed run repeats the steps after its last checkpoint."""
        self._recorded_params, self._recorded_until = self.journal.recorded()
        self._last_logged: dict[str, tuple[int, float]] = {}

    def begin_journal(self) -> None:
        """Discard the journal of an earlier process that died before it could write `create`."""
        self.journal.discard()
        self.delivery.state.offset, self.delivery.state.deferred = 0, []

    def start_writer(self) -> Writer:
        """Start to deliver in the background."""
        self.writer = Writer(self.delivery, then=self._close_gone_runs)
        self.writer.start()
        return self.writer

    def flush(self) -> None:
        """Deliver everything; note what can't be delivered, which stays in the run directory."""
        writer = self.writer or self.start_writer()
        status("delivering the record")
        try:
            complete = writer.close()
        except KeyboardInterrupt:  # the journal has the end of the run: stop waiting
            complete = False
        status("")
        flush_wal(str(self.uri))
        if not complete:
            problem = first_line(writer.problem) if writer.problem else "some entries were not delivered"
            note(f"the record at {self.uri} is incomplete: {problem}")
            note(f"the rest is kept in {self.directory.path}; `hfexp sync` delivers it")

    def _close_gone_runs(self) -> None:
        for run_id in close_gone_runs(self.delivery.client(), str(self.uri), self.delivery.output_dir):
            logger.info("closed the run %s, whose process is gone", run_id)


def masked(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags without secrets, under valid names and short enough for every store."""
    return {
        key: value[:MAX_TAG_LENGTH] for key, value in mask_tags({k: str(v) for k, v in valid(tags).items()}).items()
    }


def valid(values: dict[str, Any]) -> dict[str, Any]:
    """Make names valid in every store (`mlflow/utils/validation.py`), as one bad name would hold up many others."""
    return {_FORBIDDEN.sub("_", key).replace("//", "/_").strip("/")[:MAX_NAME_LENGTH]: v for key, v in values.items()}


# Opening and closing of a run's record: opened before training, closed with the true status.


TRACEBACK = "traceback.txt"
SERVER_PATIENCE = 15.0
"""Seconds that a server has to create the run; after that, training begins without its id."""


@dataclass(frozen=True)
class Opening:
    """Initial content of a record."""

    experiment: str
    """Name of the MLflow experiment."""
    files: dict[str, str]
    """Texts that say what was asked for, by file name."""
    params: dict[str, Any]
    tags: dict[str, str]
    also: list[str] = field(default_factory=list)
    """Trackers beside MLflow."""
    key: str | None = None
    """Key of the run, for hosts that share it; None: a new one."""
    shared: bool = False
    """True if another host may continue the run."""


def open_run(
    config: Config, directory: RunDirectory, origin: Origin, environment: Environment
) -> contextlib.AbstractContextManager[Tracker]:
    """Open the run of this directory; close it as FINISHED, FAILED or KILLED when the block ends."""
    from omegaconf import OmegaConf

    values = recorded_values(config)
    contents = {"config.yaml": values, "overrides.yaml": list(origin.overrides)}
    files = {name: OmegaConf.to_yaml(OmegaConf.create(content)) for name, content in contents.items()}
    tags = common_tags(directory, origin, environment) | child_tags(config.point) | config.tracking.tags
    opening = Opening(
        experiment_name(config, origin), files, flatten(values), tags, config.tracking.also,
        shared=is_shared(config.point),
    )  # fmt: skip
    return open_record(config.tracking, Path(config.output_dir), directory, origin, environment, opening)


@contextlib.contextmanager
def open_record(
    tracking: TrackingConfig,
    output_dir: Path,
    directory: RunDirectory,
    origin: Origin,
    environment: Environment,
    opening: Opening,
) -> Iterator[Tracker]:
    """Open the record of a run or a sweep; close it as FINISHED, FAILED or KILLED when the block ends."""
    _write_description(directory, origin, environment, opening.files)
    with _recorded_ending(directory) as ending:
        if tracking.backend != "none":
            uri = tracking_uri(tracking.uri, str(output_dir))
            ending.tracker = tracker = MlflowTracker(directory, uri, output_dir)
            _start(tracker, opening)
        _open_mirrors(ending.tracker, directory, output_dir, opening)
        ending.tracker.log_artifacts(directory.artifacts)
        yield ending.tracker


@dataclass
class _Ending:
    """Tracker to close when the block ends, which may be before the run is fully open."""

    tracker: MlflowTracker | NullTracker = field(default_factory=NullTracker)


@contextlib.contextmanager
def _recorded_ending(directory: RunDirectory) -> Iterator[_Ending]:
    """Record in the run directory and the tracking store how the block ended."""
    ending = _Ending()
    try:
        yield ending
    except KeyboardInterrupt:
        _close(directory, ending.tracker, "killed", "stopped by Ctrl-C")
        raise
    except Terminated as stop:
        _close(directory, ending.tracker, "killed", stop.reason)
        raise
    except WorkerKilledError as error:  # as a run with a single process would be
        _close(directory, ending.tracker, "killed", str(error))
        raise
    except BaseException as error:
        if isinstance(ending.tracker, MlflowTracker):
            ending.tracker.journal.release_space()  # for the traceback, if the disk is full
        if not isinstance(error, SweepError):  # each of its jobs has its own traceback
            _write_traceback(directory, error)
        _close(directory, ending.tracker, "failed", _reason(error))
        if isinstance(error, SystemExit) and not error.code:
            raise RunError(f"{_reason(error)} before the run had finished") from error
        raise
    _close(directory, ending.tracker, "finished", "")


def _write_traceback(directory: RunDirectory, error: BaseException) -> None:
    with contextlib.suppress(Exception):  # e.g. the disk is full, as the error itself says
        text = mask_secrets("".join(traceback.format_exception(error)))
        (directory.artifacts / TRACEBACK).write_text(text, encoding="utf-8", errors="backslashreplace")


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"sys.exit({'' if error.code is None else repr(error.code)}) was called"
    return f"{type(error).__name__}: {error}"


def _close(directory: RunDirectory, tracker: MlflowTracker | NullTracker, status: str, reason: str) -> None:
    """Save how the run ended, without interruptions; then deliver, which a (second) Ctrl-C cuts short."""
    with uninterrupted():
        if isinstance(tracker, MlflowTracker):
            tracker.finish(status, reason)
        directory.end(status)
        _save_state(directory)
    if isinstance(tracker, MlflowTracker):
        tracker.flush()
        directory.state.run_id = tracker.run_id
    directory.state.closed = True
    _save_state(directory)
    tracker.mirrors.finish(status == "finished")  # last: it may wait for a network, and Ctrl-C ends that


def _save_state(directory: RunDirectory) -> None:
    try:
        directory.save_state()
    except OSError as error:  # must not hide the error that ended the run
        note(f"{directory.path} can't be written: {error.strerror}")


def _start(tracker: MlflowTracker, opening: Opening) -> None:
    """Create the MLflow run, or open the one to resume; if the store does not answer, that happens later."""
    directory, tags = tracker.directory, masked(opening.tags)
    if tracker.journal.begun():
        tracker.journal.append("tags", tags={**tags, "hfexp.resumed": "true"})
        tracker.journal.append("resume", time=now())
    else:
        tracker.begin_journal()
        identity = {"experiment": opening.experiment, "name": directory.title, "key": opening.key or uuid4().hex}
        identity |= {"shared": True} if opening.shared else {}
        tracker.journal.append("create", tags=tags, time=now(), **identity)
    _wait_for_store(tracker, str(tracker.uri))
    directory.state.run_id = tracker.run_id
    directory.save_state()
    tracker.log_params(opening.params)


def _open_mirrors(
    tracker: MlflowTracker | NullTracker, directory: RunDirectory, output_dir: Path, opening: Opening
) -> None:
    """Open the trackers beside MLflow, and give them the params of this start."""
    key = f"{directory.path.name}-{directory.state.first_started:.0f}"
    tracker.mirrors.open(opening.also, Place(opening.experiment, directory.title, key, directory.path, output_dir))
    tracker.mirrors.log_params(valid(opening.params))


def _wait_for_store(tracker: MlflowTracker, uri: str) -> None:
    """Start to deliver, and wait: for a database as long as it takes, for a server `SERVER_PATIENCE` seconds at most.

    Raises:
        Exception: the database can't be opened, or the experiment was deleted; the user can correct both.
    """
    is_server = uri.startswith("http")
    problem = why_unreachable(uri)
    writer = tracker.start_writer()
    if problem is None:
        if not writer.tried.wait(SERVER_PATIENCE if is_server else None):
            problem = f"the MLflow server at {uri} does not answer"
        elif writer.problem is not None:
            if isinstance(writer.problem, ConfigError) or not (is_server or is_temporary(writer.problem)):
                raise writer.problem
            problem = f"MLflow at {uri} is not accepting writes ({first_line(writer.problem)})"
    if problem is not None:
        note(f"{problem}; the record is kept in {tracker.directory.path}")


def common_tags(directory: RunDirectory, origin: Origin, environment: Environment) -> dict[str, str]:
    """Return the tags by which runs and sweeps are found."""
    tags = {
        "hfexp.config_hash": directory.state.config_hash,
        "hfexp.command": origin.command,
        "hfexp.overrides": " ".join(origin.overrides),
        "hfexp.run_dir": str(directory.path),
        "mlflow.source.name": Path(origin.program).name,
        "mlflow.source.type": "LOCAL",
        "mlflow.user": environment.user,
    }
    tags |= {f"hfexp.{name}": option for name, option in origin.choices.items() if option and name != "search"}
    return tags | environment.tags()


def _write_description(
    directory: RunDirectory, origin: Origin, environment: Environment, files: dict[str, str]
) -> None:
    """Write what was asked for, and the environment, to files of the run directory and of the record."""
    directory.artifacts.mkdir(exist_ok=True)
    (directory.artifacts / TRACEBACK).unlink(missing_ok=True)
    for name, content in files.items():
        for place in (directory.path, directory.artifacts):
            (place / name).write_text(mask_secrets(content))
    (directory.artifacts / COMMAND).write_text(origin.command + "\n")
    environment.save(directory.artifacts)


# Monitor of the load on the devices that this job uses, and on no others.


MB = 2**20


class SystemMonitor:
    """Context manager that records `system/...` metrics at an interval; their step is the run's age in seconds.

    CPU and memory are those of this process and its children (data loader workers); 100 % is one processor. The
    accelerators are those that this process sees (`CUDA_VISIBLE_DEVICES`). MLflow's own monitor
    (`mlflow/system_metrics`) would record the whole machine, with all its accelerators.
    """

    def __init__(self, tracker: Tracker, interval: float | None, started: float, processes: int = 1) -> None:
        """Set up the monitor; a `with` block starts it.

        Args:
            tracker: the tracker that records the metrics.
            interval: seconds between two samples; None for no metrics.
            started: start of the run, in seconds since 1970; 0: now.
            processes: processes of the run. With more than one, the others use the accelerators that this one sees.
        """
        self._tracker = tracker
        self._interval = interval
        # On the monotonic clock, so that steps don't go back when the system's clock is set.
        self._began = time.monotonic() - (max(0.0, time.time() - started) if started else 0.0)
        self._others = processes > 1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._processes: dict[int, Any] = {}

    def __enter__(self) -> "SystemMonitor":
        if self._interval is not None:
            self._thread = threading.Thread(target=self._run, args=(self._interval,), name="hfexp-load", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()

    def _run(self, interval: float) -> None:
        self.sample()  # the first sample starts the measurement of CPU time
        last = None
        while not self._stop.wait(interval):
            last = self._age()
            self._tracker.log_metrics(self.sample(), last)
        if self._age() != last:  # a second sample for the same second would be a second value at its step
            self._tracker.log_metrics(self.sample(), self._age())

    def _age(self) -> int:
        """Return the age of the run, in seconds."""
        return round(time.monotonic() - self._began)

    def sample(self) -> dict[str, float]:
        """Return the CPU load since the last sample, and the present use of memory and accelerators."""
        cpu, memory = self._process_tree()
        load = {"system/process_cpu_percentage": cpu, "system/process_memory_megabytes": memory / MB}
        return load | _accelerators(self._others)

    def _process_tree(self) -> tuple[float, float]:
        import psutil

        own = psutil.Process()
        processes = {process.pid: process for process in (own, *own.children(recursive=True))}
        # psutil measures CPU time since the last call on the same object, so the objects are kept.
        self._processes = {pid: self._processes.get(pid, process) for pid, process in processes.items()}
        cpu = memory = 0.0
        for process in self._processes.values():
            with contextlib.suppress(psutil.Error):  # the process has just ended
                cpu += process.cpu_percent()
                memory += process.memory_info().rss
        return cpu, memory


def _accelerators(used_by_others: bool) -> dict[str, float]:
    import torch

    load = {}
    if not (torch.cuda.is_available() and (used_by_others or torch.cuda.is_initialized())):
        return load
    for index in range(torch.cuda.device_count()):
        name = f"system/gpu_{index}"
        with contextlib.suppress(Exception):  # the driver may not support it; the run goes on
            load[f"{name}_memory_usage_megabytes"] = torch.cuda.device_memory_used(index) / MB
            load[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(index))
            load[f"{name}_power_usage_watts"] = torch.cuda.power_draw(index) / 1000
    return load
