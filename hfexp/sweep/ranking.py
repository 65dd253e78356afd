"""Which points are best, and which are as good as the best as far as one can tell."""

import math
from collections.abc import Sequence

from hfexp.sweep.trials import State, Trial


def ranked(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """Finished trials, best first; of several metrics those first that no other is better than in all of them."""
    finished = [trial for trial in trials if trial.state is State.finished and trial.values is not None]
    if len(directions) == 1:
        return sorted(finished, key=lambda trial: costs(trial, directions))
    front = _front(finished, directions)
    return sorted(finished, key=lambda trial: (trial.number not in front, costs(trial, directions)))


def best(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """The best trial; of several metrics all that no other is better than."""
    order = ranked(trials, directions)
    if len(directions) == 1:
        return order[:1]
    front = _front(order, directions)
    return [trial for trial in order if trial.number in front]


def ties(trials: Sequence[Trial], directions: Sequence[str]) -> set[int]:
    """Numbers of trials whose 95 % interval overlaps that of the best one."""
    order = ranked(trials, directions)
    if len(directions) > 1 or not order or order[0].intervals is None:
        return set()
    known = [(trial.number, trial.intervals[0]) for trial in order if trial.intervals is not None]
    known = [(number, ends) for number, ends in known if all(map(math.isfinite, ends))]
    if not known or known[0][0] != order[0].number:
        return set()
    low, high = known[0][1]
    return {number for number, (other_low, other_high) in known[1:] if other_low <= high and low <= other_high}


def _front(trials: Sequence[Trial], directions: Sequence[str]) -> set[int]:
    """Numbers of the trials for which no other is nowhere worse, and somewhere better."""
    import numpy as np

    rows = np.array([costs(trial, directions) for trial in trials]).reshape(len(trials), len(directions))
    beaten = [bool(((rows <= own).all(axis=1) & (rows < own).any(axis=1)).any()) for own in rows]
    return {trial.number for trial, worse in zip(trials, beaten, strict=True) if not worse}


def costs(trial: Trial, directions: Sequence[str]) -> list[float]:
    """What is to be small; endless where runs are infinitely far apart, whatever their mean."""
    assert trial.values is not None
    spreads = trial.deviations or (0.0,) * len(trial.values)
    known = zip(trial.values, spreads, directions, strict=True)
    return [math.inf if math.isnan(v) or not math.isfinite(s) else -v if d == "maximize" else v for v, s, d in known]
