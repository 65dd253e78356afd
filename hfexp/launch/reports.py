"""How far training is, for whoever listens in this process: the launcher's end of a pipe, or nobody."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

INTERVAL = 0.5
"""Seconds between two reports at least."""


@dataclass(frozen=True)
class Progress:
    """One report."""

    name: str
    """Of the run."""
    step: int
    max_steps: int
    metrics: dict[str, float]


_listener: Callable[[Progress], None] | None = None
_next = 0.0


def listen(listener: Callable[[Progress], None] | None) -> None:
    """From now on reports go to this function (None: nowhere)."""
    global _listener, _next
    _listener, _next = listener, 0.0


def report(name: str | None, step: int, max_steps: int, metrics: Mapping[str, float]) -> None:
    """Pass on how far training is, unless nobody listens or the last report was just now; the last step always."""
    global _next
    if _listener is None or (time.monotonic() < _next and step < max_steps):
        return
    _next = time.monotonic() + INTERVAL
    _listener(Progress(name or "", step, max_steps, {key: float(value) for key, value in metrics.items()}))


def pass_on(progress: Progress) -> None:
    """A report that another process has made."""
    if _listener is not None:
        _listener(progress)
