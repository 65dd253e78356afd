"""`run.json`: what is known of a run from outside."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hfexp.outside import DamagedRecord, parse, read_bytes

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
    last_started: float = 0.0
    """Of a start whose end was not noted by its own process; else 0."""
    seconds: float = 0.0
    """For which it has been running, over all its starts; of a start that was killed, up to its last sign of life."""
    kind: str = "run"
    """run or sweep."""
    point: str | None = None
    """Of which sweep it is a part (`hfexp.sweep.membership.Point`)."""
    data: str | None = None
    """Of a part of a sweep: stamp of its local data (`hfexp.stamp`)."""
    splits: dict[str, dict[str, Any]] | None = None
    """Digest and number of rows of each split of the data that it was started with."""
    values: list[float] | None = None
    """Of a finished part of a sweep: what the sweep optimises."""
    pruned_step: int | None = None
    """The evaluation after which a sweep gave it up."""
    closed: bool = True
    """The process that ended the run saw to its record, as far as the store took it."""
    others: dict[str, Any] = field(default_factory=dict)
    """What another version of hfexp has written: kept as it is."""


def read_state(path: Path) -> RunState | None:
    """Read the state of a run directory; None if it has none, or a damaged one, which is logged.

    A process may have died while it made the directory. Keys of another version of hfexp are kept in `others`.
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
    """Write the state of a run directory, whole or not at all."""
    content = asdict(state)
    others = content.pop("others")
    temporary = path / f".{STATE}"
    with temporary.open("w") as file:
        json.dump({**others, **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path / STATE)
