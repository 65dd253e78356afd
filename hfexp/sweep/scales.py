"""Positions of parameter values on an axis from 0 to 1, with tick labels."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDE = 30.0
"""Ratio of the largest to the smallest value above which the scale is logarithmic."""
MOST_TICKS = 12


@dataclass(frozen=True)
class Scale:
    """One axis of a picture."""

    name: str
    places: list[float | None]
    """Position of each value, from 0 to 1; None for a missing value."""
    ticks: list[tuple[float, str]]


def scale_of(name: str, values: Sequence[Any]) -> Scale:
    """Place numbers by size, on a logarithmic scale if they span a wide range; space other values evenly, sorted."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in known):
        return _numeric(name, values, [float(value) for value in known])
    words = [
        None if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
        for value in values
    ]
    distinct = sorted({word for word in words if word is not None})
    places = {word: (index + 0.5) / len(distinct) for index, word in enumerate(distinct)}
    every = max(1, -(-len(distinct) // MOST_TICKS))
    ticks = [(places[word], word) for word in distinct[::every]]
    return Scale(name, [None if word is None else places[word] for word in words], ticks)


def _numeric(name: str, values: Sequence[Any], known: list[float]) -> Scale:
    logarithmic = is_wide(known)
    low, high = min(known), max(known)

    def place(value: float) -> float:
        if high == low:
            return 0.5
        if logarithmic:
            return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return (value - low) / (high - low)

    distinct = sorted(set(known))
    if len(distinct) > 5:
        middle = math.sqrt(low * high) if logarithmic else (low + high) / 2
        distinct = [low, middle, high]
    ticks = [(place(value), f"{value:.4g}") for value in distinct]
    return Scale(name, [None if value is None else place(float(value)) for value in values], ticks)


def is_wide(values: Sequence[float]) -> bool:
    """Tell whether values need a logarithmic scale: all are positive, and their ratio is above `WIDE`."""
    return bool(values) and 0 < min(values) < max(values) / WIDE
