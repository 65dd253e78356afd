"""Metrics of a model on all rows and on slices of them, with bootstrap confidence intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hfexp.core.console import say
from hfexp.core.errors import ConfigError
from hfexp.tasks.cells import in_order

CONFIDENCE = 0.95
MOST_SLICES = 50
ALL = "all"

Offered = Mapping[str, np.ndarray]
Compute = Callable[[dict[str, np.ndarray]], dict[str, float]]


@dataclass(frozen=True)
class Score:
    """One metric with its confidence interval."""

    value: float
    low: float
    high: float
    """Ends of the 95 % interval; NaN if fewer than two, or than half, of the resamples gave a finite value."""


@dataclass(frozen=True)
class SliceScores:
    """All metrics on one slice of the rows."""

    name: str
    """`all`, or `column=value`."""
    rows: int
    scores: dict[str, Score]


def score_slices(
    offered: Offered, compute: Compute, columns: Mapping[str, Sequence[Any]], resamples: int, seed: int
) -> list[SliceScores]:
    """Score all rows, then the rows of each value of each column, in the order of the values.

    Args:
        offered: inputs of the metrics, one entry per row.
        columns: the columns that define the slices, one value per row.

    Raises:
        ConfigError: a column has more than `MOST_SLICES` values.
    """
    size = len(next(iter(offered.values())))
    parts: list[tuple[str, np.ndarray]] = [(ALL, np.arange(size))]
    for name, values in columns.items():
        words = in_order({value for value in values if isinstance(value, str)})
        others = sorted(set(values) - set(words), key=lambda value: (value is None, str(type(value)), value))
        known = [*words, *others]
        if len(known) > MOST_SLICES:
            raise ConfigError(f"by={name}: {len(known)} different values; at most {MOST_SLICES} slices are scored")
        for value in known:
            parts.append((f"{name}={value}", np.array([i for i, one in enumerate(values) if one == value])))
    return [SliceScores(name, len(rows), bootstrap(offered, rows, compute, resamples, seed)) for name, rows in parts]


def bootstrap(offered: Offered, rows: np.ndarray, compute: Compute, resamples: int, seed: int) -> dict[str, Score]:
    """Compute metrics on some rows, with percentile intervals from the bootstrap.

    Each resample draws as many rows as there are, with replacement (B. Efron, "Bootstrap Methods: Another Look at the
    Jackknife", Annals of Statistics 7, 1979); the interval is that of the percentiles (B. Efron and R. Tibshirani, "An
    Introduction to the Bootstrap", 1993, chapter 13).
    """
    generator = np.random.default_rng(seed)
    values = compute({name: array[rows] for name, array in offered.items()})
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        some = rows[generator.integers(0, len(rows), len(rows))]
        for name, value in compute({key: array[some] for key, array in offered.items()}).items():
            drawn[name].append(value)
    return {name: Score(value, *_interval(drawn[name])) for name, value in values.items()}


def _interval(values: list[float]) -> tuple[float, float]:
    known = np.array([value for value in values if np.isfinite(value)])
    if len(known) < max(2, len(values) // 2):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def as_dicts(slices: Sequence[SliceScores]) -> list[dict[str, Any]]:
    """Return plain values, one row per slice and metric."""
    return [
        {"slice": part.name, "rows": part.rows, "metric": name, "value": score.value, "low": score.low,
         "high": score.high}
        for part in slices
        for name, score in part.scores.items()
    ]  # fmt: skip


def show_scores(slices: Sequence[SliceScores], metric: str) -> None:
    """Print all metrics on all rows, and one metric on each slice."""
    width = max(map(len, slices[0].scores))
    for name, score in slices[0].scores.items():
        say(f"  {name:{width}}  {_with_interval(score)}")
    metric = metric if metric in slices[0].scores else next(iter(slices[0].scores))
    if len(slices) > 1:
        say(f"{metric} by slice")
        width = max(len(part.name) for part in slices)
        for part in slices[1:]:
            say(f"  {part.name:{width}}  {_with_interval(part.scores[metric])}  {part.rows:,} rows")


def _with_interval(score: Score) -> str:
    if math.isnan(score.low):
        return f"{score.value:.4f}"
    return f"{score.value:.4f}  ({score.low:.4f} to {score.high:.4f})"
