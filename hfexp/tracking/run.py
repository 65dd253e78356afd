"""One job, one run: opened before training, closed with what truly happened."""

import contextlib
import getpass
import logging
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hfexp.config import Config, flatten, to_dict
from hfexp.origin import Origin, machine, mask_secrets
from hfexp.run_directory import RunDirectory, experiment_name
from hfexp.signals import uninterrupted
from hfexp.tracking.store import open_store, tracking_uri

logger = logging.getLogger(__name__)

MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
TRACEBACK = "traceback.txt"


class Tracker(Protocol):
    """What an experiment tells the record."""

    run_id: str | None
    uri: str | None

    def log_params(self, params: dict[str, Any]) -> None:
        """Record values that hold for the whole run."""
        ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Record measured values at a training step."""
        ...

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        """Copy a file or the contents of a directory into the record, below `name`."""
        ...


class NullTracker:
    """Records nothing (`tracking=none`)."""

    run_id: str | None = None
    uri: str | None = None

    def log_params(self, params: dict[str, Any]) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int) -> None: ...

    def set_tags(self, tags: dict[str, str]) -> None: ...

    def log_artifacts(self, path: Path, name: str | None = None) -> None: ...


@dataclass
class MlflowTracker:
    """Writes to one MLflow run through the client alone: no global run that another job could fall into."""

    client: Any
    run_id: str | None
    uri: str | None
    recorded_until: dict[str, int] = field(default_factory=dict)
    """Last step recorded of each metric before a resumed run was interrupted; earlier steps are not doubled."""
    recorded_params: set[str] = field(default_factory=set)
    """Params can't be changed: those that a resumed run has already are left as they are."""

    def log_params(self, params: dict[str, Any]) -> None:
        from mlflow.entities import Param

        new = {key: value for key, value in params.items() if key not in self.recorded_params}
        entries = [Param(key, mask_secrets(str(value))[:MAX_PARAM_LENGTH]) for key, value in new.items()]
        for start in range(0, len(entries), PARAMS_PER_BATCH):
            self.client.log_batch(self.run_id, params=entries[start : start + PARAMS_PER_BATCH])

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {k: v for k, v in metrics.items() if step > self.recorded_until.get(k, -1)}
        entries = [Metric(key, float(value), now, step) for key, value in new.items()]
        for start in range(0, len(entries), METRICS_PER_BATCH):
            self.client.log_batch(self.run_id, metrics=entries[start : start + METRICS_PER_BATCH])

    def set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(key, mask_secrets(value)[:MAX_TAG_LENGTH]) for key, value in tags.items()]
        self.client.log_batch(self.run_id, tags=entries)

    def log_artifacts(self, path: Path, name: str | None = None) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), name)
        else:
            self.client.log_artifact(self.run_id, str(path), name)


@contextlib.contextmanager
def open_run(config: Config, directory: RunDirectory, origin: Origin, code: dict[str, str]) -> Iterator[Tracker]:
    """Open the run of this directory; close it FINISHED, FAILED or KILLED as the block ends.

    Args:
        code: state of the code, from `hfexp.origin.git_state`.
    """
    _write_description(config, directory, origin, code)
    with _status(directory) as ending:
        _start(ending, config, directory, origin, code)
        ending.tracker.log_artifacts(directory.artifacts)
        yield ending.tracker
        ending.tracker.log_artifacts(directory.artifacts)


@dataclass
class _Ending:
    """What there is to close when the block ends; it can end before the run is fully open."""

    tracker: Tracker = field(default_factory=NullTracker)


@contextlib.contextmanager
def _status(directory: RunDirectory) -> Iterator[_Ending]:
    """Write the ending into the tracking store and the run directory."""
    ending = _Ending()
    try:
        yield ending
    except (KeyboardInterrupt, SystemExit) as error:
        signal_name = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else f"exit code {error.code}"
        _close(directory, ending.tracker, "killed", f"stopped by {signal_name}")
        raise
    except BaseException as error:
        (directory.artifacts / TRACEBACK).write_text(mask_secrets("".join(traceback.format_exception(error))))
        _close(directory, ending.tracker, "failed", f"{type(error).__name__}: {error}")
        raise
    _close(directory, ending.tracker, "finished", "")


def _close(directory: RunDirectory, tracker: Tracker, status: str, reason: str) -> None:
    """Close the record first, then the directory: an ending that is cut short leaves a run that can be continued."""
    with uninterrupted():
        if isinstance(tracker, MlflowTracker):
            _attempt("close the run", tracker.client.set_terminated, tracker.run_id, status.upper())
            if reason:
                _attempt("record why the run ended", tracker.set_tags, {"hfexp.status_reason": reason})
            if status == "failed":
                _attempt("record the traceback", tracker.log_artifacts, directory.artifacts / TRACEBACK)
        directory.state.status = status
        directory.save_state()


def _attempt(what: str, action: Callable[..., Any], *args: Any) -> None:
    """Do something at the end of a run whose failure must not hide how the run itself ended."""
    try:
        action(*args)
    except Exception as error:
        logger.warning("could not %s in MLflow: %s", what, error)


def _start(ending: _Ending, config: Config, directory: RunDirectory, origin: Origin, code: dict[str, str]) -> None:
    """Create the MLflow run, or open the one to continue."""
    if config.tracking.backend == "none":
        return
    client, experiment_id = open_store(config, experiment_name(config, origin))
    uri = tracking_uri(config.tracking.uri, config.output_dir)
    known = _known_run(client, directory)
    run_id = known or client.create_run(experiment_id, run_name=directory.name).info.run_id
    ending.tracker = tracker = MlflowTracker(client, run_id, uri)
    directory.state.run_id = run_id
    directory.save_state()
    if known is not None:
        client.update_run(known, status="RUNNING")
        recorded = client.get_run(known).data
        tracker.recorded_params = set(recorded.params)
        tracker.recorded_until = _last_steps(client, known, recorded.metrics)
        if "hfexp.status_reason" in recorded.tags:
            client.delete_tag(known, "hfexp.status_reason")
        tracker.set_tags({"hfexp.resumed": "true"})
    tracker.set_tags(_tags(config, directory, origin, code))
    tracker.log_params(flatten(to_dict(config)))


def _known_run(client: Any, directory: RunDirectory) -> str | None:
    """The run to continue, unless it was deleted from the store meanwhile."""
    from mlflow.exceptions import MlflowException

    if not directory.resumed or not directory.state.run_id:
        return None
    try:
        run = client.get_run(directory.state.run_id)
    except MlflowException:
        run = None
    if run is None or run.info.lifecycle_stage == "deleted":
        logger.warning("the MLflow run %s is gone; recording in a new one", directory.state.run_id)
        return None
    return directory.state.run_id


def _last_steps(client: Any, run_id: str, names: Iterable[str]) -> dict[str, int]:
    return {name: max(point.step for point in client.get_metric_history(run_id, name)) for name in names}


def _tags(config: Config, directory: RunDirectory, origin: Origin, code: dict[str, str]) -> dict[str, str]:
    tags = {
        "hfexp.config_hash": directory.state.config_hash,
        "hfexp.command": origin.command,
        "hfexp.overrides": " ".join(origin.overrides),
        "hfexp.run_dir": str(directory.path),
        "mlflow.source.name": Path(origin.program).name,
        "mlflow.user": _user(),
        "mlflow.source.type": "LOCAL",
    }
    tags |= {f"hfexp.{name}": option for name, option in origin.choices.items() if option}
    tags |= {f"hfexp.{name}": value for name, value in machine().items()}
    if code:
        tags |= {"hfexp.git_sha": code["git_sha"], "hfexp.git_branch": code["git_branch"]}
        tags |= {"mlflow.source.git.commit": code["git_sha"], "hfexp.git_dirty": str(bool(code["git_diff"])).lower()}
    return tags | config.tracking.tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may have no name for its user
        return "unknown"


def _write_description(config: Config, directory: RunDirectory, origin: Origin, code: dict[str, str]) -> None:
    """What was asked for, as files of the run directory and of the record."""
    from omegaconf import OmegaConf

    directory.artifacts.mkdir(exist_ok=True)
    (directory.artifacts / TRACEBACK).unlink(missing_ok=True)
    for name, content in (("config.yaml", to_dict(config)), ("overrides.yaml", list(origin.overrides))):
        (directory.path / name).write_text(mask_secrets(OmegaConf.to_yaml(OmegaConf.create(content))))
        shutil.copy(directory.path / name, directory.artifacts / name)
    (directory.artifacts / "command.txt").write_text(origin.command + "\n")
    if code.get("git_diff") or code.get("git_untracked"):
        untracked = "".join(f"# untracked: {name}\n" for name in code["git_untracked"].splitlines())
        (directory.artifacts / "git.diff").write_text(untracked + code["git_diff"])
