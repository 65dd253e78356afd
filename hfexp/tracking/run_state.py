"""`run.json`: the state of a run, for other processes to read."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hfexp.core.outside import DamagedRecord, parse, read_bytes

logger = logging.getLogger(__name__)

STATE = "run.json"


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
    """Point of the sweep that the run belongs to, as text (`hfexp.tracking.membership.Point`)."""
    data: str | None = None
    """Stamp of the local data of a sweep's point (`hfexp.core.stamp`)."""
    splits: dict[str, dict[str, Any]] | None = None
    """Digest and number of rows (None for a stream) of each data split, at the latest start of the run."""
    values: list[float] | None = None
    """Objective values of a finished point of a sweep."""
    pruned_step: int | None = None
    """Step of the evaluation after which a sweep pruned the run."""
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
        logger.warning("%s: the directory is left alone", error)
        return None
    return state


def save_state(path: Path, state: RunState) -> None:
    """Write the state of a run directory atomically."""
    content = asdict(state)
    others = content.pop("others")
    temporary = path / f".{STATE}"
    with temporary.open("w") as file:
        json.dump({**others, **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / STATE)
