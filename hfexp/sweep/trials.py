"""Snapshot of a sweep: its trials, and the runs of each trial."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class State(Enum):
    """State of a trial, or of one of its runs."""

    waiting = "waiting"
    running = "running"
    """Running, or interrupted and to be continued at the next start."""
    finished = "finished"
    pruned = "pruned"
    failed = "failed"


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial; a trial has one run per replicate."""

    replicate: int
    state: State
    run_dir: Path | None = None
    run_id: str | None = None
    """Id of the MLflow run; None if the run is not tracked, or not delivered yet."""
    values: tuple[float, ...] | None = None
    """One value for each metric of the sweep."""
    seconds: float | None = None
    """Run time over all its starts, in seconds."""
    pruned_step: int | None = None
    error: str | None = None
    """First line of the error that it failed with."""


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    number: int
    params: dict[str, Any]
    """Values of the swept keys."""
    overrides: tuple[str, ...]
    """Hydra overrides of this point, without those that all trials share."""
    state: State
    values: tuple[float, ...] | None = None
    """One value for each metric of the sweep: the mean over the runs."""
    deviations: tuple[float, ...] | None = None
    """Standard deviations over the runs; None with fewer than two."""
    intervals: tuple[tuple[float, float], ...] | None = None
    """95 % intervals of the means (Student's t); None with fewer than two runs."""
    runs: tuple[TrialRun, ...] = ()
    attempts: int = 0
    """Number of failed attempts."""
    error: str | None = None
    objective: tuple[float, ...] | None = None
    """Values that the sampler is told and that trials are ranked by; None: `values`."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, as the process that directs it sees it."""

    name: str
    directory: Path
    """`<output_dir>/sweeps/<name>`."""
    command: str
    method: str
    metrics: tuple[str, ...]
    """Names of the optimised metrics."""
    directions: tuple[str, ...]
    """`minimize` or `maximize`, for each metric."""
    fixed: tuple[str, ...]
    """Overrides that all trials share, with secrets masked."""
    space: dict[str, str]
    """Values of each swept key as the user wrote them, e.g. `choice(1, 2)`."""
    seconds: float
    """Seconds for which the sweep has been directed, over all its starts."""
    bound: bool = False
    """True if the worse end of the interval is optimised, not the mean (`search.optimise`)."""
    flags: tuple[str, ...] = ()
    """Hydra's flags that say where the config is, e.g. `--config-dir`."""
    trials: tuple[Trial, ...] = field(default=())

    @property
    def objectives(self) -> tuple[str, ...]:
        """Return the columns that trials are ranked by: `loss`, or `loss high` for the worse end of its interval."""
        ends = {"minimize": "high", "maximize": "low"}
        goals = zip(self.metrics, self.directions, strict=True)
        return tuple(f"{metric} {ends[direction]}" for metric, direction in goals) if self.bound else self.metrics
