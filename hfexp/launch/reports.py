"""Progress reports from a job to its launcher; they are dropped when nobody listens."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

INTERVAL = 0.5
"""Minimum number of seconds between two reports."""


@dataclass(frozen=True)
class Progress:
    """One progress report of a run."""

    name: str
    """Name of the run."""
    step: int
    max_steps: int
    metrics: dict[str, float]


_listener: Callable[[Progress], None] | None = None
_next = 0.0


def listen(listener: Callable[[Progress], None] | None) -> None:
    """Send reports to this function from now on (None: drop them)."""
    global _listener, _next
    _listener, _next = listener, 0.0


def report(name: str | None, step: int, max_steps: int, metrics: Mapping[str, float]) -> None:
    """Report progress if someone listens, at most once per `INTERVAL`; the last step is always reported."""
    global _next
    if _listener is None or (time.monotonic() < _next and step < max_steps):
        return
    _next = time.monotonic() + INTERVAL
    _listener(Progress(name or "", step, max_steps, {key: float(value) for key, value in metrics.items()}))


def pass_on(progress: Progress) -> None:
    """Forward a report that came from another process."""
    if _listener is not None:
        _listener(progress)
