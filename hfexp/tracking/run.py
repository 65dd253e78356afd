"""Opening and closing of a run's record: opened before training, closed with the true status."""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from hfexp.core.config import Config, TrackingConfig, flatten, recorded_values
from hfexp.core.console import note
from hfexp.core.errors import ConfigError, RunError, SweepError, Terminated, first_line
from hfexp.core.process import uninterrupted
from hfexp.core.provenance import Origin
from hfexp.core.secrets import mask_secrets
from hfexp.launch.workers import WorkerKilledError
from hfexp.tracking.environment import Environment
from hfexp.tracking.journal import now
from hfexp.tracking.nesting import child_tags
from hfexp.tracking.run_directory import RunDirectory, experiment_name
from hfexp.tracking.store import is_temporary, tracking_uri, why_unreachable
from hfexp.tracking.tracker import MlflowTracker, NullTracker, Tracker, masked

logger = logging.getLogger(__name__)

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


def open_run(
    config: Config, directory: RunDirectory, origin: Origin, environment: Environment
) -> contextlib.AbstractContextManager[Tracker]:
    """Open the run of this directory; close it as FINISHED, FAILED or KILLED when the block ends."""
    from omegaconf import OmegaConf

    values = recorded_values(config)
    contents = {"config.yaml": values, "overrides.yaml": list(origin.overrides)}
    files = {name: OmegaConf.to_yaml(OmegaConf.create(content)) for name, content in contents.items()}
    tags = common_tags(directory, origin, environment) | child_tags(config.point) | config.tracking.tags
    opening = Opening(experiment_name(config, origin), files, flatten(values), tags)
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
        ending.tracker.log_artifacts(directory.artifacts)
        yield ending.tracker


@dataclass
class _Ending:
    """Tracker to close when the block ends, which may be before the run is fully open."""

    tracker: Tracker = field(default_factory=NullTracker)


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


def _close(directory: RunDirectory, tracker: Tracker, status: str, reason: str) -> None:
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
        identity = {"experiment": opening.experiment, "name": directory.name, "key": uuid4().hex}
        tracker.journal.append("create", tags=tags, time=now(), **identity)
    _wait_for_store(tracker, str(tracker.uri))
    directory.state.run_id = tracker.run_id
    directory.save_state()
    tracker.log_params(opening.params)


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
    (directory.artifacts / "command.txt").write_text(origin.command + "\n")
    environment.save(directory.artifacts)
