"""Means over replicates, and how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Of one metric over the runs of a point."""

    mean: float
    deviation: float | None = None
    """Standard deviation with n - 1; None for a single run."""
    interval: tuple[float, float] | None = None
    """95 % interval of the mean."""

    def worse_end(self, direction: str) -> float:
        """Of the interval: what the search may count on."""
        if self.interval is None or math.isnan(self.interval[0]):  # one value is infinite
            return self.mean
        return self.interval[0] if direction == "maximize" else self.interval[1]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, deviation, and interval by Student's t with n - 1 degrees of freedom (Student 1908, Biometrika 6:1)."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(mean)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    from scipy.stats import t

    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, (mean - half, mean + half))
