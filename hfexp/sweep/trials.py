"""Snapshot of a sweep: its trials with their runs, their statistics over replicates, and their ranking."""

import math
from collections.abc import Sequence
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


# Mean, standard deviation and confidence interval over replicates.


CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Estimate of one metric over the runs of a point."""

    mean: float
    deviation: float | None = None
    """Standard deviation with n - 1 in the denominator; None for a single run."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the mean; None for a single run."""

    def objective(self, direction: str, bound: bool = False) -> float:
        """Return the value that Optuna is told; the worst possible if the runs are infinitely far apart.

        Args:
            bound: return the worse end of the interval, not the mean.
        """
        if math.isnan(self.mean) or not math.isfinite(self.deviation or 0.0):
            return -math.inf if direction == "maximize" else math.inf
        if not bound or self.interval is None:
            return self.mean
        return self.interval[0] if direction == "maximize" else self.interval[1]


def estimate(values: Sequence[float]) -> Estimate:
    """Estimate mean, deviation and interval (Student's t, n - 1 degrees of freedom; Student 1908, Biometrika 6:1).

    They are infinite or NaN if a value is, or if they are too large for a float.
    """
    count, mean = len(values), _mean(values) if values else math.nan
    if count < 2:
        return Estimate(mean)
    deviation = math.sqrt(_sum([(value - mean) * (value - mean) for value in values]) / (count - 1))
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, (mean - half, mean + half))


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (OverflowError, ValueError):
        return sum(value / len(values) for value in values)


def _sum(values: Sequence[float]) -> float:
    try:
        return math.fsum(values)
    except OverflowError:
        return sum(values)


# Ranking of a sweep's trials: the best ones, and those that the seeds can't tell from the best one.


def ranked(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """Return finished trials, best first; with several metrics, the trials of the Pareto front come first."""
    finished = [trial for trial in trials if trial.state is State.finished and trial.values is not None]
    if len(directions) == 1:
        return sorted(finished, key=lambda trial: costs(trial, directions))
    front = _front(finished, directions)
    return sorted(finished, key=lambda trial: (trial.number not in front, costs(trial, directions)))


def best(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """Return the best trial; with several metrics, return all trials of the Pareto front."""
    order = ranked(trials, directions)
    if len(directions) == 1:
        return order[:1]
    front = _front(order, directions)
    return [trial for trial in order if trial.number in front]


def ties(trials: Sequence[Trial], directions: Sequence[str]) -> set[int]:
    """Return the numbers of trials that are as good as the best one, as far as their common seeds can tell.

    All points have the same seeds, so a trial is compared with the best one seed by seed. It is worse if the whole
    95 % interval of its mean difference lies beyond 0 (Student's t of the differences within pairs, as in section IX
    of Student, "The Probable Error of a Mean", Biometrika 6:1, 1908). A trial with fewer than two seeds in common
    with the best one is not marked. With several metrics no trial is.
    """
    order = ranked(trials, directions)
    if len(directions) > 1:
        return set()
    measured = [trial for trial in order if math.isfinite(costs(trial, directions)[0])]
    return {trial.number for trial in measured[1:] if _is_as_good(trial, measured[0], directions[0])}


def _is_as_good(trial: Trial, best: Trial, direction: str) -> bool:
    ours, theirs = ({run.replicate: run.values[0] for run in t.runs if run.values} for t in (trial, best))
    sign = -1 if direction == "maximize" else 1
    worse_by = estimate([sign * (value - theirs[seed]) for seed, value in ours.items() if seed in theirs]).interval
    return worse_by is not None and all(map(math.isfinite, worse_by)) and worse_by[0] <= 0


def best_runs_first(trial: Trial, directions: Sequence[str]) -> list[TrialRun]:
    """Sort the runs of a trial; the first one stands for it in the model registry and in `predict sweep=NAME`."""
    sign = -1 if directions[0] == "maximize" else 1
    return sorted(trial.runs, key=lambda run: sign * run.values[0] if run.values else math.inf)


def _front(trials: Sequence[Trial], directions: Sequence[str]) -> set[int]:
    """Return the numbers of the Pareto front's trials: no other is as good in all metrics and better in one."""
    import numpy as np

    rows = np.array([costs(trial, directions) for trial in trials]).reshape(len(trials), len(directions))
    beaten = [bool(((rows <= own).all(axis=1) & (rows < own).any(axis=1)).any()) for own in rows]
    return {trial.number for trial, worse in zip(trials, beaten, strict=True) if not worse}


def costs(trial: Trial, directions: Sequence[str]) -> list[float]:
    """Return the objective as costs to minimise; infinite where runs are infinitely far apart, whatever their mean."""
    optimised = trial.objective or trial.values
    assert optimised is not None
    pairs = zip(optimised, directions, strict=True)
    return [math.inf if math.isnan(value) else -value if d == "maximize" else value for value, d in pairs]
