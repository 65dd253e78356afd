"""`run.json`: what is known of a run from outside."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
