"""Ranking of a sweep's trials: the best ones, and those that the seeds can't tell from the best one."""

import math
from collections.abc import Sequence

from hfexp.sweep.statistics import estimate
from hfexp.sweep.trials import State, Trial, TrialRun


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
