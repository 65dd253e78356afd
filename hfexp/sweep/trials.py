"""What is known of a sweep at one moment: its trials, and the runs that each of them has."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class State(Enum):
    """Of a trial, or of one of its runs."""

    waiting = "waiting"
    running = "running"
    """Also: interrupted, and to be continued at the next start."""
    finished = "finished"
    pruned = "pruned"
    failed = "failed"


@dataclass(frozen=True)
class TrialRun:
    """One run of a trial: a trial has as many as there are replicates."""

    replicate: int
    state: State
    run_dir: Path | None = None
    run_id: str | None = None
    """Of MLflow; None: not tracked, or not delivered yet."""
    values: tuple[float, ...] | None = None
    """One for each metric of the sweep."""
    seconds: float | None = None
    """Over all its starts."""
    pruned_step: int | None = None
    error: str | None = None
    """First line of why it failed."""


@dataclass(frozen=True)
class Trial:
    """One point of the search space."""

    number: int
    params: dict[str, Any]
    """Swept keys and their values: what tells this trial from the others."""
    overrides: tuple[str, ...]
    """The words for Hydra that make this point, without what all trials have in common."""
    state: State
    values: tuple[float, ...] | None = None
    """One for each metric of the sweep; means, if there are several runs."""
    deviations: tuple[float, ...] | None = None
    """Standard deviations over the runs; None with fewer than two."""
    intervals: tuple[tuple[float, float], ...] | None = None
    """95 % intervals of the means (Student's t); None with fewer than two runs."""
    runs: tuple[TrialRun, ...] = ()
    attempts: int = 0
    """How often it was started and failed."""
    error: str | None = None
    objective: tuple[float, ...] | None = None
    """What the search is told, and what trials are ranked by; None: `values`."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, as the one process that directs it sees it."""

    name: str
    directory: Path
    """`<output_dir>/sweeps/<name>`."""
    command: str
    method: str
    metrics: tuple[str, ...]
    """What is optimised."""
    directions: tuple[str, ...]
    """`minimize` or `maximize`, for each metric."""
    fixed: tuple[str, ...]
    """The words that all trials have in common."""
    space: dict[str, str]
    """Swept key to what was written for it."""
    seconds: float
    """For which it has been directed, over all its starts."""
    bound: bool = False
    """The worse end of the interval is optimised, not the mean (`search.optimise`)."""
    flags: tuple[str, ...] = ()
    """Hydra's, that say where the configuration is."""
    trials: tuple[Trial, ...] = field(default=())

    @property
    def objectives(self) -> tuple[str, ...]:
        """What each metric is ranked by, as the table names its columns: `loss`, or `loss high` for the worse end."""
        ends = {"minimize": "high", "maximize": "low"}
        goals = zip(self.metrics, self.directions, strict=True)
        return tuple(f"{metric} {ends[direction]}" for metric, direction in goals) if self.bound else self.metrics
