"""The directory of one run: named by identity, held by a lock while the run lives, continued or numbered anew."""

import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from hfexp.checkpoints import newest_whole, set_aside_newer
from hfexp.config import Config, OnExisting
from hfexp.errors import ConfigError
from hfexp.identity import config_hash
from hfexp.origin import Origin, file_name
from hfexp.process import ProcessId
from hfexp.screen import note

logger = logging.getLogger(__name__)

STATE = "run.json"


@dataclass
class RunState:
    """What is known of a run from outside (`run.json`)."""

    config_hash: str
    status: str = "running"
    """running, finished, failed or killed; `running` under a free lock means that the process is gone."""
    run_id: str | None = None
    """Of the tracking backend."""
    host: str = ""
    pid: int = 0
    process: str = ""
    """Start of the process, as in `hfexp.process.ProcessId.started`."""
    first_started: float = 0.0
    """When the run began, also if it was continued since; seconds since 1970."""
    git_sha: str = ""
    git_sha_before: str = ""
    """Commit of the code when the run was last started."""


@dataclass
class RunDirectory:
    """An open run directory."""

    path: Path
    state: RunState
    resumed: bool
    """The run had been started before and is being continued."""
    checkpoint: Path | None
    """The newest whole checkpoint, to resume from."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Files to be recorded with the run."""
        return self.path / "artifacts"

    @property
    def model(self) -> Path:
        """Where the final model is saved."""
        return self.path / "model"

    def save_state(self) -> None:
        save_state(self.path, self.state)


def run_name(config: Config, origin: Origin) -> str:
    """Name of a run without its identity: `name`, or the model and dataset options."""
    return config.name or f"{origin.choices.get('model', 'model')}-{origin.choices.get('dataset', 'data')}"


def experiment_name(config: Config, origin: Origin) -> str:
    """`tracking.experiment`, or the dataset option."""
    return config.tracking.experiment or origin.choices.get("dataset") or "default"


@contextlib.contextmanager
def open_run_directory(config: Config, origin: Origin, git_sha: str = "") -> Iterator[RunDirectory]:
    """Continue the unfinished run of this identity, or begin a new one; hold its lock meanwhile.

    Raises:
        ConfigError: the same experiment is running now, or exists under `on_existing=error`.
    """
    identity = config_hash(config)
    parent = Path(config.output_dir).absolute() / file_name(experiment_name(config, origin))
    stem = f"{file_name(run_name(config, origin))}-s{config.seed}-{identity[:8]}"
    lock = _lock(parent, identity)
    try:
        lock.acquire()
    except Timeout:
        _refuse_or_wait(lock, _latest(parent, stem))
    try:
        directory = _choose(parent, stem, identity, config.on_existing)
        process = ProcessId.own()
        directory.state.host, directory.state.pid, directory.state.process = process.host, process.pid, process.started
        directory.state.status = "running"
        directory.state.git_sha_before, directory.state.git_sha = directory.state.git_sha, git_sha
        directory.save_state()
        yield directory
    finally:
        lock.release()


def _refuse_or_wait(lock: FileLock, holder: tuple[Path, RunState] | None) -> None:
    """The lock is held: by the experiment itself, or by somebody who delivers what its dead process left."""
    state = holder[1] if holder else RunState("")
    if not ProcessId(state.host, state.pid, state.process).is_gone():
        where = f" by process {state.pid} on {state.host}, in {holder[0]}" if holder else ""
        raise ConfigError(f"this very experiment is running now{where}; wait for it, or change something (e.g. seed)")
    note("waiting for another process, which delivers the record of this experiment's last start")
    lock.acquire(timeout=-1)


@contextlib.contextmanager
def held_run(path: Path) -> Iterator[RunState | None]:
    """Hold the lock of a run directory whose process is gone, with its state.

    None if a process is working in it, or if it is no run directory.
    """
    state = read_state(path)
    if state is None:
        yield None
        return
    lock = _lock(path.parent, state.config_hash)
    try:
        lock.acquire()
    except Timeout:
        yield None
        return
    try:
        yield read_state(path)
    finally:
        lock.release()


def read_state(path: Path) -> RunState | None:
    """What is known of a run directory; None if it has no readable state (it was being made when its process died)."""
    try:
        return RunState(**json.loads((path / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def save_state(path: Path, state: RunState) -> None:
    """Write the state of a run directory, whole or not at all."""
    temporary = path / f".{STATE}"
    with temporary.open("w") as file:
        json.dump(asdict(state), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / STATE)


def _lock(parent: Path, identity: str) -> FileLock:
    locks = parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {parent} can't be written: {error.strerror}") from error
    return FileLock(locks / f"{identity[:16]}.lock", timeout=0)


def _choose(parent: Path, stem: str, identity: str, on_existing: OnExisting) -> RunDirectory:
    latest = _latest(parent, stem)
    if latest is None:
        return _create(parent / _next_name(parent, stem), identity)
    path, state = latest
    if on_existing is OnExisting.error:
        raise ConfigError(f"on_existing=error: this experiment exists already ({state.status}) in {path}")
    if on_existing is OnExisting.resume and state.status != "finished":
        checkpoint = newest_whole(path / "checkpoints")
        if checkpoint is not None or state.status != "failed":
            set_aside_newer(path / "checkpoints", checkpoint)
            return RunDirectory(path, state, resumed=True, checkpoint=checkpoint)
    return _create(parent / _next_name(parent, stem), identity)


def _create(path: Path, identity: str) -> RunDirectory:
    path.mkdir(parents=True)
    directory = RunDirectory(path, RunState(identity, first_started=time.time()), resumed=False, checkpoint=None)
    directory.artifacts.mkdir()
    return directory


def _numbered(parent: Path, stem: str) -> dict[int, Path]:
    """Run directories of one identity by number; the first has no suffix."""
    pattern = re.compile(re.escape(stem) + r"(?:-(\d+))?")
    found = ((pattern.fullmatch(path.name), path) for path in parent.iterdir() if path.is_dir())
    return {int(m.group(1) or 1): path for m, path in found if m}


def _next_name(parent: Path, stem: str) -> str:
    taken = _numbered(parent, stem)
    return f"{stem}-{max(taken) + 1}" if taken else stem


def _latest(parent: Path, stem: str) -> tuple[Path, RunState] | None:
    for _, path in sorted(_numbered(parent, stem).items(), reverse=True):
        state = read_state(path)
        if state is not None:
            return path, state
        logger.warning("%s has no readable %s and is left alone", path, STATE)
    return None
