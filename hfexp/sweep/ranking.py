"""Which points are best, and which are as good as the best as far as one can tell."""

from collections.abc import Sequence

from hfexp.sweep.trials import State, Trial


def ranked(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """Finished trials, best first; of several metrics those first that no other is better than in all of them."""
    finished = [trial for trial in trials if trial.state is State.finished and trial.values is not None]
    if len(directions) == 1:
        return sorted(finished, key=lambda trial: _costs(trial, directions))
    front = {trial.number for trial in finished if not any(dominates(other, trial, directions) for other in finished)}
    return sorted(finished, key=lambda trial: (trial.number not in front, _costs(trial, directions)))


def best(trials: Sequence[Trial], directions: Sequence[str]) -> list[Trial]:
    """The best trial; of several metrics all that no other is better than."""
    order = ranked(trials, directions)
    if len(directions) == 1:
        return order[:1]
    return [trial for trial in order if not any(dominates(other, trial, directions) for other in order)]


def ties(trials: Sequence[Trial], directions: Sequence[str]) -> set[int]:
    """Numbers of trials whose 95 % interval overlaps that of the best one."""
    order = ranked(trials, directions)
    if len(directions) > 1 or not order or order[0].intervals is None:
        return set()
    low, high = order[0].intervals[0]
    known = [(trial.number, trial.intervals[0]) for trial in order[1:] if trial.intervals is not None]
    return {number for number, (other_low, other_high) in known if other_low <= high and low <= other_high}


def dominates(one: Trial, other: Trial, directions: Sequence[str]) -> bool:
    """Whether a trial is nowhere worse than another, and somewhere better."""
    costs = list(zip(_costs(one, directions), _costs(other, directions), strict=True))
    return all(a <= b for a, b in costs) and any(a < b for a, b in costs)


def _costs(trial: Trial, directions: Sequence[str]) -> list[float]:
    assert trial.values is not None
    return [-v if d == "maximize" else v for v, d in zip(trial.values, directions, strict=True)]
