"""Mean, standard deviation and confidence interval over replicates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Estimate of one metric over the runs of a point."""

    mean: float
    deviation: float | None = None
    """Standard deviation with n - 1 in the denominator; None for a single run."""
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the mean; None for a single run."""

    def told(self, direction: str, bound: bool = False) -> float:
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
