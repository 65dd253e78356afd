"""Run directories: named by the experiment's identity, locked while the run lives, resumed or numbered."""

import contextlib
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from filelock import Timeout

from hfexp.core.checkpoint import newest_whole, set_aside_newer
from hfexp.core.config import Config, OnExisting
from hfexp.core.console import note
from hfexp.core.errors import AlreadyRunning, ConfigError
from hfexp.core.files import replace_file
from hfexp.core.identity import config_hash, local_files_fingerprint
from hfexp.core.locks import SharedLock
from hfexp.core.outside import DamagedRecord, parse, read_bytes, why_foreign, why_not_contained
from hfexp.core.process import ProcessId
from hfexp.core.provenance import Origin, file_name
from hfexp.tracking.membership import TrialKey, note_run_directory
from hfexp.tracking.names import experiment_name, run_name

logger = logging.getLogger(__name__)

# `run.json`: the state of a run, for other processes to read.


STATE = "run.json"
COMMAND = "command.txt"
"""File among the artifacts with the command that started the run."""
IDENTITY_DIGITS = 8
"""Digits of an experiment's identity in the name of a run directory."""


@dataclass
class RunState:
    """Content of `run.json`."""

    config_hash: str
    status: str = "running"
    """running, finished, failed or killed; `running` without a held lock means that the process is gone."""
    run_id: str | None = None
    """Run id in the tracking backend."""
    host: str = ""
    pid: int = 0
    process: str = ""
    """Start of the process, from `hfexp.core.process.ProcessId.started`."""
    first_started: float = 0.0
    """Time of the run's first start, in seconds since 1970; resuming does not change it."""
    git_sha: str = ""
    """Commit of the code at the latest start of the run."""
    git_sha_before: str = ""
    """Commit of the code at the start before that."""
    last_started: float = 0.0
    """Time of the latest start, in seconds since 1970, as long as its process has not noted an end; else 0."""
    seconds: float = 0.0
    """Seconds that the run was running over all its starts; a killed start counts until its last sign of life."""
    kind: str = "run"
    """run or sweep."""
    point: str | None = None
    """Point of the sweep that the run belongs to, as text (`hfexp.tracking.membership.TrialKey`)."""
    data: str | None = None
    """Stamp of the local data of a sweep's point (`hfexp.core.identity`)."""
    splits: dict[str, dict[str, Any]] | None = None
    """Digest and number of rows (None for a stream) of each data split, at the latest start of the run."""
    values: list[float] | None = None
    """Objective values of a finished point of a sweep."""
    pruned_step: int | None = None
    """Step of the evaluation after which a sweep pruned the run."""
    rows_at_once: list[list[int]] = field(default_factory=list)
    """Pairs of a step and a number: from that step on, the model takes at most so many rows at once."""
    closed: bool = True
    """True once the run's record has been delivered, as far as the tracking store accepted it."""
    others: dict[str, Any] = field(default_factory=dict)
    """Keys that another version of hfexp wrote; they are kept unchanged."""


def read_state(path: Path) -> RunState | None:
    """Read the state of a run directory; return None if it has none, or a damaged one, which is logged.

    A process may have died while it created the directory. Keys of another hfexp version are kept in `others`.
    """
    file = path / STATE
    try:
        content = read_bytes(file)
        state = parse(content, RunState, str(file))
        known = {entry.name for entry in fields(RunState)}
        state.others = {key: value for key, value in json.loads(content).items() if key not in known}
    except FileNotFoundError:
        return None
    except DamagedRecord as error:
        logger.warning("%s: the directory is ignored", error)
        return None
    return state


def save_state(path: Path, state: RunState) -> None:
    """Write the state of a run directory atomically."""
    content = asdict(state)
    others = content.pop("others")
    replace_file(path / STATE, json.dumps({**others, **content}, indent=1), sync=True)


@dataclass
class RunDirectory:
    """An open run directory."""

    path: Path
    state: RunState
    resumed: bool
    """True if the run was started before and is being continued."""
    checkpoint: Path | None
    """The newest complete checkpoint, to resume from."""
    began: float = 0.0
    """Time of the monotonic clock when this process began to work in the directory."""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def title(self) -> str:
        """Return the name by which the run is recorded: that of its directory without the identity."""
        return self.name.replace(f"-{self.state.config_hash[:IDENTITY_DIGITS]}", "", 1)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Return the directory of the files that are recorded with the run."""
        return self.path / "artifacts"

    @property
    def model(self) -> Path:
        """Return the directory of the final model."""
        return self.path / "model"

    def save_state(self) -> None:
        save_state(self.path, self.state)

    def begin(self, git_sha: str = "") -> None:
        """Save in `run.json` that this process is working in the directory."""
        state, process = self.state, ProcessId.own()
        if state.last_started:
            state.seconds += max(0.0, _last_activity(self.path) - state.last_started)
        state.host, state.pid, state.process = process.host, process.pid, process.started
        state.status, state.closed, state.last_started = "running", False, time.time()
        state.git_sha_before, state.git_sha = state.git_sha, git_sha
        self.began = time.monotonic()
        self.save_state()

    def end(self, status: str) -> None:
        """Set how the run ended; the caller saves it."""
        self.state.status = status
        self.state.seconds += time.monotonic() - self.began
        self.state.last_started = 0.0


@contextlib.contextmanager
def open_run_directory(
    config: Config, origin: Origin, git_sha: str = "", splits: dict[str, dict[str, Any]] | None = None
) -> Iterator[RunDirectory]:
    """Continue the unfinished run of this identity, or start a new one; hold its lock meanwhile.

    A point of a sweep has a run of its own, even if other runs have the same identity, and those leave it alone. A run
    whose data has changed is not continued.

    Args:
        splits: digest and size of each split, from `hfexp.tracking.lineage.split_digests`.

    Raises:
        ConfigError: the same experiment is running now, or exists under `on_existing=error`.
    """
    location = _Location.of(config, origin)
    state = RunState(location.identity, point=config.point)
    with _hold_lock(location.parent, state, lambda: _latest(location, config.point)):
        directory = _resume_or_create(location, config, splits)
        directory.state.splits = splits
        if config.point is not None:
            directory.state.data = local_files_fingerprint(config.dataset.source)
        directory.begin(git_sha)
        if config.point is not None:
            note_run_directory(TrialKey.parse(config.point), directory.path)
        yield directory


def find_run(config: Config, origin: Origin) -> tuple[Path, RunState] | None:
    """Find the latest run of this identity, if there is one; nothing is created."""
    location = _Location.of(config, origin)
    return _latest(location, config.point) if location.parent.is_dir() else None


def new_directory(config: Config, origin: Origin) -> Path:
    """Create the directory of a run that is restored; until it has a `run.json`, nothing takes notice of it."""
    location = _Location.of(config, origin)
    location.parent.mkdir(parents=True, exist_ok=True)
    return _create(location, config.point).path


@dataclass(frozen=True)
class _Location:
    """Where the runs of one experiment are."""

    parent: Path
    stem: str
    """Name of the directory of a new run, without its number."""
    pattern: re.Pattern[str]
    """Matches the directories of this experiment's runs; a config may be reached by other overrides than before."""
    identity: str

    @classmethod
    def of(cls, config: Config, origin: Origin) -> "_Location":
        identity = config_hash(config)
        parent = Path(config.output_dir).absolute() / file_name(experiment_name(config, origin))
        ending = f"-s{config.seed}-{identity[:IDENTITY_DIGITS]}"
        stem = f"{file_name(run_name(config, origin))}{ending}"
        names = re.escape(file_name(config.name)) if config.name else r"[^.].*"  # a dot: one that is being removed
        return cls(parent, stem, re.compile(rf"{names}{re.escape(ending)}(?:-(\d+))?"), identity)


@contextlib.contextmanager
def open_sweep_directory(path: Path, git_sha: str = "") -> Iterator[RunDirectory]:
    """Open the directory of a sweep like that of a run: with its lock, its state and its record.

    Raises:
        ConfigError: the sweep is running now.
    """
    identity = hashlib.sha256(f"sweep {path.name}".encode()).hexdigest()

    def holder() -> tuple[Path, RunState] | None:
        state = read_state(path)
        return (path, state) if state else None

    with _hold_lock(path.parent, RunState(identity, kind="sweep"), holder):
        known = read_state(path)
        state = known or RunState(identity, kind="sweep", first_started=time.time())
        path.mkdir(parents=True, exist_ok=True)
        directory = RunDirectory(path, state, resumed=known is not None, checkpoint=None)
        directory.artifacts.mkdir(exist_ok=True)
        directory.begin(git_sha)
        yield directory


@contextlib.contextmanager
def _hold_lock(parent: Path, state: RunState, holder: Callable[[], tuple[Path, RunState] | None]) -> Iterator[None]:
    """Hold the lock of a run; `holder` finds the directory whose process may hold it."""
    lock = _lock(parent, state)
    try:
        lock.acquire()
    except Timeout:
        _refuse_or_wait(lock, state.kind, holder())
    try:
        yield
    finally:
        lock.release()


def _refuse_or_wait(lock: SharedLock, kind: str, holder: tuple[Path, RunState] | None) -> None:
    """Refuse if the experiment itself holds the lock; wait for a process that delivers a dead run's record."""
    state = holder[1] if holder else RunState("")
    noun, change = ("experiment", "change something (e.g. seed)") if kind == "run" else ("sweep", "set search.name")
    if not ProcessId(state.host, state.pid, state.process).is_gone():
        where = f" (pid {state.pid} on {state.host}) in {holder[0]}" if holder else ""
        raise AlreadyRunning(f"this {noun} is already running{where}; wait for it, or {change}")
    note(f"waiting for another process that delivers the record of this {noun}'s previous start")
    lock.acquire(timeout=-1)


@contextlib.contextmanager
def held_run(path: Path) -> Iterator[RunState | None]:
    """Hold the lock of a run directory whose process is gone, and yield its state.

    Yield None if a process is working in it, or if it is not a run directory.
    """
    state = read_state(path)
    if state is None:
        yield None
        return
    lock = _lock(path.parent, state)
    try:
        lock.acquire()
    except Timeout:
        yield None
        return
    try:
        yield read_state(path)
    finally:
        lock.release()


def _last_activity(path: Path) -> float:
    """Return when a run last logged or saved anything, in seconds since 1970; 0 if it never did."""
    paths = (path / "hfexp.log", path / "checkpoints")
    return max((p.stat().st_mtime for p in paths if p.exists()), default=0.0)


def _lock(parent: Path, state: RunState) -> SharedLock:
    """Return the lock of an identity; each point of a sweep has its own, because several may share an identity."""
    name, locks = state.config_hash[:16], parent / ".locks"
    if state.point is not None:
        name += f"-{hashlib.sha256(state.point.encode()).hexdigest()[:8]}"
    try:
        locks.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir: {parent} can't be written: {error.strerror}") from error
    return SharedLock(locks / f"{name}.lock", timeout=0, thread_local=False)  # a thread may open a sweep's record


def _resume_or_create(location: _Location, config: Config, splits: dict[str, dict[str, Any]] | None) -> RunDirectory:
    latest = _latest(location, config.point, note)
    if latest is None:
        return _create(location, config.point)
    path, state = latest
    if config.on_existing is OnExisting.error:
        raise ConfigError(f"on_existing=error: this experiment exists already ({state.status}) in {path}")
    changes = describe_changes(state.splits, splits)
    if config.on_existing is OnExisting.resume and state.status != "finished" and changes:
        note(f"the data has changed since {path.name} was interrupted ({changes}): starting a new run")
    elif config.on_existing is OnExisting.resume and state.status != "finished":
        checkpoint = newest_whole(path / "checkpoints")
        if checkpoint is not None or state.status != "failed":
            set_aside_newer(path / "checkpoints", checkpoint)
            return RunDirectory(path, state, resumed=True, checkpoint=checkpoint)
    return _create(location, config.point)


def describe_changes(before: dict[str, dict[str, Any]] | None, now: dict[str, dict[str, Any]] | None) -> str:
    """Describe how the splits differ; empty if they do not, or if one side is unknown."""
    if before is None or now is None:
        return ""
    changes = []
    for split in sorted(before.keys() | now.keys()):
        was, is_now = before.get(split), now.get(split)
        if was is None or is_now is None:
            changes.append(f"{split}: {'new' if was is None else 'gone'}")
        elif was["digest"] != is_now["digest"]:
            rows = was["rows"], is_now["rows"]
            changes.append(
                f"{split}: " + (f"{rows[0]} -> {rows[1]} rows" if rows[0] != rows[1] else "changed content")
            )
    return ", ".join(changes)


def _create(location: _Location, point: str | None) -> RunDirectory:
    path = location.parent / _next_name(location)
    while True:
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:  # a sweep point of the same identity was faster; it holds another lock
            path = location.parent / _next_name(location)
    state = RunState(location.identity, first_started=time.time(), point=point)
    directory = RunDirectory(path, state, resumed=False, checkpoint=None)
    directory.artifacts.mkdir()
    return directory


def _numbered(location: _Location) -> dict[int, Path]:
    """Return the run directories of one experiment by number; the first has no suffix."""
    matches = ((location.pattern.fullmatch(path.name), path) for path in location.parent.iterdir() if path.is_dir())
    return {int(m.group(1) or 1): path for m, path in matches if m}


def _next_name(location: _Location) -> str:
    taken = _numbered(location)
    return f"{location.stem}-{max(taken) + 1}" if taken else location.stem


def _latest(
    location: _Location, point: str | None, report: Callable[[str], None] = logger.debug
) -> tuple[Path, RunState] | None:
    """Find the newest run of an experiment that is the user's own; `report` gets a line for each skipped one."""
    for _, path in sorted(_numbered(location).items(), reverse=True):
        state = read_state(path)
        if state is None or state.point != point:
            continue
        problem = why_foreign(path, location.parent.parent) or why_not_contained(path, path)
        if problem is None:
            return path, state
        report(f"skipping {path.name}: {problem}")
    return None
